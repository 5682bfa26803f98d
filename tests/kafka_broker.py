"""A Kafka broker for tests: librdkafka's mock cluster in a process of its own; prints its address and lives until stdin ends."""

import ctypes
import sys
from pathlib import Path

import confluent_kafka


def cluster() -> str:
    "Start the cluster in this process; its address. Groups do not wait three seconds for more members before they begin."
    lib = ctypes.CDLL(str(next(Path(confluent_kafka.__path__[0]).parent.glob("confluent_kafka.libs/librdkafka*.so*"))))
    lib.rd_kafka_new.restype = lib.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    rk = lib.rd_kafka_new(0, None, None, 0)
    mock = ctypes.c_void_p(lib.rd_kafka_mock_cluster_new(ctypes.c_void_p(rk), 1))
    lib.rd_kafka_mock_group_initial_rebalance_delay_ms(mock, 200)
    return lib.rd_kafka_mock_cluster_bootstraps(mock).decode()


if __name__ == "__main__":
    print(cluster(), flush=True)
    sys.stdin.read()
