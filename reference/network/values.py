"""A node's value from the values of its inputs, and which nodes no image changes."""

from collections.abc import Sequence

import numpy as np

from .operators import FORWARD


def constants_of(network):
    """The values of the nodes that no image changes: constants and what is computed from them alone."""
    values = {}
    for node in network.nodes:
        if node.op == "constant":
            values[node.name] = np.array(node.params["value"], np.float64)
        elif node.inputs and all(name in values for name in node.inputs):
            values[node.name] = value_of(node, values, values)
    return values


def learned_of(network, constants):
    """The constants that are parameters of the network or computed from some."""
    names: set[str] = set()
    for node in network.nodes:
        if node.name in constants and (node.params.get("learned") or names & set(node.inputs)):
            names.add(node.name)
    return names


def value_of(node, values, constants):
    """What the node computes, from the values of its inputs."""
    params = dict(node.params)
    for key in {"size", "shape"} & params.keys():
        params[key] = _sizes(params[key], values)
    return np.asarray(FORWARD[node.op](*operands_of(node, values, constants), **params), np.float64)


def operands_of(node, values, constants):
    """The node's input arrays; a constant with one axis more than the others loses that axis, the batch's."""
    ndim = max((values[name].ndim for name in node.inputs if name not in constants), default=np.inf)
    arrays = [values[name] for name in node.inputs]
    return [
        U[0] if name in constants and U.ndim == ndim + 1 and U.shape[0] == 1 else U
        for name, U in zip(node.inputs, arrays)
    ]


def _sizes(entries, values):
    if not isinstance(entries, Sequence):
        return entries
    return tuple(values[e[0]].shape[e[1]] if isinstance(e, (tuple, list)) else e for e in entries)
