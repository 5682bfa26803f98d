"""The house: one home for each fact, a wheel that installs, light imports, arrows that point one way."""

import ast
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from configparser import ConfigParser
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path

import pytest

import ai_suite

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, NBS, BIN = ROOT / "ai_suite", ROOT / "nbs", Path(sys.executable).parent
HEAVY = {"torch", "fastai", "cv2", "mediapipe", "sklearn", "pandas", "matplotlib", "onnxruntime", "supervision",
         "ultralytics", "transformers", "timm", "umap", "lightgbm", "faiss", "fastapi", "fasthtml", "IPython"}
LEVELS = {"core": 0, "video": 1, "image": 1, "behavior": 2, "tasks": 2, "lens": 2, "ranking": 2, "ocad": 2,
          "serve": 3, "suite": 4}


def settings() -> ConfigParser:
    "settings.ini, read as setup.py reads it."
    cfg = ConfigParser(interpolation=None, delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return cfg


CFG = settings()
BASE = CFG.defaults()
EXTRAS = {key: CFG["extras"][key].split() for key in CFG["extras"] if key not in BASE}
SCRIPTS = {key: CFG["scripts"][key] for key in CFG["scripts"] if key not in BASE}
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def canonical(name: str) -> str:
    "A distribution's name as the index compares it."
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(text: str) -> tuple[str, str]:
    "(canonical name, the rest) of a requirement."
    name, rest = re.fullmatch(r"([A-Za-z0-9._-]+)(.*)", text).groups()
    return canonical(name), rest


def pins(path: Path) -> dict[str, str]:
    "name → version of a file of exact requirements."
    return {canonical(n): v for n, v in re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", path.read_text("utf-8"), flags=re.M)}


def expanded(extra: str) -> list[str]:
    "The requirements of an extra, with those of the extras it names."
    found = []
    for text in EXTRAS[extra]:
        inner = re.fullmatch(r"ai-suite\[(.+)\]", text)
        found += [r for name in inner[1].split(",") for r in expanded(name)] if inner else [text]
    return found


def run(*command: str | Path, **kwargs) -> subprocess.CompletedProcess[str]:
    "Run a command and stop the test with its output when it fails."
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def best_seconds(*command: str | Path, limit: float, tries: int = 5) -> float:
    "The shortest of at most `tries` runs; one below `limit` is enough."
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        run(*command)
        best = min(best, time.perf_counter() - start)
        if best < limit: break
    return best


# ---- one home for each fact


def test_version_and_name_are_the_same_everywhere():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert BASE["version"] == ai_suite.__version__ == installed_version("ai-suite")
    assert canonical(project["name"]) == canonical(BASE["name"]) == canonical(BASE["lib_name"])
    assert {"version", "dependencies", "optional-dependencies", "scripts", "description"} <= set(project["dynamic"])


def test_bump_moves_both_places(tmp_path):
    sys.path.insert(0, str(ROOT / "tools"))
    from bump import bump

    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "ai_suite").mkdir()
    shutil.copy(PACKAGE / "__init__.py", tmp_path / "ai_suite")
    major, minor, _ = map(int, BASE["version"].split("."))
    assert bump(tmp_path, "minor") == f"{major}.{minor + 1}.0"
    assert f"version = {major}.{minor + 1}.0\n" in (tmp_path / "settings.ini").read_text("utf-8")
    assert f'__version__ = "{major}.{minor + 1}.0"' in (tmp_path / "ai_suite/__init__.py").read_text("utf-8")


def test_every_requirement_has_an_exact_version():
    constraints = pins(ROOT / "constraints.txt")
    wanted = {requirement(text) for text in [*BASE["requirements"].split(), *sum(map(expanded, EXTRAS), [])]}
    assert not {name for name, _ in wanted} - constraints.keys()
    exact = {name: rest[2:] for name, rest in wanted if rest.startswith("==")}
    assert exact and exact.items() <= constraints.items()


def test_offline_files_are_pinned_once_and_hashed():
    text = (ROOT / "requirements-offline.txt").read_text("utf-8")
    offline, constraints = pins(ROOT / "requirements-offline.txt"), pins(ROOT / "constraints.txt")
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) == len(offline) > 0
    assert offline.items() <= constraints.items()
    named = {name for name, _ in map(requirement, EXTRAS["offline"])}
    assert offline.keys() - named == {"ultralytics"}, "all but the AGPL package is in the extra `offline`"


def test_this_environment_is_what_constraints_say():
    constraints = pins(ROOT / "constraints.txt")
    names = {requirement(text)[0] for text in BASE["requirements"].split() + expanded("behavior") + expanded("dev")}
    assert {name: installed_version(name) for name in names} == {name: constraints[name] for name in names}


def test_agpl_stays_in_its_own_extra():
    holders = {extra for extra in EXTRAS if "ultralytics" in {requirement(r)[0] for r in expanded(extra)}}
    assert holders == {"yolo"}


def test_every_extra_that_a_fix_names_exists():
    named = set()
    for path in MODULES:
        text = path.read_text("utf-8")
        named |= {e for group in re.findall(r"ai-suite\[([\w,-]+)\]", text) for e in group.split(",")}
        calls = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "need")
        named |= {call.args[1].value for call in calls if len(call.args) > 1 and isinstance(call.args[1], ast.Constant)}
    assert {"core-ml", "video"} <= named
    assert not named - EXTRAS.keys()


def test_missing_libraries_are_named_alike():
    sys.path.insert(0, str(ROOT / "tools"))
    from syslibs import LIBRARIES, missing

    from ai_suite.core.errors import CODES

    assert set(LIBRARIES.values()) <= set(CODES["E602"][1].split())
    assert missing() == []


# ---- notebooks and modules


def test_every_module_comes_from_a_notebook():
    source = re.compile(r"^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+)\.$", re.M)
    for path in MODULES:
        if path.name in ("__init__.py", "_modidx.py"): continue
        found = source.search(path.read_text("utf-8"))
        assert found, f"{path.relative_to(ROOT)} was written by hand"
        assert (path.parent / found[1]).resolve().is_file(), f"{path.relative_to(ROOT)}: its notebook {found[1]} is gone"


def test_notebooks_are_small_and_pictures_of_people_stay_out():
    sizes = {str(p.relative_to(ROOT)): p.stat().st_size for p in NOTEBOOKS}
    assert not {name: size for name, size in sizes.items() if size > 400_000}
    assert (NBS / "_quarto.yml").is_symlink() and (NBS / "_quarto.yml").resolve() == ROOT / "_quarto.yml"


def imported(path: Path) -> set[str]:
    "The rooms of ai_suite that a module imports anything from."
    package = ["ai_suite", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            head = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{head}.{a.name}" for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ai_suite.") and "." in name}
    return found & LEVELS.keys()


def test_arrows_between_rooms_point_one_way():
    wrong = []
    for path in MODULES:
        room = path.relative_to(PACKAGE).parts[0]
        if room not in LEVELS: continue
        wrong += [f"{path.relative_to(ROOT)} imports {other}" for other in imported(path)
                  if other != room and LEVELS[other] >= LEVELS[room]]
    assert not wrong, "\n".join(wrong)
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} <= LEVELS.keys()


def test_the_arrow_test_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "ai_suite")
    forms = "from ..lens import index", "from ..lens.index import f", "import ai_suite.lens.index", "from .. import lens"
    for form in (*forms, "from ai_suite.lens import index", "from ai_suite import lens", "def f():\n    from ..lens import x"):
        path = tmp_path / "ai_suite/core/a.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(form)
        assert imported(path) == {"lens"}, form


# ---- light and quick


def test_import_is_quick_and_light():
    assert best_seconds(sys.executable, "-c", "import ai_suite", limit=0.3) < 0.3
    loaded = run(sys.executable, "-c", "import ai_suite, sys; print(*sys.modules)").stdout.split()
    assert not HEAVY & {name.partition(".")[0] for name in loaded}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick(script):
    assert (BIN / script).is_file(), f"{script} is not installed: make env"
    assert "usage" in run(BIN / script, "--help").stdout.lower()
    assert best_seconds(BIN / script, "--help", limit=0.7) < 0.7


@pytest.mark.parametrize("target", sorted({t.partition(":")[0] for t in SCRIPTS.values()}))
def test_command_modules_load_nothing_heavy(target):
    loaded = run(sys.executable, "-c", f"import {target}, sys; print(*sys.modules)").stdout.split()
    assert not HEAVY & {name.partition(".")[0] for name in loaded}


# ---- what is shipped


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The wheel, built from a copy so that nothing is left behind here."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"): shutil.copy(ROOT / name, source)
    shutil.copytree(PACKAGE, source / "ai_suite", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
    (found,) = out.glob("*.whl")
    return found


def test_wheel_holds_every_module_and_the_licence(wheel):
    from zipfile import ZipFile

    names = set(ZipFile(wheel).namelist())
    ours = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert "ai_suite/py.typed" in ours and ours <= names
    assert {n.rpartition("/")[2] for n in names if "/licenses/" in n} == {"LICENSE", "NOTICE"}
    assert not {n for n in names if n.startswith(("tests/", "nbs/", "tools/"))}


def test_wheel_installs_elsewhere_and_every_module_imports(wheel, tmp_path):
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python, dependencies = venv / "bin/python", Path(find_spec("pytest").origin).parent.parent
    (next(venv.glob("lib/python*/site-packages")) / "dependencies.pth").write_text(f"{dependencies}\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in MODULES]
    code = f"import importlib, ai_suite\nfor n in {names!r}: importlib.import_module(n)\nprint(ai_suite.__file__)"
    where = run(python, "-c", code, cwd=tmp_path).stdout.splitlines()[-1]
    assert Path(where).is_relative_to(venv)
    assert {p.name for p in (venv / "bin").iterdir()} >= SCRIPTS.keys()
    assert ai_suite.__version__ in run(venv / "bin/ai-suite", "--version", cwd=tmp_path).stdout
    points = "from importlib.metadata import entry_points as e; print(e(group='nbdev')['ai_suite'].load()['settings'])"
    assert "ai_suite" in run(python, "-c", points, cwd=tmp_path).stdout


def wanted_symbols(data: bytes) -> set[str]:
    "The functions that a 64-bit ELF library asks other libraries for."
    if data[:5] != b"\x7fELF\x02": return set()
    table, (size, count) = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    found = set()
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind != 11: continue  # SHT_DYNSYM
        names = sections[link][4]
        for at in range(offset, offset + length, 24):
            name, _, _, section = struct.unpack_from("<IBBH", data, at)
            if section == 0: found.add(data[names + name : data.index(b"\0", names + name)].decode())
    return found


def network_marks(path: Path) -> set[str]:
    "Signs in a library of a way to the network: socket calls, an HTTP client, an address to log to."
    data = path.read_bytes()
    calls = {"getaddrinfo", "gethostbyname", "socket", "connect"} & wanted_symbols(data)
    return calls | {mark for mark in ("play.goo", "libcurl", "util/analytics/log_request") if mark.encode() in data}


def test_mediapipe_cannot_report_usage():
    "From 0.10.35 on the library resolves names and holds an address to log to; this one asks for no socket call at all."
    root = Path(find_spec("mediapipe").origin).parent
    libraries = [p for p in root.rglob("*") if p.is_file() and re.search(r"\.(so|dylib|dll|pyd)(\.|$)", p.name)]
    assert libraries
    assert {p.name: network_marks(p) for p in libraries} == {p.name: set() for p in libraries}


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_the_network_check_can_fail():
    import _socket

    assert {"getaddrinfo", "socket", "connect"} <= network_marks(Path(getattr(_socket, "__file__", sys.executable)))


# ---- tools


def test_readme_is_what_the_index_says():
    run(sys.executable, ROOT / "tools/docs.py", "readme", "--check", cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_help_lists_the_targets():
    listed = run("make", "help", cwd=ROOT).stdout
    for target in "demo test test-all docs readme bench lab bump env clean help".split():
        assert re.search(rf"^{target} ", listed, flags=re.M), target


def project(tmp_path: Path) -> Path:
    "The tools over a small project of their own."
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "nbs/core").mkdir(parents=True)
    shutil.copytree(PACKAGE, tmp_path / "ai_suite", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def check(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    "tools/check.py of the project at `root`."
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run([sys.executable, "tools/check.py", *args], cwd=root, env=env, capture_output=True, text=True)


def test_checks_stop_for_stale_modules_and_for_no_notebooks(tmp_path):
    root = project(tmp_path)
    none = check(root, "notebooks")
    assert none.returncode and "no notebook" in none.stderr
    shutil.copy(NBS / "core/10_errors.ipynb", root / "nbs/core")
    shutil.copy(NBS / "index.ipynb", root / "nbs")
    check(root, "export")
    assert check(root, "export").returncode == 0
    module = root / "ai_suite/core/errors.py"
    module.write_text(module.read_text("utf-8").replace("E110", "E111"), encoding="utf-8")
    stale = check(root, "export")
    assert stale.returncode and "core/errors.py" in stale.stderr
    assert check(root, "clean").returncode == 0


def test_checks_run_every_notebook(tmp_path):
    root = project(tmp_path)
    shutil.copy(NBS / "core/10_errors.ipynb", root / "nbs/core/10_errors.ipynb")
    ran = check(root, "notebooks")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    text = (root / "nbs/core/10_errors.ipynb").read_text("utf-8")
    (root / "nbs/core/20_wrong.ipynb").write_text(text.replace("str(e)", "1/0"), encoding="utf-8")
    assert check(root, "notebooks").returncode
