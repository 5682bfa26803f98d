"""Raise the version in its two places: settings.ini and ai_suite/__init__.py.   bump.py major|minor|patch"""

import re
import sys
from pathlib import Path

from nbdev.config import bump_version, read_version, set_version

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("major", "minor", "patch")


def bump(root: Path, part: str) -> str:
    "Raise `part` of the version of the project at `root`, and return the new version."
    settings, package = root / "settings.ini", root / "ai_suite"
    version: str = bump_version(read_version(package), PARTS.index(part))
    text, n = re.subn(r"(?m)^version = .*$", f"version = {version}", settings.read_text(encoding="utf-8"))
    if n != 1: raise SystemExit(f"settings.ini must hold exactly one version line, it has {n}")
    settings.write_text(text, encoding="utf-8")
    set_version(package, version)
    return version


if __name__ == "__main__":
    part = sys.argv[1] if len(sys.argv) > 1 else "patch"
    if part not in PARTS: raise SystemExit(f"unknown part {part!r}: one of {', '.join(PARTS)}")
    print(bump(ROOT, part))
