"""The mutants themselves: that each can be made, and that the run judges as it should. `make mutants` runs them all."""

import subprocess
import sys
from collections import Counter

import pytest

from prm.parity_tests.mutants import MUTANTS
from prm.parity_tests.mutation import EVALUATION, ROOT, Edit, copy_of_the_project, judge, judged_by


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.kind}, {mutant.name}")
def test_every_mutant_can_be_made(mutant, tmp_path):
    for edit in mutant.edits:
        path = tmp_path / edit.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((ROOT / edit.file).read_text())
    for edit in mutant.edits:
        edit.apply(tmp_path)


def test_there_are_enough_of_every_kind():
    kinds, stems = Counter(mutant.kind for mutant in MUTANTS), {mutant.stem for mutant in MUTANTS}
    assert kinds["fast path"] >= 40 and kinds["oracle"] >= 20 and kinds["both sides"] >= 5
    families = {"peak_stimulation", "peak_backprop", "retrieval"}
    assert stems == families | {f"kernels_{name}" for name in families} | {"windows", "pseudo_labels"} | set(EVALUATION)
    assert kinds["kernels"] >= 15 and kinds["evaluation"] >= 70
    names = [(mutant.kind, mutant.stem, mutant.name) for mutant in MUTANTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("test", "killed", "outcome"),
    [
        ("def test_it():\n    assert 1 == 2\n", True, "parity_tests/test_it.py::test_it"),
        ("def test_it():\n    1 / 0\n", True, "parity_tests/test_it.py::test_it"),
        ("def test_it():\n    pass\n", False, "survived"),
        ("def test_it():\n    no_such_name\n", False, "does not count: NameError"),
        ("def test_it():\n    import no_such_module\n", False, "does not count: ModuleNotFoundError"),
        ("import no_such_module\ndef test_it():\n    pass\n", False, "no verdict: "),
        ("def test_it(:\n    pass\n", False, "no verdict: "),
        ("import time\ndef test_it():\n    time.sleep(60)\n", False, "did not end within 2 s"),
    ],
)
def test_what_is_killed_what_survives_and_what_does_not_count(test, killed, outcome, tmp_path):
    (tmp_path / "parity_tests").mkdir()
    (tmp_path / "parity_tests" / "test_it.py").write_text(test)
    verdict = judge(tmp_path, ["parity_tests/test_it.py"], 2 if "sleep" in test else 60)
    assert verdict.killed == killed and verdict.outcome.startswith(outcome), verdict


def test_the_copy_holds_what_the_judges_run(tmp_path):
    root = copy_of_the_project(tmp_path)
    for mutant in MUTANTS:
        for name in mutant.judges:
            files = [argument for argument in judged_by(name, mutant.stem) if argument.endswith(".py")]
            assert files and all((root / file).is_file() for file in files)


def test_edits_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "file.py"
    path.write_text("a = 1\nb = 1\n")
    with pytest.raises(ValueError, match="2 times, not once"):
        Edit("file.py", "= 1", "= 2").apply(tmp_path)
    with pytest.raises(SyntaxError):
        Edit("file.py", "a = 1", "a = (").apply(tmp_path)
    assert path.read_text() == "a = 1\nb = 1\n"


def test_nothing_to_judge_is_no_success():
    done = subprocess.run([sys.executable, "-m", "prm.parity_tests.mutants", "--only", "no such mutant"],
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "nothing to judge\n")
