"""Cases and the oracle's answers written as files."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from prm.files import atomic_write

from .. import check_answers
from .calls import cases
from .functions import FUNCTIONS, ORACLE, lookup
from .network import NETWORKS, with_network

REFERENCE = Path(check_answers.__file__).parent  # golden.md and check_answers.py lie there


def write(folder) -> int:
    """Write cases.json, inputs.npz, answers.npz, README.md and check_answers.py into `folder` -> how many cases.

    Two runs on one machine give equal bytes. Every file is written whole or not at all. Raises InputError where the
    folder cannot be written.
    """
    records, inputs, answers = [], {}, {}
    keys: dict[int, str] = {}  # of arrays that are stored already: cases may share one

    def store(key, value):
        key = keys.setdefault(id(value), key)
        inputs[key] = value
        return key

    owners = [f'"{name}": {json.dumps(_nodes_out(name, one.nodes, store))}' for name, one in NETWORKS.items()]
    for case in cases():
        equation, run = FUNCTIONS[case.function]
        arrays, params = {}, {}
        for argument, value in case.arguments.items():
            key = f"{case.name}.{argument}"
            if isinstance(value, np.ndarray):
                arrays[argument] = store(key, value)
            elif isinstance(value, list) and isinstance(value[0], np.ndarray):
                arrays[argument] = [store(f"{key}_{i}", one) for i, one in enumerate(value)]
            else:
                params[argument] = value
        found, arguments = [], with_network(case.arguments, NETWORKS)
        for name, value in run(lambda dotted: lookup(ORACLE, dotted), case.function, arguments).items():
            key, value = f"{case.name}.{name}", _stored(value)
            how = "close" if value.dtype.kind == "f" else "exact"  # what counts, indexes or decides has no tolerance
            found.append({"name": name, "key": key, "shape": value.shape, "dtype": str(value.dtype), "compare": how})
            answers[key] = value
        records.append({
            "name": case.name, "function": case.function, "equation": equation, "sentence": case.sentence,
            "arrays": arrays, "params": params, "answers": found,
        })  # fmt: skip
    networks, lines = ",\n".join(owners), ",\n".join(json.dumps(record) for record in records)
    index = f'{{"format": {check_answers.FORMAT}, "networks": {{\n{networks}\n}}, "cases": [\n{lines}\n]}}\n'
    content = {
        "README.md": (REFERENCE / "golden.md").read_bytes(),
        "check_answers.py": (REFERENCE / "check_answers.py").read_bytes(),
        "inputs.npz": _npz(inputs),
        "answers.npz": _npz(answers),
        "cases.json": index.encode(),
    }
    for name, data in content.items():
        atomic_write(Path(folder) / name, data)
    return len(records)


def _stored(value):
    """float64, int64, or uint8 for bool: little endian, C order."""
    value = np.asarray(value)
    dtype = "|u1" if value.dtype in (bool, np.uint8) else "<i8" if value.dtype.kind in "iu" else "<f8"
    return np.array(value, dtype, order="C")


def _npz(arrays):
    """An npz file as bytes: stored, in order, with fixed dates, which NumPy's own does not promise."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for key, value in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, _stored(value), version=(1, 0))
            entry = zipfile.ZipInfo(f"{key}.npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data.getvalue())
    return file.getvalue()


def _nodes_out(owner, nodes, store):
    """Nodes as JSON; an array becomes {"array": key}."""
    return [
        {"name": node.name, "op": node.op, "inputs": node.inputs, "params": {
            name: {"array": store(f"{owner}.{node.name}.{name}", value)} if isinstance(value, np.ndarray) else value
            for name, value in node.params.items()
        }} for node in nodes
    ]  # fmt: skip
