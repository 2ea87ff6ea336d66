"""What the documents say of the code is so."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("peak_stimulation", "peak_backprop", "network", "retrieval")


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
        module, name = function.split(".")
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
