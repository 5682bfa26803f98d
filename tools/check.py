"""Do notebooks and modules agree?   check.py export | clean | notebooks [FLAG …]

export     `nbdev-export` changes nothing in ai_suite/
clean      `nbdev-clean` changes nothing in nbs/
notebooks  every notebook runs; cells flagged slow only when the flag is named
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import copytree, ignore_patterns

ROOT = Path(__file__).resolve().parent.parent
SKIP = ("__pycache__", ".ipynb_checkpoints", "nbdev.yml", "sidebar.yml")


def contents(folder: Path) -> dict[str, bytes]:
    "Relative path → bytes of every file below `folder`."
    files = (p for p in folder.rglob("*") if p.is_file() and not any(part in SKIP for part in p.parts))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def changed_by(command: list[str], folder: Path) -> list[str]:
    "The files below `folder` that `command` adds, removes or rewrites."
    with tempfile.TemporaryDirectory() as tmp:
        before = Path(copytree(folder, Path(tmp) / "before", ignore=ignore_patterns(*SKIP)))
        subprocess.run(command, cwd=ROOT, check=True)
        old, new = contents(before), contents(folder)
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def unchanged(command: str, folder: str, advice: str) -> None:
    "Stop when `command` changes something in `folder`."
    names = changed_by([command], ROOT / folder)
    if names: sys.exit(f"{command} changed {len(names)} files in {folder}/: {', '.join(names)}\n{advice}")
    print(f"{command}: {folder}/ is as it should be")


def found_notebooks() -> list[Path]:
    "The notebooks that nbdev-test runs."
    paths = (ROOT / "nbs").rglob("*.ipynb")
    return sorted(p for p in paths if not any(part[0] in "._" for part in p.relative_to(ROOT / "nbs").parts))


def compiled_afresh(folder: str) -> dict[str, str]:
    "An environment without kernels that were compiled earlier: numba does not see that a function which one calls has changed."
    from ai_suite.core.cache import cache_dir

    modules = max(p.stat().st_mtime for p in (ROOT / "ai_suite").rglob("*.py"))
    kernels = list((ROOT / "ai_suite").rglob("*.nb[ic]"))
    if any(p.stat().st_mtime < modules for p in kernels):
        for path in kernels: path.unlink(missing_ok=True)
    return {**os.environ, "AI_SUITE_CACHE": str(cache_dir()), "XDG_CACHE_HOME": folder}


def notebooks(flags: list[str]) -> None:
    "Run every notebook, two at a time, and make sure that every one ran: nbdev-test is content with none."
    expected = len(found_notebooks())
    if not expected: sys.exit("no notebook was found in nbs/")
    timeout = "1800" if flags else "120"
    command = ["nbdev-test", "nbs", "--n-workers", "2", "--timing", "--cell-timeout", timeout, "--flags", " ".join(flags)]
    ran = 0
    with tempfile.TemporaryDirectory() as tmp:
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=compiled_afresh(tmp))
        assert run.stdout
        for line in run.stdout:
            print(line, end="", flush=True)
            ran += line.rstrip().endswith(" secs")
        code = run.wait()
    if code: sys.exit(f"nbdev-test failed ({code})")
    if ran != expected: sys.exit(f"nbdev-test ran {ran} of {expected} notebooks")


def main(what: str = "", *flags: str) -> None:
    "One of the three checks in the module's docstring."
    if what == "export": unchanged("nbdev-export", "ai_suite", "They match the notebooks now: commit them.")
    elif what == "clean": unchanged("nbdev-clean", "nbs", "They are clean now: commit them.")
    elif what == "notebooks": notebooks(list(flags))
    else: sys.exit(__doc__)


if __name__ == "__main__": main(*sys.argv[1:])
