"""The command `prm`, run in the tests' own process: what a new process would give, without its start of seconds."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from prm.eval import cli


def run(*arguments, cwd=".") -> subprocess.CompletedProcess:
    """`prm` with these arguments in this folder: exit code, standard output and standard error."""
    words = [str(word) for word in arguments]
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["prm", *words]), _in(cwd), mock.patch.dict(os.environ, COLUMNS="200"):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
    return subprocess.CompletedProcess(["prm", *words], code, out.getvalue(), err.getvalue())


def done(*arguments, cwd=".") -> str:
    """The standard output of a run that must succeed."""
    result = run(*arguments, cwd=cwd)
    assert result.returncode == 0, result
    return result.stdout


def error(*arguments, cwd=".") -> str:
    """The one line of a run that must fail as on bad input: after "prm: error: ", the last of standard error."""
    result = run(*arguments, cwd=cwd)
    assert result.returncode == 2 and result.stderr.rstrip().count("prm: error: ") == 1, result
    return result.stderr.splitlines()[-1].removeprefix("prm: error: ")


class Here:
    """In place of `subprocess.Popen` where `prm` is started: the command has been run here once this is made."""

    def __init__(self, command, *, stdout, **_):
        result = run(*command[command.index("prm.eval.cli") + 1 :])
        stdout.write((result.stdout + result.stderr).encode())
        self.returncode = result.returncode

    def poll(self) -> int:
        return self.returncode


@contextlib.contextmanager
def _in(folder) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
