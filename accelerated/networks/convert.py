"""Any classifier in fully convolutional form (section 3.1): no global pooling, linear layers as 1x1 convolutions."""

from __future__ import annotations

import copy
import operator
from functools import partial
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from ..peak_backprop.tracing.calls import (
    ACTIVATION_FUNCTIONS,
    ACTIVATIONS,
    DROPOUTS,
    argument,
    call_name,
    dims_of,
    is_size,
    keeps_axes,
    path_of,
    reduced_axes,
    source_of,
)
from ..peak_backprop.tracing.graph import Tracer, Untraceable
from ..peak_backprop.tracing.sized import AtEachSize

GLOBAL_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
ELEMENTWISE = (*ACTIVATIONS, nn.Identity, nn.modules.dropout._DropoutNd)
MIXING = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
ELEMENTWISE_NAMES = ("relu", "relu_", "sigmoid", "tanh", "contiguous", "clone", "add", "mul", "sub", "truediv", "div",
                     "iadd", "imul", "isub", "itruediv")  # fmt: skip


def fully_convolutional(model: nn.Module, num_classes: int | None = None) -> nn.Module:
    """A copy of an image classifier that returns class response maps (N, C, h, w) instead of logits (N, C).

    The last global pooling and every flattening after it are removed, linear layers become 1x1 convolutions with the
    same weights (k x k, padded to keep the size, where k x k positions were flattened into one vector), norms of
    vectors normalise every position, and `num_classes`, if given, replaces the last layer by a fresh one of that many
    classes. A convolution that is followed by the pooling alone is such a last layer too.

    Raises ValueError, in one line, if torch.fx cannot trace the model, if no global pooling separates its output from
    its image, or if what comes after the pooling has no fully convolutional form.
    """
    return made_convolutional(copy.deepcopy(model), num_classes)


def made_convolutional(model: nn.Module, num_classes: int | None = None) -> nn.Module:
    """`fully_convolutional` of a model that nobody else uses: it is taken apart, and no weight is copied."""
    name, training = type(model).__name__, model.training
    model = model.eval()
    convert = partial(_converted, name=name, num_classes=num_classes)
    try:
        graph = Tracer().trace(model)
    except Exception as error:
        try:
            return AtEachSize(model, convert).train(training)
        except Untraceable:
            raise ValueError(f"torch.fx cannot trace {name}: {error}") from error
    return convert(model, graph).train(training)


def _converted(model: nn.Module, graph: fx.Graph, name: str, num_classes: int | None) -> fx.GraphModule:
    """The fully convolutional form of a model, called `name`, that has this graph."""
    _make_linears(model, graph)
    _pool_channels_first(graph)
    head = _Head(name, graph, dict(model.named_modules()))
    # Calls that work in place may have results that nobody reads: they are not dead.
    unread = {node for node in graph.nodes if not node.users}
    traced = fx.GraphModule(model, graph)
    for node, source in head.removed.items():
        while source in head.removed:
            source = head.removed[source]
        node.replace_all_uses_with(source)
    for node in head.layer_norms:
        _over_channels(graph, node)
    for node, norm in head.batch_norms.items():
        traced.set_submodule(path_of(node), _of_maps(norm))
    for node, (linear, side) in head.linears.items():
        fresh = num_classes if node is head.classifier else None
        traced.set_submodule(path_of(node), head.as_convolution(linear, side, fresh))
    last = head.modules[path_of(head.classifier)]
    if num_classes is not None and isinstance(last, nn.Conv2d):
        traced.set_submodule(path_of(head.classifier), _fresh(last, num_classes))
    graph.eliminate_dead_code(is_impure_node=lambda node: node in unread or node.is_impure())
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _make_linears(model: nn.Module, graph: fx.Graph) -> None:
    """Turn `F.linear` of a layer's own weight and bias into that layer, as `nn.Linear`: subclasses of it are traced
    into."""
    for node in [node for node in graph.nodes if node.target is F.linear]:
        given = [one for one in (argument(node, 1, "weight"), argument(node, 2, "bias")) if one is not None]
        names = [path_of(one) for one in given if isinstance(one, fx.Node) and one.op == "get_attr"]
        path = names[0].rpartition(".")[0] if names else ""
        own = {f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters()} if path else set()
        if not names or own != set(names) or len(names) < len(given):
            continue
        weight, *bias = map(model.get_parameter, names)
        made = nn.Linear(weight.shape[1], weight.shape[0], bool(bias), device="meta")
        made.weight = weight
        if bias:
            made.bias = bias[0]
        model.set_submodule(path, made)
        node.op, node.target, node.args, node.kwargs = "call_module", path, (argument(node, 0, "input"),), {}
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op != "get_attr")


def _pool_channels_first(graph: fx.Graph) -> None:
    """Let a mean over rows and columns of maps whose channels come last (N, H, W, C) read maps (N, C, H, W)."""
    for node in graph.nodes:
        if call_name(node) in ("mean", "amax") and sorted(dims_of(node)) == [1, 2] and not keeps_axes(node):
            with graph.inserting_before(node):
                node.args = (graph.call_method("permute", (source_of(node), 0, 3, 1, 2)), (2, 3))
                node.kwargs = {}


class _Head:
    """What comes after the last global pooling, and what has to become of it.

    removed : node -> the node that takes its place
    layer_norms, batch_norms : nodes of vectors
    linears : node -> its layer, and the side of the map that was flattened into its vector
    classifier : the last linear layer or convolution
    """

    def __init__(self, name: str, graph: fx.Graph, modules: dict[str, nn.Module]):
        self.name, self.modules = name, modules
        self.removed: dict[fx.Node, fx.Node] = {}
        self.linears: dict[fx.Node, tuple[nn.Linear, int]] = {}
        self.layer_norms: list[fx.Node] = []
        self.batch_norms: dict[fx.Node, nn.BatchNorm1d] = {}
        (output,) = next(node for node in graph.nodes if node.op == "output").args
        if not isinstance(output, fx.Node):
            raise ValueError(f"{name} returns more than one tensor; wrap it so that it returns its logits alone")
        pools = self._last_pools(graph, output)
        # node -> (whether a vector, the side of the map that it still holds or holds flattened), in the classifier
        values: dict[fx.Node, tuple[bool, int]] = {}
        layers = []
        for node in graph.nodes:
            above = [values[n] for n in node.all_input_nodes if n in values]
            if node in pools:
                self.removed[node], side, is_vector = pools[node]
                values[node] = (is_vector, side)
            elif above and node.op != "output" and not is_size(node):
                foreign = any(n not in values and not is_size(n) for n in node.all_input_nodes)
                is_vector, side = any(vector for vector, _ in above), max(side for _, side in above)
                values[node] = self._visit(node, is_vector, side, foreign)
                layers += [node] if isinstance(self._module(node), (nn.Linear, nn.Conv2d)) else []
        self.classifier = layers[-1] if layers else self._convolution_before(pools)

    def _refusal(self, node: fx.Node, why: str) -> ValueError:
        module = self._module(node)
        what = f"{call_name(node)} ({node.name})" if module is None else f"{type(module).__name__} at {node.target!r}"
        return ValueError(f"{self.name} cannot be made fully convolutional: {what}, after its global pooling, {why}")

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[path_of(node)] if node.op == "call_module" else None

    def _is_elementwise(self, node: fx.Node) -> bool:
        return isinstance(self._module(node), ELEMENTWISE) or node.target in (*ACTIVATION_FUNCTIONS, *DROPOUTS)

    # ---- the pooling

    def _last_pools(self, graph: fx.Graph, output: fx.Node) -> dict[fx.Node, tuple[fx.Node, int, bool]]:
        """The global poolings that no other follows: node -> (what it pools, the side it leaves, whether a vector)."""
        live, followed = {output}, set[fx.Node]()
        pools = {}
        for node in reversed(graph.nodes):
            live |= set(node.all_input_nodes) if node in live else set()
            if node in live and followed.isdisjoint(node.users) and (found := self._global_pool(node)) is not None:
                pools[node] = found
                followed.add(node)
            elif not followed.isdisjoint(node.users) and not is_size(node):
                followed.add(node)
        # Does every path from the image to the output lead through one of them?
        reached = {node for node in graph.nodes if node.op == "placeholder"}
        for node in graph.nodes:
            if node not in pools and not is_size(node) and not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        if not pools or output in reached:
            raise ValueError(
                f"{self.name} has no global pooling that all of its features go through before they become logits; "
                "put nn.AdaptiveAvgPool2d there"
            )
        return pools

    def _global_pool(self, node: fx.Node) -> tuple[fx.Node, int, bool] | None:
        name, module = call_name(node), self._module(node)
        if isinstance(module, GLOBAL_POOLS) or node.target in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
            size = module.output_size if module is not None else argument(node, 1, "output_size")
            sides = {size} if isinstance(size, int) else set(size) if isinstance(size, (tuple, list)) else {None}
            side = sides.pop()
            # None keeps an axis, and a size that depends on the image is no fixed one.
            return (source_of(node), side, False) if isinstance(side, int) and not sides else None
        if name == "avg_pool2d" or isinstance(module, nn.AvgPool2d):
            kernel = argument(node, 1, "kernel_size") if module is None else module.kernel_size
            return (source_of(node), 1, False) if _is_whole(kernel, source_of(node)) else None
        if name not in ("mean", "amax") or not node.args:
            return None
        axes, source = reduced_axes(node)  # of mean([2, 3]) or mean(3).mean(2)
        if axes == {2, 3}:
            return source, 1, argument(node, 2, "keepdim") is not True
        if self._flattens(source) and axes in ({2}, {3}) and _start(source, self._module(source)) == 2:
            return source_of(source), 1, True  # flatten(2).mean(-1)
        return None

    # ---- behind it

    def _visit(self, node: fx.Node, is_vector: bool, side: int, foreign: bool) -> tuple[bool, int]:
        """Note what has to become of a node; whether its value is a vector, and of which side's positions.

        `foreign`: it reads a parameter, whose shape may suit vectors alone.
        """
        name, module = call_name(node), self._module(node)
        if self._flattens(node):
            self.removed[node] = source_of(node)
            return self._is_flat(node), side
        if isinstance(module, nn.Linear):
            if not is_vector:
                raise self._refusal(node, "reads features that are not flattened")
            self.linears[node] = module, side
            return True, 1
        along_channels = argument(node, 1, "dim") if module is None else getattr(module, "dim", None)
        softmax = isinstance(module, (nn.Softmax, nn.LogSoftmax)) or name in ("softmax", "log_softmax")
        joins = softmax or (name in ("cat", "concat", "concatenate") and not foreign)
        if self._is_elementwise(node) or (name in ELEMENTWISE_NAMES and not foreign) or (joins and along_channels == 1):
            return is_vector, side
        if side > 1:
            raise self._refusal(node, f"reads {side} x {side} positions")
        shape = getattr(module, "normalized_shape", argument(node, 1, "normalized_shape"))
        if (isinstance(module, nn.LayerNorm) or name == "layer_norm") and len(shape) == 1 and is_vector:
            self.layer_norms.append(node)
        elif isinstance(module, nn.BatchNorm1d):
            self.batch_norms[node] = module
        elif isinstance(module, MIXING) or name in ("group_norm", "instance_norm"):
            raise self._refusal(node, "would normalise over all positions")
        elif is_vector and not isinstance(module, nn.Conv2d):
            raise self._refusal(node, "has no form for maps; use modules such as nn.Linear, nn.LayerNorm and nn.ReLU")
        return is_vector and not isinstance(module, nn.Conv2d), 1

    def _flattens(self, node: fx.Node) -> bool:
        """Whether a node is written as flattening is, or as taking or adding axes of length 1."""
        if node.target is operator.getitem:
            return isinstance(node.args[1], tuple) and not is_size(node)
        names = ("flatten", "view", "reshape", "squeeze", "unsqueeze")
        return isinstance(self._module(node), (nn.Flatten, nn.Unflatten)) or call_name(node) in names

    def _is_flat(self, node: fx.Node) -> bool:
        """Whether a vector is what remains; refuses a node that does more than drop or add axes of length 1."""
        name, module = call_name(node), self._module(node)
        if name in ("squeeze", "unsqueeze"):
            return name == "squeeze"
        if name == "getitem":
            index: Any = node.args[1]
            whole = len(index) == 4 and index[0] == index[1] == slice(None)
            if whole and all(i is None or (isinstance(i, int) and i == 0) for i in index[2:]):
                return None not in index
        elif isinstance(module, nn.Flatten) or name == "flatten":
            if _start(node, module) in (1, 2, -2, -3):
                return True
        elif module is None:
            shape: Any = node.args[1] if len(node.args) == 2 else node.args[1:]
            if isinstance(shape, fx.Node) or len(shape) == 2:
                return True
            if len(shape) == 4 and tuple(shape[2:]) == (1, 1):
                return False
        raise self._refusal(node, "does more than flatten the features")

    def _convolution_before(self, pools: dict) -> fx.Node:
        """The convolution that the pooling averages, nothing but activations between them (SqueezeNet)."""
        (node, side, _), *others = pools.values()
        while self._is_elementwise(node):
            node = node.args[0]
        if others or side > 1 or not isinstance(self._module(node), nn.Conv2d):
            raise ValueError(f"{self.name} has no linear layer after its global pooling, nor a convolution before it")
        return node

    def as_convolution(self, linear: nn.Linear, side: int, num_classes: int | None) -> nn.Conv2d:
        """The convolution with a linear layer's weights, or a fresh one of `num_classes`, on side x side positions."""
        channels, rest = divmod(linear.in_features, side**2)
        if rest:
            raise ValueError(f"{self.name}: {linear.in_features} features are not {side} x {side} positions")
        padding, bias = side // 2 if side % 2 else "same", linear.bias is not None
        if num_classes is not None:
            like: dict[str, Any] = {"dtype": linear.weight.dtype, "device": linear.weight.device}
            return nn.Conv2d(channels, num_classes, side, padding=padding, bias=bias, **like)
        conv = nn.Conv2d(channels, linear.out_features, side, padding=padding, bias=bias, device="meta")
        conv.weight = nn.Parameter(linear.weight.detach().reshape(conv.weight.shape), linear.weight.requires_grad)
        conv.bias = linear.bias
        return conv


def _fresh(conv: nn.Conv2d, num_classes: int) -> nn.Conv2d:
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    geometry: dict[str, Any] = {name: getattr(conv, name) for name in names}
    like: dict[str, Any] = {"dtype": conv.weight.dtype, "device": conv.weight.device}
    return nn.Conv2d(conv.in_channels, num_classes, bias=conv.bias is not None, **geometry, **like)


def _of_maps(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    # The tensors themselves: of their dtype, on their device, and the model is a copy anyway.
    made.load_state_dict(norm.state_dict(), assign=True)
    return made


def _over_channels(graph: fx.Graph, node: fx.Node) -> None:
    """Let a layer norm of vectors (N, C) normalise the channels of maps: axis 1 goes last, and back."""
    with graph.inserting_before(node):
        node.args = (graph.call_method("permute", (source_of(node), 0, 2, 3, 1)), *node.args[1:])
    with graph.inserting_after(node):
        back = graph.call_method("permute", (node, 0, 3, 1, 2))
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


def _start(node: fx.Node, module: nn.Module | None) -> int | None:
    return module.start_dim if isinstance(module, nn.Flatten) else argument(node, 1, "start_dim")


def _is_whole(kernel: Any, source: fx.Node) -> bool:
    """Whether a pooling's window holds the whole map, by a size that is read or, at one size of the picture, known."""
    parts = kernel if isinstance(kernel, (tuple, list)) else (kernel, kernel)
    if "shape" in source.meta:
        return all(side >= have for side, have in zip(parts, source.meta["shape"][2:]))
    return any(isinstance(part, fx.Node) and is_size(part) for part in parts)
