"""Calls of layers to their rules: convolutions with what is merged into them, norms, poolings, interpolation."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..operators import LAYOUT
from ..rules import AveragePooling, Convolution, FixedWeights, FoldedNorm, MaxPool, Norm, Rule
from .calls import UNREAD, pair


def _convolution(b, node, weight, bias, stride, padding, dilation, groups):
    if weight.dim() != 4:
        raise b.refusal(node, "only two-dimensional convolutions have a rule")
    source, pad = b.source_and_pad(node)
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if node in b.folded:
        mean, var, gamma, beta, eps = b.norm(b.folded[node])
        scale = (1.0 if gamma is None else gamma.detach()) / torch.sqrt(var + eps)
        bias = (0.0 if beta is None else beta.detach()) + ((0.0 if bias is None else bias) - mean) * scale
        weight = (weight * scale[:, None, None, None]).contiguous(memory_format=LAYOUT)
    padding = padding if isinstance(padding, str) else pair(padding)
    return Convolution(
        source, weight, bias, pair(stride), padding, pair(dilation), groups, pad,
        signed=b.signed and b.sees_image(source), precision=b.precision,
    )  # fmt: skip


def conv_module(b, node, m):
    return _convolution(b, node, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def conv_function(b, node):
    return _convolution(b, node, *b.arguments(node, weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1))


def batch_norm(b, node, *_):
    # On its own it passes P on unchanged, per channel, also where gamma <= 0: a stated approximation.
    return (FoldedNorm if node in b.folded.values() else Rule)(node.args[0])


def unchanged(b, node, *_):
    return Rule(node.args[0])


def norm(b, node, *_):
    return Norm(node.args[0])


def layer_norm(b, node, m=None):
    if m is not None:
        return Norm(node.args[0], len(m.normalized_shape))
    shape = node.kwargs.get("normalized_shape", node.args[1] if len(node.args) > 1 else None)
    if isinstance(shape, fx.Node) and shape in b.constants:
        shape = b.constants[shape]
    if not isinstance(shape, fx.Node):
        return Norm(node.args[0], 1 if isinstance(shape, int) else len(shape))
    # x.shape[1:]: how many axes that are is not known, but that the batch is not among them.
    part = shape.args[1] if shape.target is operator.getitem else None
    if not isinstance(part, slice) or not isinstance(part.start, int) or not (part.start >= 1 or -3 <= part.start < 0):
        raise b.refusal(node, "which axes it normalises cannot be read from the model")
    return Norm(node.args[0])


def _max_pool(b, node, kernel, stride, padding, dilation, ceil_mode, return_indices=False):
    if return_indices:
        raise b.refusal(node, "it returns indices too")
    options = dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)
    geometry = tuple(pair(v) for v in (kernel, kernel if stride in (None, []) else stride, padding, dilation))
    return MaxPool(node.args[0], lambda U: F.max_pool2d(U, return_indices=True, **options), geometry)


def max_pool_module(b, node, m):
    return _max_pool(b, node, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def max_pool_function(b, node):
    return _max_pool(b, node, *b.arguments(
        node, kernel_size=None, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False))  # fmt: skip


def adaptive_max_pool(b, node, size, return_indices=False):
    if return_indices:
        raise b.refusal(node, "it returns indices too")
    return MaxPool(node.args[0], lambda U: F.adaptive_max_pool2d(U, size, return_indices=True))


def _avg_pool(b, node, kernel, stride, padding, ceil_mode, count_include_pad, divisor):
    source, pad = b.source_and_pad(node)
    kernel, padding = pair(kernel), pair(padding)
    stride = kernel if stride in (None, []) else pair(stride)

    def pool(U: Tensor, include_pad=count_include_pad, divisor=divisor) -> Tensor:
        U = F.pad(U, pad) if any(pad) else U
        return F.avg_pool2d(U, kernel, stride, padding, ceil_mode, include_pad, divisor)

    def weights(U: Tensor) -> Tensor:
        """The sum of each output's weights, 1 or not: those on padding count, or do not, as in the model's divisor."""
        inside = pool(torch.ones_like(U), False, divisor)
        return inside / pool(torch.ones_like(U), True, None) if count_include_pad else inside

    apart = not count_include_pad and (any(padding) or any(pad))
    if ceil_mode or apart:
        # Its last windows may reach beyond the padding, or their weights differ: no convolution's do.
        return FixedWeights(source, lambda U, _: pool(U), weights if apart or divisor is not None else None)
    return AveragePooling(source, pool, kernel, stride, padding, pad, b.precision)


def avg_pool_module(b, node, m):
    return _avg_pool(b, node, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)


def avg_pool_function(b, node):
    return _avg_pool(b, node, *b.arguments(
        node, kernel_size=None, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
        divisor_override=None))  # fmt: skip


def adaptive_avg_pool(b, node, *_):
    # The size may come from another tensor: the walk takes it from the output.
    return FixedWeights(node.args[0], lambda U, size: F.adaptive_avg_pool2d(U, (size[0], size[1])))


def mean(b, node):
    dims, keepdim = b.arguments(node, dim=None, keepdim=False)
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if not dims or any(d % 4 < 2 for d in dims):
        raise b.refusal(node, "only a mean over rows and columns has a rule")
    return FixedWeights(node.args[0], lambda U, _: U.mean(dim=dims, keepdim=keepdim))


def _interpolate(b, node, scale_factor, mode, align_corners, recompute, antialias):
    if mode not in ("nearest", "nearest-exact", "bilinear", "area"):
        raise b.refusal(node, f"{mode} interpolation has negative weights; use bilinear or nearest")
    options = dict(scale_factor=scale_factor, mode=mode, align_corners=align_corners,
                   recompute_scale_factor=recompute, antialias=antialias)  # fmt: skip
    by_size = scale_factor is None
    return FixedWeights(node.args[0], lambda U, size: F.interpolate(U, size=size if by_size else None, **options))


def interpolate_module(b, node, m):
    return _interpolate(b, node, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor, False)


def interpolate_function(b, node):
    # The size may come from another tensor: the walk takes it from the output.
    return _interpolate(b, node, *b.arguments(
        node, size=UNREAD, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
        antialias=False))  # fmt: skip


def attention(b, node, *_):
    raise b.refusal(node, "attention multiplies tensors that all depend on the image, and Eq. 5 needs fixed weights")


def product(b, node):
    raise b.refusal(node, "a matrix product of two tensors, as in attention, has none: Eq. 5 needs fixed weights")
