"""Any classifier in fully convolutional form (section 3.1): no global pooling, linear layers as 1x1 convolutions."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.nn import functional as F

GLOBAL_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def fully_convolutional(model: nn.Module, num_classes: int | None = None) -> nn.Module:
    """A copy of an image classifier that returns class response maps (N, C, h, w) instead of logits (N, C).

    The last global pooling and every flattening after it are removed, linear layers become 1x1 convolutions with the
    same weights (k x k, padded to keep the size, where k x k positions were flattened into one vector), and
    `num_classes`, if given, replaces the last layer by a fresh one of that many classes.

    Raises ValueError if the model has no linear layer at its end or torch.fx cannot trace it.
    """
    model = copy.deepcopy(model)
    training = model.training
    try:
        graph = fx.Tracer().trace(model.eval())
    except Exception as error:
        raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
    modules = dict(model.named_modules())
    nodes = list(graph.nodes)
    pool = next((i for i in reversed(range(len(nodes))) if _is_global_pool(nodes[i], modules)), None)
    head = nodes if pool is None else nodes[pool:]
    linears = [n for n in head if n.op == "call_module" and isinstance(modules[n.target], nn.Linear)]
    if not linears:
        raise ValueError(f"{type(model).__name__} has no linear layer after its global pooling")
    if pool is None and any(_is_flatten(node, modules) for node in nodes):
        raise ValueError(
            f"{type(model).__name__} flattens its features without a pooling to a fixed size, so the size of the "
            "convolution that its linear layer becomes is unknown; put nn.AdaptiveAvgPool2d before the flattening"
        )
    side = _pooled_side(nodes[pool], modules) if pool is not None else 1
    traced = fx.GraphModule(model, graph)
    for node in head:
        if node is (nodes[pool] if pool is not None else None) or _is_flatten(node, modules):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for i, node in enumerate(linears):
        fresh = num_classes if node is linears[-1] else None
        traced.set_submodule(node.target, _as_convolution(modules[node.target], side if i == 0 else 1, fresh))
    graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced.train(training)


def _is_global_pool(node: fx.Node, modules: dict) -> bool:
    if node.op == "call_module":
        return isinstance(modules[node.target], GLOBAL_POOLS)
    if node.op == "call_function" and node.target in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        return True
    if node.target in (torch.mean, "mean"):
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
        return len({d % 4 for d in ([dims] if isinstance(dims, int) else dims)} & {2, 3}) == 2
    return False


def _pooled_side(node: fx.Node, modules: dict) -> int:
    """Side of the map that the pooling leaves: 1, or 7 in VGG."""
    if node.op == "call_module":
        size = modules[node.target].output_size
    elif node.target in (torch.mean, "mean"):
        return 1
    else:
        size = node.kwargs.get("output_size", node.args[1] if len(node.args) > 1 else 1)
    return size if isinstance(size, int) else size[0]


def _is_flatten(node: fx.Node, modules: dict) -> bool:
    if node.op == "call_module":
        return isinstance(modules[node.target], nn.Flatten)
    name = getattr(node.target, "__name__", node.target)
    return name in ("flatten", "view", "reshape", "squeeze")


def _as_convolution(linear: nn.Linear, side: int, num_classes: int | None) -> nn.Conv2d:
    channels = linear.in_features // side**2
    classes = num_classes or linear.out_features
    padding = side // 2 if side % 2 else "same"
    conv = nn.Conv2d(
        channels,
        classes,
        side,
        padding=padding,
        bias=linear.bias is not None,
        dtype=linear.weight.dtype,
        device=linear.weight.device,
    )
    if num_classes is None:
        with torch.no_grad():
            conv.weight.copy_(linear.weight.reshape(conv.weight.shape))
            if linear.bias is not None:
                conv.bias.copy_(linear.bias)
    return conv
