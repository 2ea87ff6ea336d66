"""The forward pass, and the walk of Eq. 4-5 back through the network."""

from dataclasses import dataclass, replace

import numpy as np

from .. import peak_backprop as eq
from .data import as_network
from .planning import near_input, plan
from .rules import RULES
from .values import constants_of, operands_of, value_of


@dataclass(frozen=True)
class Walk:
    """Where the walker ended. start mass = arrived + leaked.

    prm (H, W): the Peak Response Map, sum 1, or all zero when `empty`; P (C, H, W): the visits of the image, not
    divided; arrived = sum(P); leaked: what layers could not pass on; account: node -> (mass that entered, that leaked).
    """

    prm: np.ndarray
    empty: bool
    P: np.ndarray
    arrived: float
    leaked: float
    account: dict[str, tuple[float, float]]


def forward(network, image) -> dict[str, np.ndarray]:
    """The values of all nodes for one image (C, H, W), by node name, float64. Nothing is computed in place."""
    network = as_network(network)
    plan(network)
    constants = constants_of(network)
    values = dict(constants)
    for node in network.nodes:
        if node.op == "input":
            values[node.name] = np.array(image, np.float64)
        elif node.name not in constants:
            values[node.name] = value_of(node, values, constants)
    return values


def walk(network, activations, peak, upsample=1, signed=False) -> Walk:
    """Eq. 4-5 through the whole network, from the peak (class, row, column) of the output to the image.

    activations: from `forward`. upsample: the enlargement on which the peak was found; its row and column are then
    enlarged coordinates. signed: the sign-split rule of `peak_backprop.conv2d` for the convolutions that see the image.
    Contributions of several consumers to one tensor are added.
    """
    network = as_network(network)
    constants = constants_of(network)
    steps = plan(network, activations)
    inputs_side = near_input(network, constants) if signed else set()
    mass = {network.output: eq.start(peak, activations[network.output].shape, upsample)}
    account = {}
    for node in reversed(steps):
        if node.op == "input":
            continue
        P = mass.pop(node.name)
        U = operands_of(node, activations, constants)
        if node.op == "conv2d" and node.inputs[0] in inputs_side:
            node = replace(node, params={**node.params, "signed": True})
        shares, leaked = RULES[node.op](P, node, U)
        for name, share in zip(node.inputs, shares):
            if share is None:
                continue
            if name in constants:
                leaked += float(share.sum())  # a concatenated constant: the walker ends there
            else:
                mass[name] = mass.get(name, 0.0) + share
        account[node.name] = (float(P.sum()), leaked)
    (P_image,) = mass.values()  # every other node has passed its own on
    R, empty = eq.peak_response_map(P_image)
    return Walk(R, empty, P_image, float(P_image.sum()), sum(leak for _, leak in account.values()), account)
