"""The documents as tests read them: their command lines as a shell sees them, and the names that they use."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from prm.eval.cli import app, training

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(page for room in (".", "docs", "reference", "parity_tests") for page in (ROOT / room).glob("*.md"))
SCRIPTS = sorted(ROOT.glob("eval/results/*.sh"))
STUBS = ("prm", "make", "python", "python3", "pip", "pytest", "ruff", "torchrun", "rm", "cp", ".venv/bin/pip",
         ".venv/bin/prm")  # fmt: skip
"""Commands that are written down instead of run; everything else in a document's shell block is run."""

# ---- pages


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page that name this language; those that name none are a shell's."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    return [block for named, block in found if named == language]


def spans(page: Path) -> list[str]:
    """What stands between backticks outside of fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, but for the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    return [target for target in found if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# ---- command lines


def commands(script: str, folder: Path, *arguments: str) -> list[list[str]]:
    """The command lines that bash comes to in a script, run in a folder where STUBS and SCRIPTS do nothing.

    Raises AssertionError where bash or a command that is none of them fails.
    """
    record = folder / "record"
    record.write_text("")
    for name in (*STUBS, *(str(path.relative_to(ROOT)) for path in SCRIPTS)):
        stub = folder / name if "/" in name else folder / "bin" / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(f"#!/bin/bash\nprintf '%s\\037' {name} \"$@\" >> {shlex.quote(str(record))}\n"
                        f"printf '\\036' >> {shlex.quote(str(record))}\n")  # fmt: skip
        stub.chmod(0o755)
    (folder / "docs").mkdir(exist_ok=True)
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    done = subprocess.run(
        ["bash", "-euc", script, "bash", *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}\n{script}"
    return [line.split("\037")[:-1] for line in record.read_text().split("\036")[:-1]]


def check(words: Sequence[str], whole: bool = True) -> None:
    """Raises AssertionError unless a command line could be run: its command, options, targets and files are there.

    whole: whether nothing that is required may be missing, as it may where a sentence names a command. "..." stands
    for words that are left out, or for a value.
    """
    name, *rest = words
    if name.endswith("prm"):
        assert parses(rest, whole), " ".join(words)
    elif name == "torchrun" or (name.startswith("python") and "-m" in rest):
        module = rest[rest.index("-m") + 1]
        arguments = rest[rest.index("-m") + 2 :]
        if module == "prm.eval.cli":
            assert parses(arguments, whole), " ".join(words)
        elif module == "pytest":
            check(["pytest", *arguments])
        else:
            assert module == "venv" or importlib.util.find_spec(module), " ".join(words)
    elif name == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        assert targets.issuperset(rest), " ".join(words)
    elif name.endswith("pip"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\.\[(\w+)\]", " ".join(rest))) <= set(extras), " ".join(words)
    elif name == "pytest":
        known = set(re.findall(r'"(--[\w-]+)"', (ROOT / "parity_tests" / "conftest.py").read_text()))
        assert known.issuperset(word for word in rest if word.startswith("--")), " ".join(words)
        assert all((ROOT / word).exists() for word in rest if word.startswith("parity_tests")), " ".join(words)


@functools.cache
def root():
    """The command `prm` as typer makes it."""
    return typer.main.get_command(app)


def parses(arguments: Sequence[str], whole: bool = True) -> bool:
    """Whether the command `prm` takes these arguments; nothing is run."""
    without = [word for word in arguments if word != "..."]
    return _parses([*arguments], whole) or _parses(without, whole)


def _parses(words: list[str], whole: bool) -> bool:
    command, names = root(), ["prm"]
    while words and words[0] in getattr(command, "commands", {}):
        names.append(words[0])
        command = command.commands[words.pop(0)]
    if not words and not whole:  # a sentence may name a command, or a group of them, alone
        return True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            context = command.make_context(" ".join(names), words)
            if names == ["prm", "eval", "train"]:  # what follows -- are options of prm train
                training.asked(["train", "--data", "x", "--out", "y", *context.args])
            elif hasattr(command, "commands"):  # what is left would be a command's name
                return not [*context.args, *getattr(context, "_protected_args", [])]
    except typer.Exit:
        return True
    except training.USAGE_ERROR as error:
        return not whole and type(error).__name__ == "MissingParameter"
    except ValueError:  # InputError of what follows --
        return False
    return True


def options() -> set[str]:
    """Every option of every command of `prm`."""

    def of(command) -> Iterator[str]:
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        for inner in getattr(command, "commands", {}).values():
            yield from of(inner)

    return {"--help", *of(root())}


# ---- names


def resolves(name: str) -> bool:
    """Whether a dotted name, from `prm` on, is a module or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
