"""Tables of image-level labels as people have them: read whole, or refused with what would be understood.

    file,labels            a column of pictures, one of labels; optional: difficult
    beach.jpg,person;dog   labels with `;`, else `,`, else spaces between; a name that holds one of these ends in `;`

    image;cat;dog          or a column a class, 1 where it is in the picture and 0 where not
    beach.jpg;0;1

Between columns `,`, `;` or tab. The column of pictures may be called as in FILES, that of labels as in LABELS, in any
case. UTF-8, UTF-16 with its mark, or Windows-1252. Backslashes in paths are those of Windows.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from prm import InputError
from prm.files import reason

FILES = ("file", "filename", "file_name", "image", "image_name", "path", "picture")
LABELS = ("labels", "label", "tags", "classes", "class", "categories", "category")
DIFFICULT = "difficult"
UNDERSTOOD = (
    f"expected a column for the picture ({', '.join(FILES)}) and one of labels ({', '.join(LABELS)}), "
    "or a column a class with 0 and 1"
)
PRESENT = {"1": True, "1.0": True, "0": False, "0.0": False}


class Row(NamedTuple):
    """One picture: where it stands, its file, names of its labels, names of which nobody says."""

    where: str
    file: str
    labels: list[str]
    difficult: list[str]


def read_label_table(path: Path, report: Callable[[InputError], object]) -> tuple[list[Row], list[str] | None]:
    """The rows of a table, less those given to `report`; its classes in order where it has a column each, else None.

    Raises InputError for a file that cannot be read, a header that is not understood and a table without pictures.
    """
    lines = _lines(path)
    if not lines:
        raise InputError(f"{path}: is empty; write the header 'file,labels' and one line a picture")
    number, header = lines[0]
    classes = _classes(header, lines[1:], f"{path} line {number}")
    if len(lines) == 1:
        raise InputError(f"{path}: lists no picture; add one line a picture below the header")
    names = [name.casefold() for name in header]
    at = next(k for k, name in enumerate(names) if name in FILES)
    rows, seen = [], {}
    for number, fields in lines[1:]:
        where = f"{path} line {number}"
        # A line without the last separator is a picture without labels (or without difficult classes).
        if len(fields) > len(header) or not fields[at : at + 1] or not fields[at]:
            report(InputError(f"{where}: expected {','.join(header)!r}, found {','.join(fields)!r}"))
            continue
        fields = [*fields, *[""] * (len(header) - len(fields))]
        file = str(PurePosixPath(fields[at].replace("\\", "/")))
        if file in seen:
            report(InputError(f"{where}: {file} is already listed on line {seen[file]}; keep one of them"))
            continue
        seen[file] = number
        if classes is None:
            by_name = dict(zip(names, fields, strict=True))
            labels = _names(next(by_name[name] for name in LABELS if name in by_name))
            rows.append(Row(where, file, labels, _names(by_name.get(DIFFICULT, ""))))
        else:
            labels = [name for k, name in enumerate(header) if k != at and PRESENT.get(fields[k])]
            rows.append(Row(where, file, labels, []))
    return rows, classes


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not blank."""
    text = _text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separators = [mark for mark in ("\t", ";", ",") if mark in re.sub(r'"[^"]*"', "", first)]
    if len(separators) > 1:
        both = " and ".join(map(repr, separators))
        raise InputError(f"{path}: its header {first!r} has {both}; keep one between columns")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=(separators or [","])[0])
        lines = [(reader.line_num, [field.strip() for field in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from None
    return [(number, fields) for number, fields in lines if any(fields)]


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; write one with the header 'file,labels'") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            return content.decode("utf-16")
        if b"\0" in content:
            raise InputError(f"{path}: is no text of a known encoding; save it as UTF-8")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is neither UTF-8 nor Windows-1252 ({error}); save it as UTF-8") from None


def _classes(header: list[str], rows: list[tuple[int, list[str]]], where: str) -> list[str] | None:
    """The classes of a table with a column each; None for one with a column of labels."""
    names = [name.casefold() for name in header]
    said = f"{where}: header is {','.join(header)!r}"
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"{said}: a column has no name, or another's; {UNDERSTOOD}")
    pictures = [name for name in names if name in FILES]
    if len(pictures) != 1:
        raise InputError(f"{said}; {UNDERSTOOD}")
    rest = set(names) - {*pictures, DIFFICULT}
    if len(rest) == 1 and rest <= set(LABELS):
        return None
    at = names.index(pictures[0])
    columns = [k for k in range(len(names)) if k != at]
    for number, fields in rows:
        for k in columns if len(fields) == len(header) else ():
            if fields[k] not in PRESENT:
                told = f"line {number} has {fields[k]!r} in column {header[k]}"
                raise InputError(f"{said}, and {told}; {UNDERSTOOD}")
        if len(fields) < len(header):
            raise InputError(f"{said}, but line {number} has {len(fields)} columns; give each class a 0 or 1")
    if not columns:
        raise InputError(f"{said}; {UNDERSTOOD}")
    return [header[k] for k in columns]


def _names(field: str) -> list[str]:
    """The class names in one field: separated by `;`, else by `,`, else by white space."""
    mark = next((mark for mark in (";", ",") if mark in field), r"\s+")
    return [name.strip() for name in re.split(mark, field) if name.strip()]
