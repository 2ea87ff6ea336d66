"""An implementation held against a folder of golden vectors."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prm import InputError
from prm.files import reason

from .. import check_answers
from ..network import as_network
from .functions import FUNCTIONS, ORACLE, Absent, lookup
from .network import with_network


class Result(NamedTuple):
    """One array of one case: state is "right", "wrong" or "absent" (there is no such function); text says what it is.

    key: where the expected array lies in answers.npz. text: one line, empty where the state is "right".
    """

    case: str
    key: str
    state: str
    text: str


def check(folder, implementation=None, rtol=1e-9) -> list[Result]:
    """Recompute every case of the folder by `implementation` and compare with the answers there.

    implementation: an object with the oracle's layout, `.peak_stimulation.forward(...)` and so on (default: the
    oracle). It is handed NumPy arrays and answers what NumPy can take for arrays. A function that it lacks, or that
    raises NotImplementedError, is "absent"; one that raises anything else is "wrong". rtol: share of the largest
    expected magnitude of an array, for what is not compared exactly. Raises InputError where the folder cannot be read.
    """
    implementation = ORACLE if implementation is None else implementation
    try:
        records, expected = check_answers.load_cases(folder)
        inputs = check_answers.read_arrays(Path(folder) / "inputs.npz")
    except ValueError as error:
        raise InputError(reason(error)) from error
    try:
        networks = _networks(json.loads((Path(folder) / "cases.json").read_text("utf-8")), inputs)
        calls = [(record, _arguments(record, inputs, networks)) for record in records]
    except (LookupError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise InputError(f"{folder}: cases.json and inputs.npz do not fit each other ({error!r})") from error
    results = []
    for record, arguments in calls:
        results += _check_case(record, arguments, expected, implementation, rtol)
    return results


def _check_case(record, arguments, expected, implementation, rtol):
    name, function = record["name"], record["function"]
    keys = [answer["key"] for answer in record["answers"]]
    try:
        answers = FUNCTIONS[function][1](lambda dotted: lookup(implementation, dotted), function, arguments)
        given = {f"{name}.{key}": np.asarray(value) for key, value in answers.items() if value is not None}
    except (Absent, NotImplementedError) as error:
        return [Result(name, key, "absent", f"{function}: {reason(error)}") for key in keys]
    except (Exception, SystemExit) as error:  # whatever a port raises: the other cases still count
        text = f"{function} raised {type(error).__name__}: {reason(error)}. {record['sentence']}"
        return [Result(name, key, "wrong", text) for key in keys]
    # What only the oracle's results hold beside the answer may be left out.
    absent = {f"{name}.{key}" for key in ("G", "P", "arrived") if answers.get(key, 0) is None}
    rows = check_answers.compare([record], expected, given, rtol)
    states = ["absent" if row.key in absent else "wrong" if row.fault else "right" for row in rows]
    return [Result(name, row.key, state, row.fault) for row, state in zip(rows, states)]


def _networks(content, inputs):
    networks = {}
    for name, nodes in content["networks"].items():
        for node in nodes:
            node["params"] = {
                key: inputs[value["array"]] if isinstance(value, dict) else _tuples(value)
                for key, value in node["params"].items()
            }
        networks[name] = as_network(nodes)
    return networks


def _arguments(record, inputs, networks):
    """The call's arguments from the files: uint8 arrays are masks, JSON lists tuples."""
    def read(key):
        value = inputs[key]  # a copy: cases share arrays, and an implementation may write on what it is given
        return value.astype(bool) if value.dtype == np.uint8 else value.copy()

    arguments = {name: _tuples(value) for name, value in record["params"].items()}
    for name, key in record["arrays"].items():
        arguments[name] = [read(one) for one in key] if isinstance(key, list) else read(key)
    return with_network(arguments, networks)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
