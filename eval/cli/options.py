"""A command's options from the fields of settings, so that no name, default, range or meaning is typed twice."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from prm import InputError
from prm.settings import AnswerSettings, ReadSettings, SegmentationSettings, meanings

NONE = "none"
"""How a command line says None; an option that is not given at all is left out."""


def settings_options(
    where: str, settings: type, panel: str, skip: Collection[str] = (), shown: bool = False
) -> Callable[[Callable], Callable]:
    """Decorator for commands: the parameter `where` becomes an option for each field of `settings` but `skip`, and is
    handed a dict of those that were given.

    panel: the heading that --help puts them under. shown: whether --help shows the fields' defaults as the option's
    own; otherwise an option that is not given leaves what is known already, as a checkpoint's settings.
    """
    known = {f.name: f for f in fields(settings) if f.name not in skip}
    texts = meanings(settings)
    options = [_parameter(f, texts[name], panel, shown) for name, f in known.items()]

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> Any:
            values = {name: kwargs.pop(name, None) for name in known}
            given = {name: _value(known[name], value) for name, value in values.items() if value is not None}
            return command(*args, **kwargs, **{where: given})

        rest = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != where]
        at = list(signature.parameters).index(where)
        run.__signature__ = signature.replace(parameters=[*rest[:at], *options, *rest[at:]])  # type: ignore[attr-defined]
        return run

    return decorate


def usual(f: Field) -> str:
    """A field's default as a command line says it."""
    return NONE if f.default is None else str(f.default).lower()


def words(f: Field) -> tuple[str, ...]:
    """What a field takes that is neither a plain number nor a switch: names, its form, NUMBER, none."""
    names, form = f.metadata["names"], f.metadata["form"]
    if "bool" in f.type or not (names or "None" in f.type):
        return ()
    number = "NUMBER" if "float" in f.type or "int" in f.type else ""
    return (*names, *filter(None, (form, number, NONE if "None" in f.type else "")))


def _parameter(f: Field, text: str, panel: str, shown: bool) -> inspect.Parameter:
    text = text[0].upper() + text[1:]
    text += "." if shown or f.default is None else f" ({usual(f)})."
    flag, least, most = f"--{f.name.replace('_', '-')}", f.metadata["least"], f.metadata["most"]
    option: dict[str, Any] = {"help": text, "rich_help_panel": panel}
    if "bool" in f.type:
        kind, decl = bool, (f"{flag}/--no-{flag[2:]}",)
    elif words(f):
        kind, decl = str, (flag,)
        option["metavar"] = "|".join(words(f))
    else:
        kind, decl = int if f.type == "int" else float, (flag,)
        option |= {"min": least, "max": most}
    default = f.default if shown else None
    annotation = Annotated[kind if shown and default is not None else kind | None, typer.Option(*decl, **option)]
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _value(f: Field, given: Any) -> Any:
    """An option's value as the field wants it; InputError for one that it cannot be."""
    flag = f"--{f.name.replace('_', '-')}"
    if isinstance(given, float) and not math.isfinite(given):
        raise InputError(f"{flag} is {given}; give a number")
    if not isinstance(given, str) or f.type in ("str", "str | None") or given in f.metadata["names"]:
        if f.metadata["names"] and given not in f.metadata["names"]:
            raise InputError(f"{flag} {given}: known are {', '.join(f.metadata['names'])}")
        return None if given == NONE and "None" in f.type else given
    if given.lower() == NONE and "None" in f.type:
        return None
    try:
        value = int(given) if f.type.startswith("int") else float(given)
    except ValueError:
        known = ", ".join((*f.metadata["names"], "a number", *((NONE,) if "None" in f.type else ())))
        raise InputError(f"{flag} {given!r}: give {known}") from None
    if not math.isfinite(value):
        raise InputError(f"{flag} is {given}; give a number")
    least, most = f.metadata["least"], f.metadata["most"]
    if (least is not None and value < least) or (most is not None and value > most):
        raise InputError(f"{flag} {given}: give {least} or more" + ("" if most is None else f", at most {most}"))
    return value


segmentation_options = settings_options(
    "segmentation", SegmentationSettings, "Algorithm 1: replaces what the checkpoint has; in brackets prm's own default"
)
"""Decorator of the commands that segment: `segmentation` is a dict of the settings given."""

answer_options = settings_options(
    "answers", AnswerSettings, "Students: what is taken of their answers", skip=("min_score",)
)
"""Decorator of the commands that take students: `answers` is a dict of the settings given; --min-score is shared."""

reading_options = settings_options("reading", ReadSettings, "What is taken of a picture file, TIFF above all")
"""Decorator of the commands that read pictures by name: `reading` is a dict of the settings given."""
