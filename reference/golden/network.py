"""Cases of the walk through a whole network, and the networks: a small one with convolution and batch norm, residual
sum, gate, concatenation and both poolings; and one that leaks."""

import numpy as np

from ..network import Node, as_network
from .inputs import Cases, numbers


def _node(name, op, *inputs, **params):
    return Node(name, op, inputs, params)


NODES = {
    "small": [
        _node("image", "input"),
        _node("conv1", "conv2d", "image", weight=numbers(1, 3, 2, 3, 3), padding=1),
        _node("norm1", "batch_norm", "conv1", mean=np.array([0.5, -1, 0.25]), var=np.array([4.0, 2, 9]),
              weight=np.array([1.0, -0.5, 2]), bias=np.array([0.25, 0.5, 1]), eps=1e-5),
        _node("relu1", "relu", "norm1"),
        _node("pool1", "max_pool2d", "relu1", kernel=2),
        _node("conv2", "conv2d", "pool1", weight=numbers(2, 3, 3, 1, 1), bias=np.array([0.125, -0.25, 0.5])),
        _node("sum", "add", "conv2", "pool1"),
        _node("relu2", "relu", "sum"),
        _node("squeeze", "mean", "relu2", keepdims=True),
        _node("excite", "conv2d", "squeeze", weight=numbers(3, 3, 3, 1, 1)),
        _node("gate", "sigmoid", "excite"),
        _node("gated", "multiply", "relu2", "gate"),
        _node("both", "concatenate", "gated", "pool1", axis=0),
        _node("pool2", "avg_pool2d", "both", kernel=2, stride=1),
        _node("maps", "conv2d", "pool2", weight=numbers(4, 3, 6, 1, 1), bias=np.array([3.5, 1.0, 0])),
    ],
    # Class 0 reaches the image with a part of its mass, class 1 with none: a filter has no positive weight.
    "silent": [
        _node("image", "input"),
        _node("hidden", "conv2d", "image", weight=np.array([[[[1.0, 1]]], [[[-1, -1]]]])),
        _node("maps", "conv2d", "hidden", weight=np.array([[[[1.0]], [[1]]], [[[-1.0]], [[2]]]])),
    ],
}  # fmt: skip
NETWORKS = {name: as_network(nodes) for name, nodes in NODES.items()}
IMAGE = numbers(9, 2, 8, 8)

CASES: Cases = {
    "network.forward": [("", "Class response maps of the small network.", dict(network="small", image=IMAGE))],
    "network.walk": [
        ("first_peak", "From a peak of class 0 to the image.", dict(network="small", image=IMAGE, peak=[0, 1, 1])),
        ("second_peak", "From another class and position.", dict(network="small", image=IMAGE, peak=[2, 0, 2])),
        ("upsample_2", "From a peak of the maps enlarged by 2.",
         dict(network="small", image=IMAGE, peak=[1, 3, 4], upsample=2)),
        ("signed", "The convolution that sees the image splits by sign.",
         dict(network="small", image=IMAGE, peak=[0, 1, 1], signed=True)),
        ("part_leaks", "A part of the mass leaks; the map sums to 1 all the same.",
         dict(network="silent", image=np.array([[[2.0, 1, 0, 0]]]), peak=[0, 0, 1])),
        ("empty", "Everything leaks: an empty map.",
         dict(network="silent", image=np.array([[[2.0, 1, 0, 0]]]), peak=[1, 0, 2])),
    ],
}  # fmt: skip


def with_network(arguments, networks):
    """The name of a network replaced by the network."""
    return {**arguments, "network": networks[arguments["network"]]} if "network" in arguments else arguments
