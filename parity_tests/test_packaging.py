"""What is installed: every tracked file of the package is in the wheel, and its parts import only what they may."""

import ast
import functools
import graphlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("reference", "accelerated", "eval")
AT_THE_ROOT = ("__init__.py", "files.py", "settings.py", "py.typed")
PACKAGED = (*FOLDERS, "parity_tests")
PAGES = ("reference/golden.md", "parity_tests/PORTING.md")
SUFFIXES = (".py", ".json", ".npz", ".safetensors", ".typed")


def tracked():
    """Paths of the files under version control, relative to the root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git working tree")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def belongs_in_the_package(name):
    path = Path(name)
    if name.startswith("eval/results/"):  # figures of runs: for readers of the repository
        return False
    return name in PAGES or (path.suffix in SUFFIXES and (name in AT_THE_ROOT or path.parts[0] in PACKAGED))


def test_the_wheel_holds_every_tracked_file_of_the_package(tmp_path):
    # built from the tracked files alone, so that nothing that merely lies about can help
    names, source = tracked(), tmp_path / "source"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "out"), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        contents = {name: archive.read(name) for name in held}
    assert {name.split("/")[0] for name in held} == {"prm"}  # one name in site-packages
    wanted = {f"prm/{name}" for name in names if belongs_in_the_package(name)}
    assert wanted - held == set(), "tracked, but not in the wheel"
    assert {name for name in held if name.endswith(SUFFIXES)} - wanted == set(), "in the wheel, but not tracked"
    assert all(contents[f"prm/{name}"] == (ROOT / name).read_bytes() for name in names if f"prm/{name}" in wanted)


def test_every_folder_of_code_is_a_package():
    for name in tracked():
        if name.endswith(".py") and name.split("/")[0] in FOLDERS:
            assert (ROOT / name).with_name("__init__.py").is_file(), name


# ---- who may import whom


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)


@pytest.mark.parametrize(
    "module",
    [
        "prm",
        "prm.files",
        "prm.reference",
        "prm.reference.peak_stimulation",
        "prm.reference.peak_backprop",
        "prm.reference.retrieval",
        "prm.reference.network",
        "prm.eval.metrics",
    ],
)
def test_imports_without_torch(module):
    done = python(f"import sys, {module}\nbad = {{'torch', 'triton'}} & set(sys.modules)\nassert not bad, bad")
    assert done.returncode == 0, done.stderr


MISSING = ("torchvision", "tifffile", "pycocotools", "pooch", "zennit")
"""What a machine with an accelerator may lack: the oracle, the fast path, the tests and `prm bench` do without."""

WITHOUT = """
import importlib, pkgutil, pytest, sys, prm.accelerated, prm.accelerated.training, prm.parity_tests
from prm.accelerated.networks.resnet50 import ResNet50
assert sys.modules["torchvision"] is None
for module in pkgutil.iter_modules(prm.parity_tests.__path__, "prm.parity_tests."):
    try:
        importlib.import_module(module.name)
    except pytest.skip.Exception as reason:
        print(module.name, reason)
assert isinstance(prm.accelerated.network("resnet50", 2), ResNet50)
with pytest.raises(prm.InputError, match="vgg16 needs torchvision"):
    prm.accelerated.network("vgg16", 2)
from prm.parity_tests.command import done
done("bench", "--help")
done("bench", "segment", "--network", "smallnet", "--size", 64, "--peaks", 3, "--repeat", 1)
"""


def test_without_what_a_machine_with_an_accelerator_may_lack(tmp_path):
    # Python runs sitecustomize in every process, those that the bench starts too.
    hide = f"import sys\nsys.modules |= dict.fromkeys({MISSING})\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    path = os.pathsep.join([str(tmp_path), str(ROOT.parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT.parent,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Absolute names of all that a file imports, and their lines, wherever in the file the statement stands."""
    package = ["prm", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


FORBIDDEN = {
    "reference": ("torch", "triton", "prm.accelerated", "prm.eval", "prm.parity_tests"),
    "accelerated": ("prm.reference", "prm.eval", "prm.parity_tests"),
    "eval/metrics": ("torch", "triton", "prm.accelerated"),
    "eval": ("prm.parity_tests",),
}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_who_may_import_whom(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name, line in imported(path):
            for banned in FORBIDDEN[folder]:
                if (path.parent.name, banned) == ("cli", "prm.parity_tests"):  # the command runs the comparison
                    continue
                assert name != banned and not name.startswith(banned + "."), f"{path.relative_to(ROOT)}:{line}: {name}"


FLOW = {
    "accelerated": (
        {"classes", "inputs", "peak_stimulation", "resuming"},
        {"aggregation", "peak_backprop"},
        {"views"},
        {"networks", "stages"},
        {"checkpoint", "retrieval"},
        {"kernels", "pretrained", "pseudo_labels", "segmenter", "training"},
        {"students"},
    ),
    "eval": (
        {"metrics", "pictures"},
        {"datasets"},
        {"proposals"},
        {"bench", "judging", "segment", "segmenter", "tuning"},
        {"experiments", "label"},
        {"cli"},
    ),
}
"""Which way data flows through the rooms of a folder: each imports from those above its row alone, none of its own."""


@pytest.mark.parametrize("folder", FLOW)
def test_data_flows_one_way_through_the_rooms(folder):
    row = {room: k for k, rooms in enumerate(FLOW[folder]) for room in rooms}
    files = {path: path.relative_to(ROOT / folder).with_suffix("").parts[0] for path in (ROOT / folder).rglob("*.py")}
    assert set(files.values()) == {"__init__", *row}
    for path, room in files.items():
        inside = ((name.split(".")[2], line) for name, line in imported(path) if name.startswith(f"prm.{folder}."))
        for other, line in inside if room != "__init__" else ():
            allowed = other == room or row.get(other, len(row)) < row[room]
            assert allowed, f"{path.relative_to(ROOT)}:{line}: {room} must not import from {other}"


def module_of(name):
    """The file of the package in which an imported name stands; None for other packages' names."""
    root, *parts = name.split(".")
    places = [ROOT.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)] if root == "prm" else []
    files = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
    return next((file for file in files if file.is_file()), None)


def test_no_import_goes_in_a_circle():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    graph = {path: {module_of(name) for name, _ in imported(path)} - {None, path} for path in files}
    assert sum(map(len, graph.values())) > len(files)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(str(path.relative_to(ROOT)) for path in reversed(error.args[1])))


DISTRIBUTION = {"skimage": "scikit-image", "PIL": "pillow"}


def test_what_the_package_imports_is_declared():
    """A module that merely came along with something else is missing where that something has changed."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = about["optional-dependencies"]
    always = {re.match(r"[\w-]+", line)[0] for line in about["dependencies"]}
    told = {re.match(r"[\w-]+", line)[0] for lines in extras.values() for line in lines}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for module, line in imported(path):
                name = module.split(".")[0]
                optional = name in ("zennit", "timm", "transformers")
                declared = always | told if folder == "parity_tests" or optional else always
                known = name == "prm" or name in sys.stdlib_module_names or DISTRIBUTION.get(name, name) in declared
                assert known, f"{path.relative_to(ROOT)}:{line}: {name} is not among the dependencies"


def test_what_the_root_imports():
    for name in AT_THE_ROOT:
        for module, line in imported(ROOT / name):
            assert module.split(".")[0] in sys.stdlib_module_names or module in ("prm", "prm.InputError"), (name, line)


def test_inside_a_folder_imports_are_relative():
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    inside = f"{node.module}.".startswith(f"prm.{folder}.")
                    assert not inside, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_the_reader_of_imports_sees_every_form():
    path = ROOT / "eval" / "metrics" / "__init__.py"
    assert path.is_file()
    names = {name for name, _ in imported(Path(__file__).resolve())}
    assert {"ast", "pathlib.Path", "pytest"} <= names
    deep = {name for name, _ in imported(ROOT / "accelerated" / "networks" / "weights.py")}
    assert {"torch", "prm.InputError"} <= deep
    assert "prm.accelerated.aggregation.aggregation" in {n for n, _ in imported(ROOT / "accelerated" / "__init__.py")}
