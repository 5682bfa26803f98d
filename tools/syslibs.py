"""Are the system libraries here that OpenCV and MediaPipe link to? As root with apt-get: install them. Standard library only."""

import ctypes
import os
import shutil
import subprocess
import sys

LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libGLESv2.so.2": "libgles2",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
}


def loads(name: str) -> bool:
    "Can the dynamic linker find the library `name`?"
    try: ctypes.CDLL(name)
    except OSError: return False
    return True


def missing() -> list[str]:
    "The Debian packages whose library cannot be loaded."
    return sorted({package for name, package in LIBRARIES.items() if not loads(name)})


def install(packages: list[str]) -> None:
    "Install Debian `packages`."
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *packages]):
        subprocess.run(["apt-get", *command], env=env, check=False, stdout=sys.stderr)


def main() -> int:
    "Exit status: 0 all here, 2 something is missing and was not installed."
    if not sys.platform.startswith("linux"): return 0
    packages = missing()
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing", *packages, file=sys.stderr)
        install(packages)
        packages = missing()
    if not packages: return 0
    print(f"E602 missing system libraries → sudo apt-get install -y {' '.join(packages)}", file=sys.stderr)
    return 2


if __name__ == "__main__": sys.exit(main())
