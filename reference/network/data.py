"""What a network is as plain data, and the check that something is one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .operators import FORWARD


@dataclass(frozen=True)
class Node:
    """One operation: its name, the operator, the names of its inputs, its parameters (NumPy arrays and numbers)."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    params: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """Nodes in order and the name of the one that is the output."""

    nodes: tuple[Node, ...]
    output: str


def as_network(network) -> Network:
    """A Network from one, or from a sequence of nodes or of dicts with a node's fields. Checks names and rules.

    ValueError: names that repeat or come late, or not exactly one input. NotImplementedError: an unknown operator.
    """
    if not isinstance(network, Network):
        nodes = tuple(node if isinstance(node, Node) else Node(**node) for node in network)
        network = Network(nodes, nodes[-1].name)
    seen: set[str] = set()
    for node in network.nodes:
        if node.name in seen or not set(node.inputs) <= seen:
            raise ValueError(f"node {node.name!r} repeats a name or comes before one of its inputs {node.inputs}")
        seen.add(node.name)
        if node.op not in FORWARD and node.op not in ("input", "constant"):
            raise NotImplementedError(f"operator {node.op!r} of node {node.name!r} has no rule")
    if [node.op for node in network.nodes].count("input") != 1 or network.output not in seen:
        raise ValueError("a network has exactly one input node and an output that is one of its nodes")
    return network
