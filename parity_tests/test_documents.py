"""What the documents say of the code is so."""

import importlib
import inspect
import re
import shlex
import shutil
from contextlib import chdir

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prm.parity_tests.checks import needs_weights
from prm.parity_tests.documents import (
    PAGES,
    ROOT,
    SCRIPTS,
    anchors,
    blocks,
    check,
    commands,
    links,
    options,
    parses,
    resolves,
    spans,
)

MODULES = ("peak_stimulation", "peak_backprop", "network", "retrieval", "views", "pseudo_labels",
           "irnet.pixel_pairs", "irnet.heads", "irnet.resize", "irnet.centroids", "irnet.random_walk",
           "irnet.dense_crf", "irnet.label_synthesis")  # fmt: skip


def table():
    """The rows of the oracle's table: (in the paper, functions, test file, tests)."""
    for line in (ROOT / "reference" / "README.md").read_text().splitlines():
        if line.startswith("|") and "`" in line:
            paper, functions, where = (cell.strip() for cell in line.strip("|").split(" | "))
            names = re.findall(r"`([^`]+)`", where)
            yield paper, re.findall(r"`([^`]+)`", functions), names[0], names[1:]


def public(module):
    found = importlib.import_module(f"prm.reference.{module}")
    functions = {name: value for name, value in vars(found).items() if inspect.isfunction(value) and name[0] != "_"}
    inside = f"{found.__name__}."
    return {f"{module}.{name}" for name, value in functions.items() if f"{value.__module__}.".startswith(inside)}


# How arguments are written, which is nothing of the paper.
HELPERS = {"peak_backprop.pair", "peak_backprop.sides"}


def test_the_oracles_table_holds_every_function_once():
    listed = [function for _, functions, _, _ in table() for function in functions]
    assert len(listed) == len(set(listed))
    assert set(listed) == set().union(*map(public, MODULES)) - HELPERS


def test_the_oracles_table_holds_every_equation_in_order():
    cells = [paper for paper, *_ in table()]
    for equation in range(1, 7):
        assert any(re.match(rf"Eq\. ({equation}\b|{equation - 1}-{equation})", cell) for cell in cells), equation
    first = [next(i for i, cell in enumerate(cells) if cell.startswith(f"Eq. {n}")) for n in (1, 2, 3, 4, 6)]
    assert first == sorted(first)


@pytest.mark.parametrize("row", list(table()), ids=lambda row: row[0][:40])
def test_the_oracles_tests_exist_and_their_functions_say_the_equation(row):
    paper, functions, file, tests = row
    text = (ROOT / "parity_tests" / file).read_text()
    assert tests, paper
    for name in tests:
        assert re.search(rf"^def {name}\(", text, re.M), f"{file} has no {name}"
    for function in functions:
        # the function that an equation names says so in its docstring
        module, _, name = function.rpartition(".")
        doc = inspect.getdoc(getattr(importlib.import_module(f"prm.reference.{module}"), name))
        assert doc, function
        for equation in re.findall(r"^Eq\. (\d)", paper):
            said = {int(n) for pair in re.findall(r"Eqs?\. (\d)(?:(?:-| and )(\d))?", doc) for n in pair if n}
            assert not said or min(said) <= int(equation) <= max(said), (function, paper)


def test_the_page_of_tables_is_what_the_command_makes_of_the_runs(capsys, monkeypatch):
    from prm.eval.cli import main

    files = sorted(str(path) for path in (ROOT / "eval" / "results" / "tables").glob("*/*.json"))
    assert files
    monkeypatch.setattr("sys.argv", ["prm", "eval", "tables", *files])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert capsys.readouterr().out.rstrip() == (ROOT / "docs" / "tables.md").read_text().rstrip()


# ---- command lines

HAS_BASH = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@HAS_BASH
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_of_a_page_could_be_run(page, tmp_path):
    for number, block in enumerate(blocks(page)):
        (tmp_path / str(number)).mkdir()
        found = commands(block, tmp_path / str(number))
        assert found, block
        for words in found:
            check(words)


@HAS_BASH
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_command_line_of_a_committed_run_could_be_run(script, tmp_path):
    # tables.sh takes its parts, synthetic.sh its aggregations
    arguments = {"proposals": ("COCO", "VOC", "NUCLEI"), "synthetic": (), "way": ()}.get(script.stem, ("DATA",))
    found = commands(script.read_text(), tmp_path, *arguments)
    assert any(words[0].endswith("prm") for words in found)
    for words in found:
        check(words)


def test_every_command_that_a_sentence_names_is_there():
    known = options()
    for page in PAGES:
        for span in spans(page):
            if re.match(r"(prm|make|torchrun|pytest|python -m|pip) ", span):
                check(shlex.split(span.split(" > ")[0]), whole=False)
            elif re.match(r"--[a-z]", span):
                told = {word for word in span.split() if word.startswith("--")}
                assert told <= known, (page, span)


@pytest.mark.parametrize("words", [
    "segment", "segment a.png --peak-treshold 0.2", "tune --data x --alpha", "evall", "eval tables --data x --evry 2",
    "eval train --data x --out y -- --network resnet50 --epoch 3", "parity run --examples many", "data fetch",
])  # fmt: skip
def test_a_command_line_that_is_none_is_told(words):
    assert not parses(words.split())


def test_what_a_shell_comes_to_is_what_is_checked(tmp_path):
    script = "for net in a b; do prm tune --data 'my data' -c $net; done  # both\nmake test"
    wanted = [["prm", "tune", "--data", "my data", "-c", "a"], ["prm", "tune", "--data", "my data", "-c", "b"]]
    assert commands(script, tmp_path) == [*wanted, ["make", "test"]]
    with pytest.raises(AssertionError):
        commands("eval/results/nowhere.sh DATA", tmp_path)
    for words in (["make", "tests"], ["pytest", "parity_tests/test_nothing.py"], ["python", "-m", "prm.nothing"],
                  ["pip", "install", ".[nothing]"]):  # fmt: skip
        with pytest.raises(AssertionError):
            check(words)


# ---- names

TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."} - {"demo", "runs", "data"}


def is_there(name: str, page) -> bool:
    """Whether a file, folder or pattern lies in the project: from the root, the page's folder, or an equation's."""
    places = (ROOT, page.parent, ROOT / "parity_tests", ROOT / "reference", ROOT / "accelerated")
    return any(next(iter(place.glob(name.rstrip("/"))), None) for place in places)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_module_and_test_that_a_page_names_is_there(page):
    for span in spans(page):
        file, _, test = span.partition("::")
        if re.fullmatch(r"[\w./*-]+\.(py|sh|md)", file) or re.fullmatch(rf"({'|'.join(TOP)})/[\w./*-]*", file):
            assert is_there(file, page), (page, span)
        if test and file.endswith(".py"):
            assert re.search(rf"^def {test}\(", (ROOT / "parity_tests" / file).read_text(), re.M), (page, span)
        if re.fullmatch(r"prm(\.\w+)+", span):
            assert resolves(span), (page, span)
    for target in links(page):
        file, _, anchor = target.partition("#")
        lies = (page.parent / file).resolve() if file else page
        assert lies.exists(), (page, target)
        assert not anchor or anchor in anchors(lies), (page, target)


def equations():
    """The rows of the README's table: (in the paper, a list of names for oracle, fast path and kernel, tests)."""
    lines = (ROOT / "README.md").read_text().splitlines()
    for line in lines[lines.index("| in the paper | oracle | fast path | kernel | compared in |") + 2 :]:
        if not line.startswith("|"):
            return
        paper, *cells = (cell.strip() for cell in line.strip("|").split(" |"))
        yield paper, *(re.findall(r"`([^`]+)`", cell) for cell in cells)


@pytest.mark.parametrize("row", list(equations()), ids=lambda row: row[0][:30])
def test_every_name_of_the_equation_table_is_there(row):
    paper, oracle, path, kernels, tests = row
    assert path
    rooms = ["prm.reference", "prm.accelerated"]
    if importlib.util.find_spec("triton"):
        rooms.append("prm.accelerated.kernels")
    for room, names in zip(rooms, (oracle, path, kernels)):
        module = ""
        for name in names:
            # `.name` is in the module of the name before it
            module, name = (module, name[1:]) if name[0] == "." else name.rpartition(".")[::2]
            assert resolves(".".join(filter(None, (room, module, name)))), (paper, room, module, name)
    for test in tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / "parity_tests" / file).read_text(), re.M), (paper, test)


def test_the_equation_table_holds_every_equation_in_order():
    numbers = [int(number) for paper, *_ in equations() for number in re.findall(r"^Eq\. (\d)", paper)]
    assert numbers == sorted(numbers) and {1, 3, 4, 5, 6} <= set(numbers)
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


# ---- what is made, and what can be run


def test_the_page_of_settings_is_made_from_them():
    from prm.parity_tests.settings_page import page

    assert (ROOT / "docs" / "settings.md").read_text() == page()


def test_the_versions_that_pages_name_are_those_that_were_tested():
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    named = [pair for page in PAGES for pair in re.findall(r"\b(torch|torchvision)==([\d.]+)", page.read_text())]
    assert named and all(pinned[name] == version for name, version in named)


def test_the_changelog_tells_of_this_version():
    import prm

    assert f"## [{prm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@needs_weights
def test_the_code_of_the_readme_runs():
    (code,) = blocks(ROOT / "README.md", "python")
    names = {"picture": np.full((40, 50, 3), 128, np.uint8)}
    exec(code, names)
    assert names["answer"].size == (40, 50)


def test_the_code_for_any_network_runs():
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    names = {"classifier": nn.Sequential(*layers), "images": torch.rand(2, 3, 16, 16)}
    exec(blocks(ROOT / "docs" / "architectures.md", "python")[0], names)
    found, peaks = names["found"], names["peaks"]
    assert len(peaks) == len(found.prms) == len(found.leaked) > 0
    assert torch.allclose(found.prms.sum(dim=(1, 2))[~found.empty], torch.ones(()))


def test_the_code_of_the_questions_runs(tmp_path):
    picture = np.full((64, 64, 3), 20, np.uint8)
    picture[20:34, 24:40] = 200
    Image.fromarray(picture).save(tmp_path / "cells.png")
    names = {}
    with chdir(tmp_path):
        for code in blocks(ROOT / "docs" / "faq.md", "python"):
            exec(code, names)
    assert names["answer"].size == (64, 64)
