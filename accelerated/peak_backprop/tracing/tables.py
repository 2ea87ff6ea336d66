"""Which function finds the rule of a call, by module type, function or method name; the first match counts."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..rules import Linear
from . import arithmetic, layers, shapes
from .calls import ACTIVATION_FUNCTIONS, ACTIVATIONS, DROPOUTS, NORMS, PADS

MODULE_RULES: list[tuple[Any, Callable]] = [
    (nn.Conv2d, layers.conv_module),
    (nn.BatchNorm2d, layers.batch_norm),
    (nn.LayerNorm, layers.layer_norm),
    (NORMS, layers.norm),
    (ACTIVATIONS, layers.unchanged),
    ((nn.Identity, nn.modules.dropout._DropoutNd), layers.unchanged),
    (nn.MaxPool2d, layers.max_pool_module),
    (nn.AdaptiveMaxPool2d, lambda b, node, m: layers.adaptive_max_pool(b, node, m.output_size, m.return_indices)),
    (nn.AvgPool2d, layers.avg_pool_module),
    (nn.AdaptiveAvgPool2d, layers.adaptive_avg_pool),
    (nn.Upsample, layers.interpolate_module),
    (nn.Linear, lambda b, node, m: Linear(node.args[0], m.weight.detach())),
    ((nn.Flatten, nn.Unflatten), shapes.reshape),
    (nn.MultiheadAttention, layers.attention),
    (PADS, shapes.pad),
    ((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), lambda b, node, m: shapes.selection(b, node)),
]
FUNCTION_RULES: dict[Callable, Callable] = {
    **dict.fromkeys((F.conv2d, torch.conv2d), layers.conv_function),
    F.batch_norm: layers.batch_norm,
    F.layer_norm: layers.layer_norm,
    **dict.fromkeys((F.group_norm, F.instance_norm, F.local_response_norm), layers.norm),
    **dict.fromkeys((*ACTIVATION_FUNCTIONS, *DROPOUTS), layers.unchanged),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), layers.max_pool_function),
    F.adaptive_max_pool2d: lambda b, node: layers.adaptive_max_pool(
        b, node, *b.arguments(node, output_size=None, return_indices=False)),
    F.avg_pool2d: layers.avg_pool_function,
    F.adaptive_avg_pool2d: layers.adaptive_avg_pool,
    torch.mean: layers.mean,
    F.interpolate: layers.interpolate_function,
    F.linear: lambda b, node: Linear(node.args[0], b.arguments(node, weight=None)[0].detach()),
    **dict.fromkeys((operator.add, torch.add), arithmetic.add),
    **dict.fromkeys((operator.sub, torch.sub, torch.subtract), arithmetic.subtract),
    **dict.fromkeys((operator.mul, torch.mul, torch.multiply), arithmetic.multiply),
    **dict.fromkeys((operator.truediv, torch.div, torch.divide), arithmetic.divide),
    **dict.fromkeys((operator.pow, torch.pow), arithmetic.power), torch.square: layers.unchanged,
    torch.sum: arithmetic.total, F.pad: shapes.pad,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), shapes.concatenate),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze), shapes.reshape),
    **dict.fromkeys((torch.permute, torch.transpose, torch.narrow), shapes.selection),
    **dict.fromkeys((F.pixel_shuffle, F.pixel_unshuffle), shapes.selection),
    operator.getitem: shapes.getitem,
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm, torch.einsum), layers.product),
    F.scaled_dot_product_attention: layers.attention,
}  # fmt: skip
METHOD_RULES: dict[str, Callable] = {
    **dict.fromkeys(("relu", "sigmoid", "tanh", "contiguous", "clone", "float"), layers.unchanged),
    "add": arithmetic.add,
    **dict.fromkeys(("sub", "subtract"), arithmetic.subtract),
    **dict.fromkeys(("mul", "multiply"), arithmetic.multiply),
    **dict.fromkeys(("div", "divide"), arithmetic.divide),
    "mean": layers.mean, "sum": arithmetic.total, "pow": arithmetic.power, "square": layers.unchanged,
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), shapes.reshape),
    **dict.fromkeys(("permute", "transpose", "narrow"), shapes.selection),
    **dict.fromkeys(("expand", "expand_as"), shapes.expand), **dict.fromkeys(("matmul", "bmm"), layers.product),
}  # fmt: skip
