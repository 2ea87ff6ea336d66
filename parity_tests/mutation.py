"""One mistake put into a copy of the project, and the tests of the copy that must notice it; see `mutants`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("reference", "accelerated", "parity_tests", "eval")
FILES = ("__init__.py", "files.py", "settings.py", "pyproject.toml")
# A mutant that dies of these says nothing about the tests.
BROKEN = re.compile(
    r"\b(ImportError|ModuleNotFoundError|SyntaxError|NameError|UnboundLocalError|AttributeError|it raised \w+)\b"
)


@dataclass(frozen=True)
class Edit:
    """`old` is replaced by `new`; it must occur in the file exactly once."""

    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {self.old!r} {text.count(self.old)} times, not once")
        changed = text.replace(self.old, self.new)
        compile(changed, self.file, "exec")
        path.write_text(changed)


@dataclass(frozen=True)
class Mutant:
    """A mistake: its edits, and the stem whose tests must see it: "peak_stimulation", "peak_backprop", "retrieval", the
    same with "kernels_" before, "windows" for truncation, which the oracle does not have, or one of `EVALUATION`.

    first: the function whose comparison, or in eval/ the test, is tried before the stem's others, to save time.
    """

    name: str
    stem: str
    edits: tuple[Edit, ...]
    first: str = ""

    @property
    def kind(self) -> str:
        sides = {edit.file.split("/")[0] for edit in self.edits}
        if self.stem.startswith("kernels_"):
            return "kernels"
        if sides == {"eval"}:
            return "evaluation"
        return "both sides" if len(sides) == 2 else "oracle" if "reference" in sides else "fast path"

    @property
    def judges(self) -> tuple[str, ...]:
        """Which tests must kill it."""
        judges = {"oracle": ("parity", "hand"), "both sides": ("hand",), "evaluation": ("tests",)}
        return judges.get(self.kind, ("parity",))


EVALUATION = {
    "metrics": ("metrics", "metrics_tables"),
    "datasets": ("datasets", "datasets_check", "datasets_coco", "datasets_voc", "coco_masks"),
    "judging": ("boxes", "judging", "watershed"),
    "tuning": ("tuning",),
}
"""Which tests judge what is wrong in eval/."""


def judged_by(judge: str, stem: str, first: str = "") -> list[str]:
    """Arguments of pytest: the comparison of the stem's functions, or of one, or the oracle's hand-worked tests; of
    eval/ the stem's tests, or one."""
    if judge == "tests":
        return [*(f"parity_tests/test_{name}.py" for name in EVALUATION[stem]), *(("-k", first) if first else ())]
    if stem == "windows" or stem.startswith("kernels_"):
        return [f"parity_tests/test_{stem}.py"]
    if judge == "parity":
        names = first or {"peak_backprop": "(peak_backprop or network)"}.get(stem, stem)
        chosen = f"test_the_fast_path_agrees_with_the_oracle and {names} and (float64 or float16)"
        return ["parity_tests/test_conformance.py", "-k", chosen, "--examples", "80", "--networks", "60"]
    files = {"peak_backprop": ("peak_backprop", "network")}.get(stem, (stem,))
    return [f"parity_tests/test_reference_{name}.py" for name in files]


@dataclass(frozen=True)
class Verdict:
    """What one judge's tests said of a mutant: the test that killed it, "survived", or why it does not count."""

    outcome: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.outcome.startswith("parity_tests/")


def copy_of_the_project(target: Path) -> Path:
    """The package's folders at target/prm, caches with them, so that only what is edited is compiled again; without the
    committed results, which no judge reads."""
    root = target / "prm"
    root.mkdir(parents=True)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("results"))
    for name in FILES:
        shutil.copy2(ROOT / name, root / name)
    return root


def judge(root: Path, arguments: list[str], limit: float) -> Verdict:
    """Run pytest in the copy until the first failure."""
    environment = {**os.environ, "PYTHONPATH": str(root.parent), "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    if "test_kernels_" in arguments[0]:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--tb=short", *arguments]
    begun = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return Verdict(f"did not end within {limit:.0f} s", limit)
    seconds = time.perf_counter() - begun
    killers = re.findall(r"^FAILED (\S+)", done.stdout, re.M)
    if done.returncode == 0:
        return Verdict("survived", seconds)
    if done.returncode != 1 or not killers:
        return Verdict(f"no verdict: {(done.stdout + done.stderr).strip().splitlines()[-1]}", seconds)
    if broken := BROKEN.search(done.stdout):
        return Verdict(f"does not count: {broken[0]}", seconds)
    return Verdict(killers[0], seconds)


def try_mutant(mutant: Mutant, limit: float) -> dict[str, Verdict]:
    """The verdicts of the judges that a mutant must not survive, each on its own copy of the project."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = copy_of_the_project(Path(folder))
        for edit in mutant.edits:
            edit.apply(root)
        verdicts = {}
        for name in mutant.judges:
            if name != "hand" and mutant.first:
                verdicts[name] = judge(root, judged_by(name, mutant.stem, mutant.first), limit)
            if name not in verdicts or not verdicts[name].killed:
                verdicts[name] = judge(root, judged_by(name, mutant.stem), limit)
        return verdicts


def green_before(mutants: list[Mutant], limit: float) -> bool:
    """Whether all their judges' tests pass on an unmutated copy, imported from there; prints those that do not."""
    green = True
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = copy_of_the_project(Path(folder))
        code = "import prm, prm.parity_tests.operators as operators; print(prm.__file__, operators.__file__)"
        environment = {**os.environ, "PYTHONPATH": folder}
        found = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
        if any(not name.startswith(folder) for name in found.stdout.split()) or not found.stdout:
            print(f"the copy is not what Python imports: {found.stdout}{found.stderr}")
            return False
        for stem, name in sorted({(mutant.stem, name) for mutant in mutants for name in mutant.judges}):
            verdict = judge(root, judged_by(name, stem), 4 * limit)
            print(f"unmutated, {stem}, {name}: {'green' if verdict.outcome == 'survived' else verdict.outcome}"
                  f" in {verdict.seconds:.0f} s", flush=True)  # fmt: skip
            green &= verdict.outcome == "survived"
    return green
