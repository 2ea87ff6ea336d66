"""The command `prm`: data, training, segmentation, evaluation, parity. Every subcommand has its own --help."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import prm
from prm import InputError
from prm.files import reason

from . import bench, data, judging, parity, proposals
from .labeling import label
from .segmenting import segment
from .students import app as student_app
from .training import train, train_series
from .tuning import tune

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Peak Response Mapping: instance masks from a classifier that was trained with image-level labels only.",
)  # fmt: skip


def main() -> None:
    """Run the command line: exit code 0 when the work was done, 2 on bad input with one line of what and where."""
    try:
        app()
    except InputError as error:
        _fail(str(error))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {reason(error)}")


def _fail(message: str) -> None:
    print(f"prm: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(prm.__version__)
        raise typer.Exit


app.command()(train)
app.command()(segment)
judging.app.command("train", context_settings={"allow_extra_args": True})(train_series)
judging.app.command("proposals")(proposals.proposals_command)
app.add_typer(judging.app, name="eval")
app.command()(tune)
app.command()(label)
app.add_typer(student_app, name="student")
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.add_typer(parity.app, name="parity")
