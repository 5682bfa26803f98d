"""Every command that README and the tutorials show runs as it stands. Blocks marked ```sh are run, ```text are not."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".bench", "_docs*", "_proc", "__pycache__", ".*_cache", "*.egg-info", "demo")


def markdown(path: Path) -> str:
    "The prose of a Markdown file or a notebook."
    text = path.read_text("utf-8")
    if path.suffix != ".ipynb": return text
    return "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


def blocks(path: Path) -> list[str]:
    "The ```sh blocks of a document, in order."
    return FENCE.findall(markdown(path))


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "nbs/tutorials").glob("*.ipynb"))]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    "What a reader's shell has after `make env`, with the demonstration in its small size."
    subprocess.run(["make", "env"], cwd=ROOT, check=True, capture_output=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DEMO_SCALE": "small", "OMP_NUM_THREADS": "1"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d)], ids=lambda d: d.name)
def test_commands_run(document, environment, tmp_path):
    place = tmp_path / "clone"
    shutil.copytree(ROOT, place, ignore=LEFT_OUT, symlinks=True)
    (place / ".venv").symlink_to(ROOT / ".venv")
    for block in blocks(document):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=place, env=environment, capture_output=True,
                              text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{block}\nexited {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_readme_shows_commands_and_no_other_kind_of_block():
    text = markdown(ROOT / "README.md")
    assert "make demo" in "".join(blocks(ROOT / "README.md"))
    assert set(re.findall(r"^```(\w*)$", text, flags=re.M)) <= {"sh", "text", "", "python"}
    wanting = re.compile(r"--index-url|\buv |pip install|git clone")
    assert not [block for block in blocks(ROOT / "README.md") if wanting.search(block)]
