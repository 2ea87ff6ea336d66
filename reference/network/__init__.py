"""A network as plain data, its forward pass, and the walk of Eq. 4-5 back through it, for one image, in float64.

A network is a sequence of nodes in the order of their computation: one `input` node, every other node after its inputs,
the last node the output (or `Network.output`). The output (C, H, W) is the stack of class response maps. Arrays have no
batch axis: feature maps (C, H, W), vectors (F,). Axes in parameters count from 0 = channel, or from the end.

| op | inputs | params |
|----|--------|--------|
| input | - | - |
| constant | - | value (a leading axis of 1, the batch's, is dropped where it is one too many), learned=False |
| conv2d | x | weight, bias=None, stride=1, padding=0, dilation=1, groups=1 |
| linear | x | weight, bias=None |
| batch_norm | x | mean, var, weight=None, bias=None, eps=1e-5 |
| layer_norm | x | axes=1 (how many of the last), weight=None, bias=None, eps=1e-5 |
| group_norm | x | groups, weight=None, bias=None, eps=1e-5 |
| instance_norm | x | mean=None, var=None (None: the image's own), weight=None, bias=None, eps=1e-5 |
| local_response_norm | x | size, alpha=1e-4, beta=0.75, k=1.0 |
| an activation, see ACTIVATIONS | x | slope, alpha, ... |
| softmax | x | axis |
| identity, dropout | x | - |
| power | x | exponent; P passes one above 0 |
| zero_pad | x | padding (left, right, top, bottom) |
| pad | x | padding, mode="constant" (with value=0) or reflect, replicate, circular |
| max_pool2d | x | kernel, stride=None, padding=0, dilation=1, ceil_mode=False |
| avg_pool2d | x | kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None |
| adaptive_max_pool2d, adaptive_avg_pool2d | x | size (each entry a number, or None: keep) |
| mean | x | axes=(1, 2), keepdims=False |
| sum, norm (the root of the squares' sum: in a gate or a divisor) | x | axes, keepdims=False |
| interpolate | x | mode, align_corners=False, size or scale |
| add, subtract, multiply, divide | x, y | - |
| concatenate | x, y, ... | axis=0 |
| slice | x | axis, start=None, stop=None, step=None |
| chunk | x | axis, chunks, index |
| flatten | x | start=0, end=-1 |
| reshape | x | shape |
| squeeze, unsqueeze | x | axis |
| expand | x | shape (-1: keep) |
| permute | x | axes |
| transpose | x | axes: the two that change places |

An entry of `size` and `shape` may be a pair (node name, axis): the size of that node's array along that axis.
A `learned` constant is a parameter of the network: as a factor it may have either sign, a number must be positive.
"""

from .data import Network, Node, as_network
from .operators import ACTIVATIONS, FORWARD, GATES, NORMS, SELU, SHAPES, UNCHANGED
from .passes import Walk, forward, walk
from .planning import plan
from .rules import RULES

__all__ = [
    "ACTIVATIONS", "FORWARD", "GATES", "NORMS", "RULES", "SELU", "SHAPES", "UNCHANGED", "Network", "Node", "Walk",
    "as_network", "forward", "plan", "walk",
]  # fmt: skip
