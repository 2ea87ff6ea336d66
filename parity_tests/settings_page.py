"""docs/settings.md from the fields of settings: `python -m prm.parity_tests.settings_page > docs/settings.md`."""

from __future__ import annotations

from dataclasses import Field, fields

from prm.eval.cli.options import usual, words
from prm.settings import (
    AnswerSettings,
    LabelSettings,
    ReadSettings,
    SegmentationSettings,
    StudentSettings,
    TrainingSettings,
    meanings,
)


def page() -> str:
    """Every setting with its default, what it takes, and its meaning."""
    return PAGE.format(segmentation=_table(SegmentationSettings), training=_table(TrainingSettings),
                       reading=_table(ReadSettings), labels=_table(LabelSettings), student=_table(StudentSettings),
                       answers=_table(AnswerSettings))  # fmt: skip


def _table(settings: type) -> str:
    texts = meanings(settings)
    rows = [f"| `{f.name}` | {usual(f)} | {_values(f)} | {texts[f.name]} |" for f in fields(settings)]
    return "\n".join(["| setting | default | takes | meaning |", "|---|---|---|---|", *rows])


def _values(f: Field) -> str:
    if "bool" in f.type:
        return "true, false"
    least, most = f.metadata["least"], f.metadata["most"]
    number = "whole number" if f.type.startswith("int") else "number"
    number += "" if least is None else f" >= {least}" if most is None else f", {least} to {most}"
    return ", ".join(number if word == "NUMBER" else word.replace("|", ", ") for word in words(f) or ("NUMBER",))


PAGE = """# Settings

Made from `prm.settings` by `python -m prm.parity_tests.settings_page > docs/settings.md`; a test compares. On the
command line `peak_threshold` is `--peak-threshold`, and a switch is `--flip` or `--no-flip`. A setting has the same
name and default in the oracle, the fast path, the commands and a checkpoint's page.

## Algorithm 1

Of `prm segment`, `prm eval`, `prm eval tables` and `prm eval report`. A checkpoint carries its own, as `prm train` and
`prm tune` left them; an option replaces one of them, and where neither says anything the default holds. In Python:
`prm.settings.SegmentationSettings`.

{segmentation}

## Training

Of `prm train` and, behind `--`, of `prm eval train`. In Python: `prm.settings.TrainingSettings`.

{training}

## Pseudo labels

Of `prm label`. In Python: `prm.settings.LabelSettings`.

{labels}

## Students

Of `prm student train`, whose presets replace some of the defaults. In Python: `prm.settings.StudentSettings`.

{student}

Of `prm segment` and `prm eval` with a student. In Python: `prm.settings.AnswerSettings`.

{answers}

## Picture files

Of `prm segment`: a TIFF of channels, slices, frames or pages. In Python: `prm.settings.ReadSettings`.

{reading}
"""

if __name__ == "__main__":
    print(page(), end="")
