"""Compare a port's answers with the golden ones: python check_answers.py DIR ANSWERS.npz [--rtol 1e-9].

Needs NumPy alone. Exit code: 0 all right, 1 an array is wrong or missing, 2 a file cannot be read (one line says why).
"""

import argparse
import json
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np

FORMAT = 1
# One expected array: its case, its key in answers.npz, and in one line what is wrong with the answer, "" if nothing.
Row = namedtuple("Row", "case key fault")


def read_arrays(path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by key. ValueError, one line, where the file is none."""
    try:
        with zipfile.ZipFile(path), np.load(path) as archive:
            return {key: np.asarray(archive[key]) for key in archive.files}
    except Exception as error:  # broken zip, npy header or data: a dozen kinds
        raise ValueError(f"{path}: not a readable npz file ({getattr(error, 'strerror', None) or error})") from error


def load_cases(folder) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The cases and the expected arrays by key. ValueError, one line, where the folder's files cannot be used."""
    path, expected = Path(folder) / "cases.json", read_arrays(Path(folder) / "answers.npz")
    try:
        data = json.loads(path.read_text("utf-8"))
        keys = {a["key"] for c in data["cases"] for a in c["answers"] if (a["compare"], c["name"], c["sentence"])}
        if data["format"] != FORMAT or keys != expected.keys():
            raise ValueError(f"format {data['format']}, where {FORMAT} is read, or not the answers of answers.npz")
        return data["cases"], expected
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: not usable ({getattr(error, 'strerror', None) or error!r})") from error


def compare(cases, expected, given, rtol=1e-9) -> list[Row]:
    """A row for every answer of every case. given: the port's arrays by key, of any dtype of numbers."""
    rows = []
    for case in cases:
        for key, how in ((answer["key"], answer["compare"]) for answer in case["answers"]):
            fault = _fault(expected[key], given.get(key), rtol if how == "close" else 0.0)
            rows.append(Row(case["name"], key, fault and f"{key}: {fault}. {case['sentence']}"))
    return rows


def _fault(want, got, rtol):
    if got is None:
        return "missing"
    if got.dtype.kind not in "biuf" or got.shape != want.shape:
        return f"dtype and shape {got.dtype} {got.shape}, expected {want.dtype} {want.shape}"
    error, allowed = np.abs(got.astype(float) - want), rtol * np.abs(want).max(initial=0)
    if (error <= allowed).all():
        return ""
    at = tuple(int(i) for i in np.unravel_index(np.nan_to_num(error, nan=np.inf).argmax(), error.shape))
    return f"at {at} got {got[at]}, expected {want[at]}, allowed error {allowed:.3g}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare a port's answers with the golden ones.")
    parser.add_argument("folder", metavar="DIR", help="holds cases.json and answers.npz")
    parser.add_argument("answers", metavar="ANSWERS.npz")
    parser.add_argument("--rtol", type=float, default=1e-9, help="share of an array's largest magnitude (%(default)s)")
    options = parser.parse_args()
    try:
        (cases, expected), given = load_cases(options.folder), read_arrays(options.answers)
    except ValueError as error:
        print("check_answers: error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    rows = compare(cases, expected, given, options.rtol)
    wrong = [row.fault for row in rows if row.fault]
    unknown = [f"unknown key: {key}" for key in sorted(given.keys() - expected.keys())]
    print(*wrong, *unknown, f"{len(rows) - len(wrong)} of {len(rows)} arrays right", sep="\n")
    sys.exit(1 if wrong else 0)
