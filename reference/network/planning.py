"""Which nodes the walker visits, rewritten for it, and what has no rule."""

from dataclasses import replace

import numpy as np

from .. import peak_backprop as eq
from .data import Node, as_network
from .operators import ACTIVATIONS, GATES, NORMS, SHAPES, UNCHANGED
from .rules import RULES
from .values import constants_of, learned_of


def plan(network, activations=None) -> list[Node]:
    """The nodes that the walker can visit, in order, rewritten for it. Refuses what has no rule: operator and node.

    Zero pads are merged into the convolution or average pool after them, batch norms hung on their convolution, and
    every multiplication knows which operand P goes to (where only shapes tell, when `activations` are given).
    """
    network = as_network(network)
    constants = constants_of(network)
    nodes = _live({node.name: node for node in network.nodes}, network.output, lambda node: node.inputs)
    nodes = _fold_batch_norms(nodes, network.output)
    nodes = {node.name: _merge_zero_padding(node, nodes) for node in nodes.values()}
    learned = learned_of(network, constants)
    nodes = {node.name: _choose_takers(node, nodes, constants, learned, activations) for node in nodes.values()}
    visited = _live(nodes, network.output, lambda node: _takes_mass(node, constants))
    for node in visited.values():
        _check_rule(node)
    if activations is not None and "input" not in [node.op for node in visited.values()]:
        raise ValueError(f"no walk leads from the output {network.output!r} to the image")
    return list(visited.values())


def _live(nodes, output, inputs_of):
    """The nodes that `output` is reached from, going along inputs_of(node), in the network's order."""
    reached = {output}
    for node in reversed(nodes.values()):
        if node.name in reached:
            reached.update(inputs_of(node))
    return {name: node for name, node in nodes.items() if name in reached}


def _takes_mass(node, constants):
    if "taker" in node.params:
        taker = node.params["taker"]
        return () if taker is None else (node.inputs[taker],)
    return tuple(name for name in node.inputs if name not in constants)


def _check_rule(node):
    where = f"operator {node.op!r} of node {node.name!r}"
    if node.op in ("zero_pad", "pad") and min(eq.sides(node.params["padding"])) < 0:
        raise NotImplementedError(f"{where}: negative padding has no rule")
    if node.op == "power" and node.params["exponent"] <= 0:
        raise NotImplementedError(f"{where}: only powers above 0 have a rule")
    if node.op not in RULES and node.op != "input":
        raise NotImplementedError(f"{where} has no rule for the walk back")
    if node.op == "interpolate" and node.params.get("mode", "nearest") not in ("bilinear", "nearest", "nearest-exact"):
        raise NotImplementedError(f"{where}: mode {node.params['mode']!r} has no rule, its weights may be negative")
    if node.op == "avg_pool2d" and (node.params.get("divisor_override") or 1) < 0:
        raise NotImplementedError(f"{where}: a negative divisor has no rule")


def _fold_batch_norms(nodes, output):
    """Hangs a batch norm's parameters on the convolution that it alone consumes (identity, dropout may lie between)."""
    consumers = [name for node in nodes.values() for name in node.inputs] + [output]
    nodes = dict(nodes)
    for node in list(nodes.values()):
        if node.op != "batch_norm":
            continue
        source = nodes[node.inputs[0]]
        while source.op in UNCHANGED and consumers.count(source.name) == 1:
            source = nodes[source.inputs[0]]
        if source.op == "conv2d" and consumers.count(source.name) == 1:
            nodes[source.name] = replace(source, params={**source.params, "fold": node.params})
    return nodes


def _merge_zero_padding(node, nodes):
    """A convolution or average pool after zero pads reads what the pads read, their widths added to its padding."""
    if node.op not in ("conv2d", "avg_pool2d"):
        return node
    padding = np.array(eq.sides(node.params.get("padding", 0)))
    name, merged = node.inputs[0], node
    while nodes[name].op in ("zero_pad", *UNCHANGED):
        source = nodes[name]
        name = source.inputs[0]
        if source.op == "zero_pad":
            widths = eq.sides(source.params["padding"])
            if min(widths) < 0:
                raise NotImplementedError(f"operator 'zero_pad' of node {source.name!r}: negative padding has no rule")
            padding = padding + widths
            params = {**node.params, "padding": tuple(int(side) for side in padding)}
            merged = replace(node, inputs=(name,), params=params)
    return merged


def _choose_takers(node, nodes, constants, learned, activations):
    """The node with what its rule must know of its operands: which are constants, or which one takes P."""
    if node.name in constants:
        return node
    if node.op == "add":
        constant = tuple(i for i, name in enumerate(node.inputs) if name in constants)
        return replace(node, params={**node.params, "constant": constant})
    if node.op in ("multiply", "divide", "subtract"):
        return replace(node, params={**node.params, "taker": _taker(node, nodes, constants, learned, activations)})
    return node


def _taker(node, nodes, constants, learned, activations):
    """Which operand of x * y, x / y, x - y takes P: 0, 1, or None where only shapes tell and none are known yet."""
    where = f"operator {node.op!r} of node {node.name!r}"
    is_constant = [name in constants for name in node.inputs]
    if node.op in ("subtract", "divide") and not any(is_constant):
        return _written_out(where, node, nodes, constants, activations)
    if node.op in ("subtract", "divide") and is_constant != [False, True]:
        raise NotImplementedError(f"{where} has a rule only with a constant as its second operand")
    if any(is_constant):
        taker = is_constant.index(False)
        other = node.inputs[1 - taker]
        either_sign = node.op == "subtract" or (node.op == "multiply" and other in learned)
        if not either_sign and not (constants[other] > 0).all():
            raise NotImplementedError(f"{where} has a rule only for constants that are positive everywhere")
        return taker
    is_gate = [_behind_shapes(name, nodes).op in GATES for name in node.inputs]
    if sum(is_gate) == 1:
        return is_gate.index(False)
    for x, y in ((0, 1), (1, 0)):
        if _is_function_of(node.inputs[y], node.inputs[x], nodes, constants):
            return x
    if activations is None:
        return None
    full = [activations[name].shape == activations[node.name].shape for name in node.inputs]
    if sum(full) == 1:
        return full.index(True)
    is_activated = [_behind_shapes(name, nodes).op in ACTIVATIONS for name in node.inputs]
    if sum(full) != 2 or sum(is_activated) != 1:
        raise NotImplementedError(f"{where}: two full-size operands and neither is a gate")
    return is_activated.index(False)  # a gated linear unit


def _written_out(where, node, nodes, constants, activations):
    """Operand 0 takes P in the parts of a norm written out: x - mean(x), a mean of x - x, and x / deviation."""
    x, y = node.inputs
    if node.op == "subtract":
        if not (_is_mean_of(x, y, nodes) or _is_mean_of(y, x, nodes)):
            raise NotImplementedError(f"{where}: a difference has a rule only where one operand is a mean of the other")
        return 0
    while nodes[y].op not in REDUCTIONS:
        source = _elementwise_source(y, nodes, constants, {**UNCHANGED, **ACTIVATIONS})
        if source is None:
            raise NotImplementedError(f"{where}: the divisor is no deviation (a root or norm, averaged over axes)")
        y = source
    if activations is not None and not (activations[node.inputs[1]] > 0).all():
        raise NotImplementedError(f"{where}: the divisor is not positive everywhere")
    return 0


REDUCTIONS = ("mean", "norm")
MEANS = ("mean", "avg_pool2d", "adaptive_avg_pool2d")


def _is_mean_of(mean, x, nodes):
    """Whether `mean` averages x itself, over axes or windows; identity and repetition may lie between."""
    while nodes[mean].op in (*UNCHANGED, "expand"):
        mean = nodes[mean].inputs[0]
    return nodes[mean].op in MEANS and nodes[mean].inputs[0] == x


def _behind_shapes(name, nodes):
    while nodes[name].op in (*UNCHANGED, *SHAPES):
        name = nodes[name].inputs[0]
    return nodes[name]


def _is_function_of(gate, x, nodes, constants):
    """Whether `gate` is an activation of x written out: x * g(x), with constants added and multiplied anywhere."""
    roots = {x}
    while (x := _elementwise_source(x, nodes, constants, UNCHANGED)) is not None:
        roots.add(x)
    activations_passed = 0
    while gate is not None and not (gate in roots and activations_passed):
        activations_passed += nodes[gate].op in ACTIVATIONS
        gate = _elementwise_source(gate, nodes, constants, {**UNCHANGED, **ACTIVATIONS})
    return gate is not None


def _elementwise_source(name, nodes, constants, ops):
    """The one input that the node is an elementwise function of, by `ops` and arithmetic with constants, or None."""
    node = nodes[name]
    dynamic = [i for i in node.inputs if i not in constants]
    arithmetic = node.op in ("add", "subtract", "multiply", "divide")
    return dynamic[0] if len(dynamic) == 1 and (node.op in ops or arithmetic) else None


def near_input(network, constants):
    """The nodes that hold the image itself, normalised, padded, cut or moved, but not yet mixed by weights."""
    moves = (*UNCHANGED, *SHAPES, *NORMS, "zero_pad", "concatenate", "batch_norm")
    near: set[str] = set()
    for node in network.nodes:
        dynamic = [name for name in node.inputs if name not in constants]
        arithmetic = node.op in ("add", "subtract", "multiply", "divide") and len(dynamic) == 1
        if node.op == "input" or (dynamic and set(dynamic) <= near and (node.op in moves or arithmetic)):
            near.add(node.name)
    return near
