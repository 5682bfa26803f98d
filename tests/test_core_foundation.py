"""What core promises and a notebook should not carry: two processes, killed writers, full disks, hostile files."""

import hashlib
import inspect
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
from fastcore.docments import docments
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_suite.core import cache, cli, config, errors, runs, weights
from ai_suite.core.cache import Store, atomic_path, key_of, load_arrays, save_arrays, write_json, write_text
from ai_suite.core.errors import CODES, SuiteError, need

ROOT = Path(__file__).parents[1]
AWKWARD = "영상 폴더/걷기 (1) 'ü' 100%"


def code_of(f, *args, **kwargs):
    "The code of the SuiteError that a call raises."
    with pytest.raises(SuiteError) as e:
        f(*args, **kwargs)
    return e.value.code


def python(source, *args, **env):
    "A Python process running `source`; stdout and stderr piped."
    words = [sys.executable, "-c", textwrap.dedent(source), *map(str, args)]
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONUNBUFFERED", "AI_SUITE_DEBUG")}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
                            env={**inherited, "PYTHONPATH": str(ROOT), **env})


def forked(work):
    "Run `work` in a forked child; its exit code, negative for a signal."
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for(path, seconds=10):
    "Wait until a file exists."
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(.01)


# ---------------------------------------------------------------- errors

def test_every_code_in_the_package_is_known():
    used = {c for p in (ROOT/"ai_suite").rglob("*.py") for c in re.findall(r"['\"](E\d{3})['\"]", p.read_text())}
    assert used and used <= set(CODES), used - set(CODES)


def test_error_crosses_process_border():
    e = SuiteError("E110", "3 samples")
    copy = pickle.loads(pickle.dumps(e))
    assert copy.as_dict() == e.as_dict() and str(copy) == f"E110 3 samples → {CODES['E110'][1]}"


def test_missing_parts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path/"no_gl.py").write_text("raise ImportError('libEGL.so.1: cannot open shared object file: No such file')")
    (tmp_path/"no_lib.py").write_text("raise OSError('libGLESv2.so.2: cannot open shared object file')")
    (tmp_path/"half.py").write_text("import absent_dependency_of_half")
    (tmp_path/"broken.py").write_text("from json import nothing_there")
    with pytest.raises(SuiteError, match=r'E601 skyhook .*pip install "ai-suite\[video\]"'):
        need("skyhook", "video")
    with pytest.raises(SuiteError, match="E601 absent_dependency_of_half"):
        need("half", "video")
    with pytest.raises(SuiteError, match="E602 no_gl .*libEGL.so.1 → apt-get install libgl1"):
        need("no_gl", "video")
    assert code_of(need, "no_lib", "video") == "E602"
    assert code_of(need, "broken", "video") == "E600"


@pytest.mark.parametrize("module", [errors, config, cli, cache, runs, weights])
def test_every_parameter_is_documented(module):
    for name in module.__all__:
        f = getattr(module, name)
        if inspect.isfunction(f):
            missing = [k for k, doc in docments(f).items() if not doc and f.__annotations__.get(k) is not type(None)]
            assert f.__doc__ and set(missing) <= {"return"}, f"{name}: {missing}"


def test_core_imports_lightly():
    p = python("""
        import sys, time; t = time.perf_counter()
        from ai_suite.core import errors, config, cli, cache, runs, weights
        heavy = {'numpy', 'torch', 'cv2', 'mediapipe', 'sklearn', 'pandas', 'matplotlib', 'IPython', 'fastcore'}
        print(sorted(heavy & set(sys.modules)), time.perf_counter() - t < 1)""")
    assert p.communicate()[0].strip() == "[] True"


# ---------------------------------------------------------------- config

def load(tmp_path, text):
    (tmp_path/"c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load_yaml(tmp_path/"c.yaml")


def test_yaml_numbers_and_words(tmp_path):
    assert load(tmp_path, "lr: 3e-4\non: off\nn: 010\n") == {"lr": 3e-4, "on": "off", "n": 10}
    assert load(tmp_path, "\ufeffa: 1") == {"a": 1} and load(tmp_path, "# nothing") == {}


def bomb(line, n):
    "A YAML file whose every line names the one before it several times."
    rows = [line.format(i=i, j=i - 1, nine=", ".join([f"*a{i - 1}"] * 9)) for i in range(1, n)]
    return "\n".join(["a0: &a0 {x: 1}", *rows])


BOMBS = {
    "lists": bomb("a{i}: &a{i} [{nine}]", 12),
    "maps": bomb("a{i}: &a{i} {{p: *a{j}, q: *a{j}}}", 40),
    "merges": bomb("a{i}: &a{i} {{<<: [{nine}]}}", 12),
    "itself": "a: &a [*a]",
    "deep": "a: " + "[" * 20_000,
    "deep map": "{a: " * 5_000,
    "object": "a: !!python/object/apply:os.system ['touch /tmp/owned']",
    "list": "- 1",
    "twice": "a: 1\na: 2",
    "two documents": "a: 1\n---\nb: 2",
    "latin": "a: caf\xe9".encode("latin-1"),
    "zero": b"a: \0",
    "tab": "a:\n\t- b",
}


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_yaml(tmp_path, name):
    start = time.monotonic()
    assert code_of(load, tmp_path, BOMBS[name]) == "E102"
    assert time.monotonic() - start < 2


def test_yaml_size_and_absence(tmp_path):
    assert code_of(load, tmp_path, "a: " + "x" * 1_000_001) == "E102"
    assert code_of(config.load_yaml, tmp_path/"absent.yaml") == "E101"
    assert code_of(config.load_yaml, tmp_path) == "E101"


YAMLISH = st.text(alphabet="ab01 :-[]{}&*!|>?,'\"#%@\n\t<.~e", max_size=60).map(str.encode)


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.binary(max_size=60), YAMLISH))
def test_any_bytes_are_a_mapping_or_E102(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp()/"fuzz.yaml"
    path.write_bytes(data)
    try:
        assert isinstance(config.load_yaml(path), dict)
    except SuiteError as e:
        assert e.code == "E102"


def test_keys_and_aliases():
    names, older = ["lr", "embedding", "reject_threshold"], {"embedding_dim": "embedding"}
    got = config.defaults_for({"embedding_dim": 8, "reject": {"threshold": .2}}, names, older)
    assert got == {"embedding": 8, "reject_threshold": .2}
    with pytest.raises(SuiteError, match="E300 unknown key 'lrr' → did you mean 'lr'"):
        config.defaults_for({"lrr": 1}, names)
    assert code_of(config.defaults_for, {"embedding": 1, "embedding_dim": 2}, names, older) == "E301"
    assert code_of(config.defaults_for, {"reject.threshold": 1, "reject": {"threshold": 2}}, names) == "E301"


# ---------------------------------------------------------------- cli

def sample(
    images: list[Path],  # Pictures
    *,
    data_dir: list[str],  # Folders
    checkpoint: Path | None = None,  # Model
    lr: float = 1e-3,  # Rate
    kind: Literal["fast", "slow"] = "fast",  # How
    shuffle: bool = True,  # Shuffle?
    verbose: bool = False,  # Talk?
) -> dict:
    "A sample command."
    print("noise on stdout")
    return dict(locals())


sample.__flags__ = {"checkpoint": ["-c"]}
sample.__aliases__ = {"learning_rate": "lr"}


def test_flags(capsys):
    words = "a b --data-dir x y --data_dir z -c m.pt --lr=3e-4 --no-shuffle --verbose".split()
    assert cli.run(sample, words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"images": ["a", "b"], "data_dir": ["x", "y", "z"], "checkpoint": "m.pt", "lr": 3e-4,
                               "kind": "fast", "shuffle": False, "verbose": True}
    assert "noise" in err and out.count("\n") == 1


@pytest.mark.parametrize("words, message", [
    (["a"], "E301 .*required: --data-dir"),
    (["a", "--data-dir", "x", "--lr", "much"], "E301 .*--lr"),
    (["a", "--data-dir", "x", "--kind", "medium"], "E301 .*--kind"),
    (["a", "--data-dir", "x", "--chekpoint", "m"], "E300 .*did you mean --checkpoint"),
    (["a", "--data-dir", "x", "--check", "m"], "E300"),
    (["a", "--data-dir", "x", "--config", "/absent.yaml"], "E101"),
])
def test_wrong_words(capsys, words, message):
    assert cli.run(sample, words) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.match(message, err) and err.count("\n") == 1


def test_settings_file(tmp_path, capsys):
    home = tmp_path/AWKWARD
    write_text(home/"설정 1.yaml", "images: [p 1.jpg]\ndata-dir: x\nlearning_rate: 3e-4\nshuffle: false\nkind: slow\n")
    assert cli.run(sample, ["--config", str(home/"설정 1.yaml"), "--kind", "fast"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["images"] == ["p 1.jpg"] and got["data_dir"] == ["x"] and got["lr"] == 3e-4
    assert got["kind"] == "fast" and got["shuffle"] is False
    assert cli.run(sample, ["q.jpg", "--data-dir", "y", "--config", str(home/"설정 1.yaml")]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["images"] == ["q.jpg"] and got["data_dir"] == ["y"]


@pytest.mark.parametrize("text, code", [("lr: fast", "E301"), ("lr: [1, 2]", "E301"), ("shuffle: maybe", "E301"),
                                        ("kind: medium", "E301"), ("data_dir: {a: 1}", "E300"), ("lrate: 1", "E300")])
def test_bad_settings(tmp_path, capsys, text, code):
    write_text(tmp_path/"c.yaml", text)
    assert cli.run(sample, ["a", "--data-dir", "x", "--config", str(tmp_path/"c.yaml")]) == 2
    assert capsys.readouterr().err.startswith(code)


def outcome(what):
    "A command whose result is chosen by the test."
    def f() -> dict:
        "Do it."
        if isinstance(what, BaseException):
            raise what
        return what
    return f


@pytest.mark.parametrize("what, code, said", [
    (None, 0, ""), ({"p": float("nan")}, 0, ""), (SuiteError("E110", "few"), 2, "E110 few"),
    (SuiteError("E130", "stopped after epoch 3"), 130, "E130"), (KeyboardInterrupt(), 130, "interrupted"),
    (SuiteError("E101", "bad\nname\x1b[2J"), 2, "E101 bad name\\\\x1b\\[2J"),
    (ValueError("odd"), 1, "unexpected ValueError: odd .*AI_SUITE_DEBUG=1"),
    (SystemExit(3), 3, ""), (SystemExit(None), 0, ""),
])
def test_exit_codes(capsys, monkeypatch, what, code, said):
    monkeypatch.delenv("AI_SUITE_DEBUG", raising=False)
    assert cli.run(outcome(what), []) == code
    out, err = capsys.readouterr()
    assert re.match(said, err) and "Traceback" not in err
    assert out == ({"p": 1} and '{"p": null}\n' if isinstance(what, dict) else "")


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("AI_SUITE_DEBUG", "1")
    assert cli.run(outcome(ValueError("odd")), []) == 1
    assert "Traceback" in capsys.readouterr().err


def test_generator_gives_json_lines(capsys):
    assert cli.run(outcome(iter([{"a": 1}, {"a": np.int64(2)}])), []) == 0
    assert [json.loads(x) for x in capsys.readouterr().out.splitlines()] == [{"a": 1}, {"a": 2}]


PROGRAM = """
    import sys, os, time
    from ai_suite.core import cli
    from ai_suite.core.errors import SuiteError
    def work(
        how: str = "ok",  # What happens
    ) -> dict:
        "Work."
        print("library noise")
        os.write(2, b"started\\n")
        if how == "suite": raise SuiteError("E402", "no person in 걷기.mp4")
        if how == "bug": raise RuntimeError("odd")
        if how == "wait": time.sleep(20)
        if how == "long": return [{"n": i, "넘어짐": "\\udcff"} for i in range(200_000)]
        return {"label": "넘어짐", "file": "\\udcff.mp4"}
    cli.command(work)()
"""


def test_real_processes(tmp_path):
    program = write_text(tmp_path/"program.py", textwrap.dedent(PROGRAM))
    start = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    jobs = {how: python(start, program, "--how", how, PYTHONIOENCODING="ascii") for how in ["ok", "suite", "bug"]}
    jobs["help"] = python(start, program, "--help")
    waiting, piped = python(start, program, "--how", "wait"), python(start, program, "--how", "long")
    assert "started\n" in (waiting.stderr.readline(), waiting.stderr.readline())
    waiting.send_signal(signal.SIGINT)
    assert piped.stdout.read(10) and piped.stdout.close() is None
    done = {how: (*p.communicate(), p.returncode) for how, p in jobs.items()}
    assert {how: r[2] for how, r in done.items()} == {"ok": 0, "suite": 2, "bug": 1, "help": 0}
    assert json.loads(done["ok"][0]) == {"label": "넘어짐", "file": "\udcff.mp4"}
    assert done["suite"][0] == "" and "E402 no person in" in done["suite"][1]
    assert done["bug"][0] == "" and "unexpected RuntimeError: odd" in done["bug"][1]
    assert "usage: work" in done["help"][0] and "What happens" in done["help"][0]
    assert waiting.wait(10) == 130 and waiting.stdout.read() == "" and "interrupted" in waiting.stderr.read()
    assert piped.wait(10) == 141 and "Traceback" not in piped.stderr.read()


def test_group(capsys):
    main = cli.group("demo", "A demo.", {"show": "ai_suite.core.errors:errors_table", "gone": "ai_suite.absent:f"})

    def call(*words):
        with pytest.raises(SystemExit) as e:
            main(list(words))
        return e.value.code, *capsys.readouterr()

    code, out, _ = call("show")
    assert code == 0 and json.loads(out)[0]["code"] == "E100"
    assert call("shwo")[::2] == (2, "E300 unknown command shwo → did you mean demo show?\n")
    assert call("gone")[0] == 2
    assert call("--version")[:2] == (0, f"demo {__import__('ai_suite').__version__}\n")


@pytest.mark.parametrize("cuda, mps, auto", [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_device(monkeypatch, cuda, mps, auto):
    there = {"cuda": cuda, "mps": mps}
    part = {k: SimpleNamespace(is_available=lambda v=v: v) for k, v in there.items()}
    stub = SimpleNamespace(cuda=part["cuda"], backends=SimpleNamespace(mps=part["mps"]))
    monkeypatch.setitem(sys.modules, "torch", stub)
    assert cli.device_of() == auto and cli.device_of("cpu") == "cpu" and code_of(cli.device_of, "tpu") == "E301"
    for device, here in there.items():
        assert cli.device_of(device) == device if here else code_of(cli.device_of, device) == "E301"


# ---------------------------------------------------------------- cache

COMPUTE = """
    import sys, time, os
    import numpy as np
    from ai_suite.core.cache import Store
    root, log, seconds = sys.argv[1:4]
    def make():
        with open(log, "a") as f: f.write("made\\n")
        time.sleep(float(seconds))
        return {"x": np.arange(1000)}
    print(int(Store(root).array("ab" + "0" * 30, make)["x"].sum()))
"""
KEY = "ab" + "0" * 30


def test_two_processes_compute_one_key_once(tmp_path):
    log = tmp_path/"log"
    both = [python(COMPUTE, tmp_path/AWKWARD, log, .7) for _ in range(2)]
    assert [p.communicate()[0].strip() for p in both] == ["499500"] * 2
    assert log.read_text() == "made\n"


def test_killed_writer_leaves_nothing_in_the_way(tmp_path):
    log, store = tmp_path/"log", Store(tmp_path/"store")
    p = python(COMPUTE, store.root, log, 60)
    wait_for(log)
    p.kill()
    p.wait()
    assert store.array(KEY, lambda: {"x": np.ones(2)})["x"].sum() == 2

    def die_while_writing():
        with atomic_path(tmp_path/"report.html") as temp:
            temp.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    write_text(tmp_path/"report.html", "old")
    assert forked(die_while_writing) == -signal.SIGKILL
    assert (tmp_path/"report.html").read_text() == "old"


def test_damaged_results_are_computed_again(tmp_path):
    store = Store(tmp_path)
    path = store.path(KEY, ".npz")
    for damage in [b"", b"PK", os.urandom(500), pickle.dumps({"x": 1})]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(damage)
        assert store.array(KEY, lambda: {"x": np.arange(3)})["x"].tolist() == [0, 1, 2]
        assert load_arrays(path)["x"].tolist() == [0, 1, 2]
    np.savez(path, x=np.array([object()]))
    assert load_arrays(path) is None


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    path, arrays = tmp_path/"a.npz", {"x": np.arange(3), "y": np.ones(2)}
    save_arrays(path, arrays)
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1:])
        back = load_arrays(path)
        assert back is None or all(np.array_equal(back[k], v) for k, v in arrays.items()), i


def test_arrays_keep_their_types(tmp_path):
    arrays = {"f": np.zeros((0, 3), np.float32), "s": np.array(["걷기", "b"]), "b": np.array(True),
              "file": np.arange(2), "t": np.array(["2024-01-01"], "datetime64[D]"),
              "fortran": np.asfortranarray(np.eye(3))}
    save_arrays(tmp_path/"a.npz", arrays)
    back = load_arrays(tmp_path/"a.npz")
    assert all(back[k].dtype == v.dtype and np.array_equal(back[k], v) for k, v in arrays.items())
    assert code_of(save_arrays, tmp_path/"b.npz", {"o": np.array([{}])}) == "E103"


def test_prune_touches_only_its_own_files(tmp_path):
    store = Store(tmp_path)
    write_text(tmp_path/"my"/"notes.txt", "mine")
    write_text(store.path("ab-one", ".txt"), "x" * 50)
    assert store.prune(0) == 50
    assert (tmp_path/"my"/"notes.txt").exists() and store.get("ab-one", ".txt") is None


def test_unwritable_places_are_E120(tmp_path):
    (tmp_path/"file").write_text("")
    under = tmp_path/"file"/"deeper"/"out.json"
    for f in [lambda: write_json(under, {}), lambda: Store(tmp_path/"file").array(KEY, dict),
              lambda: write_run(under, 1), lambda: write_text("/dev/full", "x"), lambda: write_text(tmp_path, "x"),
              lambda: write_text(tmp_path/("x" * 300), "y"), lambda: write_text("/proc/nothing/x", "y")]:
        assert code_of(f) in ("E120",)
    assert os.path.exists("/dev/full") and not os.path.isfile("/dev/full")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_full_disk(tmp_path):
    "A limit on the size of files stands in for a disk without space."
    write_text(tmp_path/"out.txt", "old")
    run = write_run(tmp_path/"run", 1)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
        assert code_of(write_text, tmp_path/"out.txt", "x" * 10_000) == "E120"
        assert code_of(save_arrays, tmp_path/"a.npz", {"x": np.zeros(10_000)}) == "E120"
        assert code_of(write_run, run, 2, big=b"x" * 10_000) == "E120"
        assert code_of(write_run, run, 2, big=lambda p: p.write_bytes(b"x" * 10_000)) == "E120"
        with pytest.raises(SuiteError, match="E120"), atomic_path(tmp_path/"a.npy") as temp:
            np.save(temp, np.zeros(10_000))

    assert forked(work) == 0
    assert (tmp_path/"out.txt").read_text() == "old" and runs.check_run(run)["seed"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.txt", "run"]


def test_errors_of_inputs_are_not_E120(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path/"out") as temp:
        temp.write_bytes((tmp_path/"absent input").read_bytes())
    with pytest.raises(ConnectionResetError), atomic_path(tmp_path/"out"):
        raise ConnectionResetError(104, "reset")
    assert list(tmp_path.iterdir()) == []


def test_links_and_pipes(tmp_path):
    write_text(tmp_path/"real.txt", "old")
    (tmp_path/"link.txt").symlink_to(tmp_path/"real.txt")
    write_text(tmp_path/"link.txt", "new")
    assert (tmp_path/"link.txt").is_symlink() and (tmp_path/"real.txt").read_text() == "new"
    p = python("from ai_suite.core.cache import write_json; write_json('/dev/stdout', {'a': 1})")
    assert json.loads(p.communicate()[0]) == {"a": 1}


def test_file_hash_sees_a_change_of_the_same_size(tmp_path):
    path = write_text(tmp_path/AWKWARD/"clip.mp4", "aaaa")
    os.utime(path, (1_000, 1_000))
    first = cache.file_hash(path)
    assert first == cache.file_hash(path) == hashlib.sha256(b"aaaa").hexdigest()
    path.write_text("bbbb")
    assert cache.file_hash(path) == hashlib.sha256(b"bbbb").hexdigest()
    assert code_of(cache.file_hash, tmp_path) == "E101" and code_of(cache.file_hash, tmp_path/"absent") == "E101"


# ---------------------------------------------------------------- runs

def write_run(folder, seed, big=b"weights"):
    return runs.write_run(folder, system="behavior", config={"seed": seed}, metrics={"f1": seed}, seed=seed,
                          files={"model.bin": big, f"part/only-{seed}.txt": str(seed).encode()},
                          history=[{"epoch": 0, "loss": .5}, {"epoch": 1, "lr": .1}])


def consistent(folder):
    "The seed of a run whose files all belong together."
    run = runs.check_run(folder)
    seed = run["seed"]
    assert json.loads((folder/"metrics.json").read_text()) == {"f1": seed}
    assert [p.name for p in (folder/"part").iterdir()] == [f"only-{seed}.txt"]
    return seed


def test_kill_in_the_middle_of_write_run(tmp_path):
    run = write_run(tmp_path/AWKWARD, 1)
    write_text(run/"my notes.txt", "mine")

    def slow(path):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(lambda: write_run(run, 2, slow)) == -signal.SIGKILL
    assert len(list(run.glob(".run-*"))) == 1 and consistent(run) == 1
    assert consistent(write_run(run, 3)) == 3
    assert not list(run.glob(".run-*")) and (run/"my notes.txt").read_text() == "mine"


def test_kill_at_every_step_of_the_commit(tmp_path):
    "Die before the n-th rename or removal: what is read is the old run or the new one, whole."
    seeds = []
    for n in range(12):
        run, left = write_run(tmp_path/str(n), 1), [n]

        def mortal(f, left=left):
            def g(*args, **kwargs):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return f(*args, **kwargs)
            return g

        def work(run=run, mortal=mortal):
            os.replace, os.unlink, os.rmdir = mortal(os.replace), mortal(os.unlink), mortal(os.rmdir)
            write_run(run, 2)

        forked(work)
        seeds.append(consistent(run))
        assert not [p for p in run.iterdir() if p.name.startswith((".commit", ".run"))] or seeds[-1] == 1
    assert seeds == sorted(seeds) and set(seeds) == {1, 2}, seeds


def test_changed_missing_and_foreign_files(tmp_path):
    run = write_run(tmp_path/"run", 1)
    (run/"model.bin").write_bytes(b"weightS")
    os.utime(run/"model.bin", (1, 1))
    assert code_of(runs.check_run, run) == code_of(runs.run_file, run, "model.bin") == "E202"
    (run/"model.bin").unlink()
    assert code_of(runs.check_run, run) == "E200"
    assert runs.run_file(run, "metrics.json") == run/"metrics.json"
    assert code_of(runs.run_file, run, "absent.bin") == "E200"
    record = json.loads((run/"run.json").read_text())
    secret = write_text(tmp_path/"secret.txt", "s")
    (run/"link").symlink_to(secret)
    for name in ["../secret.txt", str(secret), "a\\b", "link", "part/../../secret.txt"]:
        write_json(run/"run.json", record | {"files": {name: cache.sha256_of(secret)}})
        assert code_of(runs.check_run, run) == "E202", name


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema_version": 2}', "[" * 100_000, '{"files": 3}', "\0"])
def test_bad_run_json(tmp_path, text):
    (tmp_path/"run.json").write_text(text)
    assert code_of(runs.read_run, tmp_path) == "E200"


def test_hostile_commit_cannot_leave_the_folder(tmp_path):
    run, victim = write_run(tmp_path/"run", 1), write_text(tmp_path/"victim.txt", "safe")
    record = json.loads((run/"run.json").read_text())
    write_json(run/"run.json", record | {"files": {"../victim.txt": "0" * 64}})
    write_json(run/".commit"/"run.json", record)
    assert code_of(runs.read_run, run) == "E202" and victim.read_text() == "safe"


def test_run_needs_safe_free_names(tmp_path):
    for name in ["../x", "run.json", "metrics.json", "/abs", ".hidden", "a/.b"]:
        with pytest.raises(SuiteError, match="E120"):
            runs.write_run(tmp_path/"r", system="x", config={}, metrics={}, files={name: b""}, seed=0)
    assert not (tmp_path/"r"/"run.json").exists() and not (tmp_path/"x").exists()
    (tmp_path/"r"/"model").mkdir()
    with pytest.raises(SuiteError, match="E120"):
        runs.write_run(tmp_path/"r", system="x", config={}, metrics={}, files={"model": b""}, seed=0)
    with pytest.raises(SuiteError, match="E101"):
        runs.write_run(tmp_path/"r", system="x", config={}, metrics={}, files={"m": tmp_path/"absent"}, seed=0)


def test_run_says_nothing_private(tmp_path, monkeypatch):
    import getpass
    import platform
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    settings = {"data_dir": [tmp_path/"clips"], "save": str(tmp_path/"m.pt"), "sep": "/", "lr": np.float32(.5)}
    run = runs.write_run(tmp_path/"r", system="x", metrics={"f1": float("nan")}, files={}, seed=0, config=settings)
    text = (run/"run.json").read_text()
    assert str(tmp_path) not in text and "secret-host" not in text and str(ROOT) not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text
    assert json.loads(text)["config"] == {"data_dir": ["clips"], "save": "m.pt", "sep": "/", "lr": .5}
    assert json.loads((run/"metrics.json").read_text()) == {"f1": None}


def test_two_processes_add_parts_at_once(tmp_path):
    source = """
        import sys
        from ai_suite.core.runs import add_part
        run, name = sys.argv[1:]
        for i in range(3): add_part(run, name, {f"{name}-{i}.bin": b"x" * i}, {"i": i}, system="ocad")
    """
    both = [python(source, tmp_path/"run", name) for name in ["tcn", "iforest"]]
    assert [p.wait(20) for p in both] == [0, 0], [p.stderr.read() for p in both]
    run = runs.check_run(tmp_path/"run")
    assert sorted(run["files"]) == ["iforest-2.bin", "tcn-2.bin"] and {p["i"] for p in run["parts"].values()} == {2}
    assert code_of(runs.add_part, tmp_path/"run", "new", {"tcn-2.bin": b""}, {}) == "E120"
    assert code_of(runs.add_part, tmp_path/"run", "new", {"n.bin": b""}, {}, system="lens") == "E203"


def test_pickles_are_refused_and_do_not_run(tmp_path):
    import torch

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path/"owned",)

    torch.save({"w": torch.ones(1), "trap": Trap()}, tmp_path/"a.pt")
    torch.save({"trap": Trap()}, tmp_path/"b.pt", _use_new_zipfile_serialization=False)
    (tmp_path/"c.pt").write_bytes(pickle.dumps(Trap()))
    torch.save(torch.nn.Linear(1, 1), tmp_path/"d.pt")
    assert [code_of(runs.load_pt, tmp_path/f"{n}.pt") for n in "abcd"] == ["E202"] * 4
    assert not (tmp_path/"owned").exists()
    for text in [b"", b"no model", b"PK\x03\x04" + bytes(90), os.urandom(300)]:
        (tmp_path/"e.pt").write_bytes(text)
        assert code_of(runs.load_pt, tmp_path/"e.pt") in ("E200", "E202")
    assert code_of(runs.load_pt, tmp_path) == code_of(runs.load_pt, tmp_path/"absent.pt") == "E200"
    assert code_of(runs.load_tensors, tmp_path/"e.pt") == code_of(runs.load_tensors, tmp_path/"no") == "E200"


def test_data_hash_is_content(tmp_path):
    for place in ["one", "영상 둘"]:
        write_text(tmp_path/place/"a"/"x.txt", "1")
        write_text(tmp_path/place/"y.txt", "2")
    assert runs.data_hash(tmp_path/"one") == runs.data_hash(str(tmp_path/"영상 둘"))
    before = runs.data_hash([tmp_path/"one"])
    write_text(tmp_path/"one"/"y.txt", "3")
    assert runs.data_hash([tmp_path/"one"]) != before
    x = np.arange(6).reshape(2, 3)
    same = [x.copy(), np.asfortranarray(x), x[::1]]
    assert {runs.data_hash(a) for a in same} == {runs.data_hash(x)}
    empty = [np.zeros((0, 3)), np.zeros((3, 0))]
    different = [x, x.T, x.astype(np.int32), x + 1, [x, x], np.array(["a"]), np.array(1), *empty]
    assert len({runs.data_hash(a) for a in different}) == len(different)


def test_key_of_is_stable_between_processes():
    source = "from ai_suite.core.cache import key_of; print(key_of('a', {'x': 1, 'y': [2.5, None]}))"
    p = python(source, PYTHONHASHSEED="7")
    assert p.communicate()[0].strip() == key_of("a", {"y": [2.5, None], "x": 1})


# ---------------------------------------------------------------- weights

@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    "A small known file, an empty cache, no permission to download."
    for name in ["AI_SUITE_WEIGHTS", "AI_SUITE_DOWNLOAD"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AI_SUITE_CACHE", str(tmp_path/"cache"))
    known = {"sha256": hashlib.sha256(b"good").hexdigest(), "files": ["s.task"], "packages": [("fake_pkg", "m/s.task")],
             "url": "https://example.invalid/s.task", "licence": "none"}
    monkeypatch.setitem(weights.KNOWN, "stand_in", known)
    return tmp_path


def test_order_of_search(stand_in, monkeypatch):
    assert code_of(weights.resolve, "stand_in") == "E201"
    (stand_in/"fake_pkg").mkdir()
    (stand_in/"fake_pkg"/"__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(stand_in)
    write_text(stand_in/"fake_pkg"/"m"/"s.task", "good")
    assert weights.resolve("stand_in").parent.name == "m" and "fake_pkg" not in sys.modules
    cached = write_text(stand_in/"cache"/"weights"/"s.task", "damaged")
    assert weights.resolve("stand_in").parent.name == "m"
    write_text(cached, "good")
    assert weights.resolve("stand_in") == cached
    mine = write_text(stand_in/AWKWARD/"s.task", "good")
    monkeypatch.setenv("AI_SUITE_WEIGHTS", str(mine.parent))
    assert weights.resolve("stand_in") == mine
    write_text(mine, "evil")
    assert code_of(weights.resolve, "stand_in") == code_of(weights.resolve, "stand_in", mine) == "E202"
    assert weights.resolve("stand_in", cached) == cached
    assert code_of(weights.resolve, "stand_in", stand_in/"absent") == "E201"
    assert code_of(weights.resolve, "stand_inn") == "E301"


def test_download_only_when_allowed_and_checked(stand_in, monkeypatch):
    import http.client
    import io
    import urllib.request
    sent, asked = [b"good"], []

    def urlopen(url, timeout):
        asked.append(url)
        if isinstance(sent[0], Exception):
            raise sent[0]
        return io.BytesIO(sent[0])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert code_of(weights.resolve, "stand_in") == "E201" and asked == []
    monkeypatch.setenv("AI_SUITE_DOWNLOAD", "1")
    lost = [urllib.error.URLError("no route"), ConnectionResetError(), http.client.IncompleteRead(b"go")]
    for answer, code in [(b"evil", "E202"), *((e, "E201") for e in lost)]:
        sent[0] = answer
        assert code_of(weights.resolve, "stand_in") == code
        assert list((stand_in/"cache"/"weights").iterdir()) == []
    sent[0] = b"good"
    assert weights.resolve("stand_in").read_bytes() == b"good"
    monkeypatch.delenv("AI_SUITE_DOWNLOAD")
    assert weights.resolve("stand_in").parent.name == "weights"
