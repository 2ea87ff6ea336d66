"""From a network to its walk: torch.fx traces it, tables give every call that P passes a rule from `rules.py`."""

from __future__ import annotations

import copy
import operator
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .rules import (
    LAYOUT,
    Addition,
    AveragePooling,
    Concatenation,
    Convolution,
    Expansion,
    FixedWeights,
    FoldedNorm,
    Linear,
    MaxPool,
    Norm,
    Registered,
    Reshape,
    Rule,
    Scaling,
    Selection,
    State,
    registered,
)  # fmt: skip
from .windows import SharedMaps, Visits, Workspace, launched

MAPS_PER_PEAK = 4  # maps of the largest layer's size that a pass holds for every peak it carries


class Walk:
    """A traced network and the rule of every call that P passes, from the output down to the image."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module], constants: dict, rules: dict[fx.Node, Rule]):
        self._modules, self._constants, self._rules = modules, constants, rules
        self._workspace = Workspace()
        self.image = next(node for node in graph.nodes if node.op == "placeholder")
        self.output = _output(graph)
        self._down = [node for node in reversed(graph.nodes) if node in rules]
        # What the forward pass runs, each call with the values that it is the last to read, unless a rule kept them.
        self._calls: list[tuple[fx.Node, list[fx.Node]]] = []
        needed = {self.output, self.image}
        for node in reversed(graph.nodes):
            if node in needed and node not in constants:
                rule = rules.get(node)
                reads = set(node.all_input_nodes if rule is None or rule.executes else ()) | set(
                    rule.parents if rule else ()
                )
                self._calls.insert(0, (node, [n for n in reads - needed if n not in constants]))
                needed |= reads
        # Where windows grow they are cut first; each place may drop its share of what the whole walk may.
        self._growing = {node for node in self._down if rules[node].grows}
        self._overwriting = {node for node in rules if self._may_overwrite(node)}

    def _may_overwrite(self, node: fx.Node) -> bool:
        """Whether a ReLU may overwrite its input: nobody else reads it, and no rule needs what it was."""
        called = type(self._modules[node.target]) if node.op == "call_module" else node.target
        source = node
        while type(self._rules[node]) is Rule and called in (nn.ReLU, F.relu, torch.relu, "relu"):
            (source,) = self._rules[source].parents
            if len(source.users) != 1 or source is self.output:
                return False
            if not isinstance(self._rules.get(source), FoldedNorm):
                return type(self._rules.get(source)) in (Convolution, Addition)
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, dict[fx.Node, State]]:
        """Class response maps and what the rules kept."""
        env: dict[fx.Node, Any] = {**self._constants, self.image: images}
        maps = SharedMaps(self._workspace)
        states = {self.image: State(out=tuple(images.shape[1:]))}
        for node, read_last in self._calls:
            execute = lambda node=node: _execute(node, env, self._modules)  # noqa: E731
            if node in self._overwriting:
                env[node], states[node] = env[self._rules[node].parents[0]].relu_(), State()
            elif node in self._rules:
                rule = self._rules[node]
                env[node], states[node] = rule.forward(execute, *(env[parent] for parent in rule.parents))
            elif node is not self.image:
                env[node] = execute()
            if node in self._rules:
                states[node].out, states[node].maps = tuple(env[node].shape[1:]), maps
            for done in read_last:
                del env[done]
        if launched(images):
            kinds = (Convolution, FixedWeights, Addition)
            maps.survey(U for node, rule in self._rules.items() if isinstance(rule, kinds) for U in states[node].values)
        return env[self.output], states

    def back(
        self, visits: Visits, states: dict, arrive: Callable[[np.ndarray, Visits, Tensor], None], memory: int,
        epsilon: float = 0.0,
    ) -> None:  # fmt: skip
        """From visits of the output to visits of the images' pixels.

        arrive : called with the numbers of some peaks (k,), their visits of the pixels and the mass (2, k) that leaked
            and that was dropped, until all have been given
        memory : bytes that the maps of the peaks that go down together should not exceed
        epsilon : most mass of a peak that may be dropped at its windows' ends
        """
        lost = torch.zeros(2, len(visits.values), dtype=torch.float64, device=visits.values.device)
        numbers = np.arange(len(visits.values))
        self._descend(0, {self.output: visits}, numbers, lost, states, arrive, memory, epsilon)

    def _descend(self, at: int, live: dict[fx.Node, Visits], peaks, lost, states, arrive, memory, epsilon) -> None:
        """`back` from the call number `at`; windows grow on the way, and then fewer peaks go on together."""
        for i in range(at, len(self._down)):
            node = self._down[i]
            if node not in live:
                continue
            largest = max(v.values[0].numel() * v.values.element_size() for v in live.values())
            together = max(1, memory // (MAPS_PER_PEAK * largest))
            if together < len(peaks):
                for first in range(0, len(peaks), together):
                    some = slice(first, first + together)
                    picked = {n: v.pick(some, states[n].out) for n, v in live.items()}
                    self._descend(i, picked, peaks[some], lost[:, some], states, arrive, memory, epsilon)
                return
            rule, state, here = self._rules[node], states[node], live.pop(node)
            if epsilon and node in self._growing:
                here, dropped = here.truncated(epsilon / (4 * len(self._growing)))
                lost = lost + torch.stack([torch.zeros_like(dropped), dropped])
            if not rule.local:
                here = here.on_whole(state.out)
            below, leaked = rule.back(here if rule.factored else here.dense(), state)
            del here
            if leaked is not None:
                lost = lost + torch.stack([leaked, torch.zeros_like(leaked)])
            for parent, more in zip(rule.parents, below):
                # Several consumers of one tensor: their contributions add up.
                live[parent] = live[parent].plus(more, states[parent].out) if parent in live else more
            del below, more
        arrive(peaks, live[self.image], lost)


class Tracer(fx.Tracer):
    """torch.fx's tracer; modules that a rule is registered for are not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one call of the graph."""
        return registered(m) is not None or super().is_leaf_module(m, module_qualified_name)


def walk_plan(model: nn.Module, signed: bool = False, precision: str = "ieee") -> Walk:
    """Trace `model` and find a rule for every call that P passes, or say which has none before any work is done."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(f"batch norm {name!r} uses its batch's statistics; call model.eval() first")
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError(
            "float16 is refused for the walk: the ratios of Eq. 5 leave its range; use float32 or bfloat16"
        )
    graph, modules = _trace(model)
    for node in reversed(graph.nodes):
        # A value that nobody reads is no consumer.
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    builder = _Builder(graph, modules, signed)
    rules, pending = {}, [_output(graph)]
    image = next(node for node in graph.nodes if node.op == "placeholder")
    while pending:
        node = pending.pop()
        if node in rules or node is image:
            continue
        try:
            rules[node] = builder.rule(node)
        except (TypeError, IndexError, AttributeError, KeyError) as error:
            raise builder.refusal(node, f"its arguments are not of a form that has a rule ({error})") from error
        pending.extend(rules[node].parents)
    if not any(image in rule.parents for rule in rules.values()):
        raise NotImplementedError("no path leads from the model's output back to its image")
    for rule in rules.values():
        if isinstance(rule, Convolution):
            rule.precision = precision
    return Walk(graph, modules, builder.constants, rules)


def _trace(model: nn.Module) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """The graph of the model in evaluation mode. Modules are copied, parameters are shared."""
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    model = copy.deepcopy(model, shared).eval()
    overwriting = {name for name, module in model.named_modules() if getattr(module, "inplace", False)}
    for name in overwriting:
        model.get_submodule(name).inplace = False
    try:
        graph = Tracer().trace(model)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
        where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "its code"
        raise ValueError(f"torch.fx cannot trace the model at {where} ({error})") from error
    _out_of_place(graph, overwriting)
    return graph, dict(model.named_modules()) | {"": model}


def _output(graph: fx.Graph) -> fx.Node:
    (out,) = next(node for node in graph.nodes if node.op == "output").args
    if not isinstance(out, fx.Node):
        raise NotImplementedError("the model must return one tensor, its class response maps")
    return out


def _out_of_place(graph: fx.Graph, overwriting: set[str]) -> None:
    """Turn in-place calls into plain ones; later readers of the overwritten tensor read the new one, as they did.

    `overwriting` names the modules that worked in place.
    """
    plain = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
             operator.itruediv: operator.truediv, torch.relu_: torch.relu, F.relu_: torch.relu}  # fmt: skip
    nodes = list(graph.nodes)
    for i, node in enumerate(nodes):
        inplace = node.kwargs.get("inplace", False) or (node.op == "call_module" and node.target in overwriting)
        if node.op == "call_function" and node.target in plain:
            node.target, inplace = plain[node.target], True
        elif node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
            node.target, inplace = node.target[:-1], True
        elif node.op == "call_function" and getattr(node.target, "__name__", "").endswith("_"):
            name = node.target.__name__[:-1]
            node.target, inplace = getattr(F, name, None) or getattr(torch, name), True
        if "inplace" in node.kwargs:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
        if inplace and isinstance(node.args[0], fx.Node):
            later = set(nodes[i + 1 :])
            if any(user in later for alias in _aliases(node.args[0]) for user in alias.users):
                raise NotImplementedError(
                    f"peak back-propagation cannot pass {getattr(nodes[i].target, '__name__', nodes[i].target)} "
                    f"({node.name}): it overwrites {node.args[0].name}, whose memory another tensor shares "
                    "that is read later; use the out-of-place form in the model"
                )
            node.args[0].replace_all_uses_with(node, delete_user_cb=lambda user, later=later: user in later)


VIEWS = ("getitem", "chunk", "split", "tensor_split", "unbind", "narrow", "view", "reshape", "flatten", "unflatten",
         "squeeze", "unsqueeze", "permute", "transpose", "expand", "expand_as", "contiguous",
         "detach")  # fmt: skip


def _aliases(node: fx.Node) -> list[fx.Node]:
    """The other nodes that may share this tensor's memory, as views of it or of what it is a view of."""

    def is_view(n: fx.Node) -> bool:
        return call_name(n) in VIEWS

    root = node
    while is_view(root):
        root = root.args[0]
    found = [root]
    for n in found:
        found += [user for user in n.users if is_view(user) and user not in found]
    return [n for n in found if n is not node and not (is_view(n) and not n.users)]


def call_name(node: fx.Node) -> str:
    """The name of the function or method that a node calls; "" for modules, whatever their place is called."""
    if node.op == "call_function":
        return getattr(node.target, "__name__", "")
    return node.target if node.op == "call_method" else ""


def is_size(node: fx.Node) -> bool:
    """Whether a node reads a tensor's size or computes with it, and no values."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(is_size(n) for n in inputs)


def reduced_axes(node: fx.Node) -> tuple[set[int], fx.Node]:
    """The axes of a map (N, C, H, W) that `mean` or `amax` calls reduce, one after another perhaps, and that map."""
    name, calls = call_name(node), []
    while call_name(node) == name:
        calls.insert(0, node)
        node = node.args[0]
    left, axes = [0, 1, 2, 3], set()
    for call in calls:
        dims = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else ())
        dims = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (tuple, list)) else []
        over = {left[d] for d in dims if -len(left) <= d < len(left)}
        axes |= over
        if not call.kwargs.get("keepdim", call.args[2] if len(call.args) > 2 else False):
            left = [axis for axis in left if axis not in over]
    return axes, node


def _execute(node: fx.Node, env: dict, modules: dict[str, nn.Module]) -> Any:
    """What the model's own code does at this node."""
    args, kwargs = (fx.node.map_arg(a, lambda n: env[n]) for a in (node.args, node.kwargs))
    if node.op == "get_attr":
        return operator.attrgetter(node.target)(modules[""])
    if node.op == "call_module":
        return modules[node.target](*args, **kwargs)
    return (
        node.target(*args, **kwargs)
        if node.op == "call_function"
        else getattr(args[0], node.target)(*args[1:], **kwargs)
    )


UNREAD = object()  # default of an argument that a rule does not look at


class _Builder:
    """Finds the rule of a node. Nodes that do not depend on the image are constants and evaluated once, here."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module], signed: bool):
        self.modules, self.signed = modules, signed
        self.constants: dict[fx.Node, Any] = {}
        dynamic = set()
        for node in graph.nodes:
            if node.op == "placeholder" or any(n in dynamic for n in node.all_input_nodes):
                dynamic.add(node)
            elif node.op != "output":
                with torch.no_grad():
                    self.constants[node] = _execute(node, self.constants, modules)
        norms = ((conv, self._norm_behind(conv)) for conv in graph.nodes if _is_convolution(self, conv))
        self.folded = {conv: norm for conv, norm in norms if norm is not None}

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The module that the node calls, unless it has a rule of the user's: then nothing else is known of it."""
        module = self.modules[node.target] if node.op == "call_module" else None
        return None if module is None or registered(module) else module

    def rule(self, node: fx.Node) -> Rule:
        if node.op == "call_module":
            module = self.modules[node.target]
            if (function := registered(module)) is not None:
                sources = []
                fx.node.map_arg((node.args, node.kwargs), sources.append)
                sources = [n for n in sources if n not in self.constants and not is_size(n)]
                return Registered(sources, function, module, node.target)
            for types, build in MODULE_RULES:
                if isinstance(module, types):
                    return build(self, node, module)
        elif node.op == "call_function" and self.stochastic_depth(node):
            return Rule(node.args[0])
        elif node.op == "call_function" and node.target in FUNCTION_RULES:
            return FUNCTION_RULES[node.target](self, node)
        elif node.op == "call_method" and node.target in METHOD_RULES:
            return METHOD_RULES[node.target](self, node)
        raise self.refusal(node, "no rule is known for it")

    def refusal(self, node: fx.Node, why: str) -> NotImplementedError:
        """The error that names operator and place."""
        if node.op == "call_module":
            what, whose = f"{type(self.modules[node.target]).__name__} at {node.target!r}", "its type"
        else:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            place = f" in {stack[-1][0]!r}" if stack and stack[-1][0] else " in the model itself"
            # A graph that was traced before no longer tells.
            place = "" if isinstance(self.modules[""], fx.GraphModule) else place
            what = f"{getattr(node.target, '__name__', node.target)} ({node.name}){place}"
            whose = "the type of the module that calls it"
        return NotImplementedError(
            f"peak back-propagation cannot pass {what}: {why}; replace it in the model by layers that have a rule, "
            f"or give {whose} a rule with prm.accelerated.register_rule"
        )

    def learned(self, node: fx.Node) -> bool:
        """Whether a constant is a parameter or buffer of the model, or computed from one."""
        if node.op == "get_attr":
            return not node.target.split(".")[-1].startswith("_tensor_constant")  # fx's name for a literal tensor
        return any(self.learned(n) for n in node.all_input_nodes)

    def value(self, argument: Any, node: fx.Node) -> Any:
        """A call's argument that must not depend on the image: a number, a weight, a tuple of numbers, or None."""

        def constant(n: fx.Node) -> Any:
            if n not in self.constants:
                raise self.refusal(node, f"its argument {n.name} depends on the image")
            return self.constants[n]

        return fx.node.map_arg(argument, constant)

    def arguments(self, node: fx.Node, **defaults: Any) -> list[Any]:
        """The call's arguments after the first tensor, by the names and defaults given and in that order."""
        given = dict(zip(defaults, node.args[1:])) | {k: v for k, v in node.kwargs.items() if k in defaults}
        read = [(name, default) for name, default in defaults.items() if default is not UNREAD]
        return [self.value(given.get(name, default), node) for name, default in read]

    def source_and_pad(self, node: fx.Node) -> tuple[fx.Node, tuple[int, int, int, int]]:
        """The node's first input, seen through a zero pad: what U_hat is taken from, and the pad around it."""
        source, pad, behind = node.args[0], (0, 0, 0, 0), node.args[0]
        while behind.op != "placeholder":
            more = self._zero_pad(behind)
            if more is None and not self.passes(behind):
                break
            behind = behind.args[0]
            if more is not None:
                source, pad = behind, tuple(a + b for a, b in zip(pad, more))
        return source, pad

    def _zero_pad(self, node: fx.Node) -> tuple[int, int, int, int] | None:
        if isinstance(module := self.layer(node), nn.ZeroPad2d | nn.ConstantPad2d):
            amounts, mode, value = module.padding, "constant", module.value
        elif node.op == "call_function" and node.target in (F.pad, torch.constant_pad_nd):
            amounts, mode, value = self.arguments(node, pad=None, mode="constant", value=None)
        else:
            return None
        zero = mode == "constant" and not value and len(amounts) % 2 == 0 and min(amounts) >= 0
        if not zero or any(amounts[4:]):
            return None
        return (*amounts, 0, 0)[:4]

    def _norm_behind(self, conv: fx.Node) -> fx.Node | None:
        """The batch norm that is the convolution's only consumer, identity or dropout between them allowed."""
        users = list(conv.users)
        while len(users) == 1:
            if self.norm(users[0]) is not None:
                return users[0]
            users = list(users[0].users) if self.passes(users[0]) else []
        return None

    def passes(self, node: fx.Node) -> bool:
        """Identity, dropout, or stochastic depth, which in evaluation mode does nothing either."""
        if node.op == "call_module":
            return isinstance(self.layer(node), (nn.Identity, nn.modules.dropout._DropoutNd))
        return node.op == "call_function" and (node.target in DROPOUTS or self.stochastic_depth(node))

    def stochastic_depth(self, node: fx.Node) -> bool:
        """Whether the node calls a wrapped `stochastic_depth(input, p, mode, training)` with training off."""
        if call_name(node) != "stochastic_depth":
            return False
        if self.arguments(node, p=UNREAD, mode=UNREAD, training=True)[0]:
            raise self.refusal(node, "its argument `training` is on; pass self.training, and call model.eval()")
        return True

    def weight(self, conv: fx.Node) -> Tensor:
        """A convolution's weight."""
        module = self.layer(conv)
        return self.arguments(conv, weight=None)[0] if module is None else module.weight

    def sees_image(self, node: fx.Node) -> bool:
        """Whether a tensor is the image itself, but for normalisation, padding, slicing, joining and reshaping."""
        if node.op == "placeholder":
            return True
        name = call_name(node)
        plain = name in (*AFFINE, *VIEWS, "cat", "concat", "concatenate") or self.passes(node)
        plain |= self.norm(node) is not None or self._zero_pad(node) is not None
        plain |= isinstance(self.layer(node), NORMS) or node.target in NORM_FUNCTIONS
        inputs = [n for n in node.all_input_nodes if n not in self.constants]
        return plain and all(self.sees_image(n) for n in inputs)

    def norm(self, node: fx.Node):
        """(mean, variance, gamma, beta, eps) of a batch norm in evaluation mode, or None if the node is none."""
        if isinstance(m := self.layer(node), nn.BatchNorm2d):
            return m.running_mean, m.running_var, m.weight, m.bias, m.eps
        if node.op == "call_function" and node.target is F.batch_norm:
            mean, var, gamma, beta, training, _, eps = self.arguments(
                node,
                running_mean=None,
                running_var=None,
                weight=None,
                bias=None,
                training=False,
                momentum=0.1,
                eps=1e-5,
            )
            if training or mean is None:
                raise ValueError(
                    f"functional batch norm {node.name!r} uses its batch's statistics; call model.eval() first"
                )
            return mean, var, gamma, beta, eps
        return None


# ----------------------------------------------------------------------------------------- from a call to its rule


def _pair(value) -> list[int]:
    return [value, value] if isinstance(value, int) else [value[0], value[-1]]


def _is_convolution(b: _Builder, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(b.layer(node), nn.Conv2d)
    return node.op == "call_function" and node.target in (F.conv2d, torch.conv2d)


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
    padding = padding if isinstance(padding, str) else _pair(padding)
    return Convolution(
        source, weight, bias, _pair(stride), padding, _pair(dilation), groups, pad, b.signed and b.sees_image(source)
    )


def _conv_module(b, node, m):
    if m.padding_mode != "zeros":
        raise b.refusal(node, f"its padding mode is {m.padding_mode!r}, and only zeros have a rule")
    return _convolution(b, node, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _conv_function(b, node):
    return _convolution(b, node, *b.arguments(node, weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1))


def _batch_norm(b, node, *_):
    # On its own it passes P on unchanged, per channel, also where gamma <= 0: a stated approximation.
    return (FoldedNorm if node in b.folded.values() else Rule)(node.args[0])


def _unchanged(b, node, *_):
    return Rule(node.args[0])


def _norm(b, node, *_):
    return Norm(node.args[0])


def _layer_norm(b, node, m=None):
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
    geometry = tuple(_pair(v) for v in (kernel, kernel if stride in (None, []) else stride, padding, dilation))
    return MaxPool(node.args[0], lambda U: F.max_pool2d(U, return_indices=True, **options), geometry)


def _max_pool_module(b, node, m):
    return _max_pool(b, node, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def _max_pool_function(b, node):
    return _max_pool(b, node, *b.arguments(
        node, kernel_size=None, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False))  # fmt: skip


def _adaptive_max_pool(b, node, size, return_indices=False):
    if return_indices:
        raise b.refusal(node, "it returns indices too")
    return MaxPool(node.args[0], lambda U: F.adaptive_max_pool2d(U, size, return_indices=True))


def _avg_pool(b, node, kernel, stride, padding, ceil_mode, count_include_pad, divisor):
    source, pad = b.source_and_pad(node)
    kernel, padding = _pair(kernel), _pair(padding)
    stride = kernel if stride in (None, []) else _pair(stride)

    def pool(U: Tensor, include_pad=count_include_pad, divisor=divisor) -> Tensor:
        U = F.pad(U, pad) if any(pad) else U
        return F.avg_pool2d(U, kernel, stride, padding, ceil_mode, include_pad, divisor)

    def weights(U: Tensor) -> Tensor:
        """The sum of each output's weights, where the divisor is not their number: those on padding count or do not."""
        inside = pool(torch.ones_like(U), False, divisor)
        return inside / pool(torch.ones_like(U), True, None) if count_include_pad else inside

    if ceil_mode or (any(padding) and not count_include_pad):
        # Its last windows may reach beyond the padding, or their weights differ: no convolution's do.
        return FixedWeights(source, lambda U, _: pool(U), None if divisor is None else weights)
    return AveragePooling(source, pool, kernel, stride, padding, pad)


def _avg_pool_module(b, node, m):
    return _avg_pool(b, node, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)


def _avg_pool_function(b, node):
    return _avg_pool(b, node, *b.arguments(
        node, kernel_size=None, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
        divisor_override=None))  # fmt: skip


def _adaptive_avg_pool(b, node, *_):
    # The size may come from another tensor: the walk takes it from the output.
    return FixedWeights(node.args[0], lambda U, size: F.adaptive_avg_pool2d(U, size))


def _mean(b, node):
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


def _interpolate_module(b, node, m):
    return _interpolate(b, node, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor, False)


def _interpolate_function(b, node):
    # The size may come from another tensor: the walk takes it from the output.
    return _interpolate(b, node, *b.arguments(
        node, size=UNREAD, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
        antialias=False))  # fmt: skip


def _operands(b, node) -> list[tuple[Any, bool]]:
    """The two operands of a binary call, each with whether it depends on the image."""
    other = node.kwargs.get("other", node.args[1] if len(node.args) > 1 else None)
    return [(o, isinstance(o, fx.Node) and o not in b.constants) for o in (node.args[0], other)]


def _add(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    # A constant takes no share.
    if not (x_dynamic and y_dynamic):
        return Scaling(x if x_dynamic else y)
    return Addition(x, y, b.value(node.kwargs.get("alpha", 1), node))


def _subtract(b, node):
    (x, x_dynamic), (_, y_dynamic) = _operands(b, node)
    if not x_dynamic or y_dynamic:
        raise b.refusal(node, "only a constant may be subtracted")
    return Scaling(x)


def _positive(b, constant) -> bool:
    value = b.constants.get(constant, constant) if isinstance(constant, fx.Node) else constant
    return bool((torch.as_tensor(value) > 0).all())


def _divide(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    if not x_dynamic or y_dynamic or not _positive(b, y):
        raise b.refusal(node, "only division by a positive constant has a rule")
    return Scaling(x)


def _multiply(b, node):
    (x, x_dynamic), (y, y_dynamic) = _operands(b, node)
    if x_dynamic and y_dynamic:
        return Scaling(_gated(b, node, x, y))
    factor = y if x_dynamic else x
    # A learned factor of either sign passes P on unchanged, like gamma of a batch norm that is not folded.
    if not (isinstance(factor, fx.Node) and b.learned(factor)) and not _positive(b, factor):
        raise b.refusal(node, "only multiplication by a positive number, a parameter or a gate has a rule")
    return Scaling(x if x_dynamic else y)


def _gated(b, node, x: fx.Node, y: fx.Node) -> fx.Node:
    """The operand that P goes to: the one that is not the gate."""
    for is_gate in (_is_squashed, _is_broadcast, _has_one_channel):
        x_gate, y_gate = is_gate(b, x), is_gate(b, y)
        if x_gate != y_gate:
            return y if x_gate else x
    # An activation written out, x * g(x): slope 1, like every activation.
    if _elementwise_root(b, y, ()) in (x, _elementwise_root(b, x, AFFINE)):
        return x
    if _elementwise_root(b, x, ()) in (y, _elementwise_root(b, y, AFFINE)):
        return y
    raise b.refusal(node, "both operands are full maps and neither is a sigmoid, hard-sigmoid or softmax gate")


def _elementwise_root(b, node: fx.Node, only: tuple[str, ...]) -> fx.Node:
    """The tensor that `node` was computed from by elementwise steps, each with one input that depends on the image."""
    while node.op != "placeholder":
        inputs = [n for n in node.all_input_nodes if n not in b.constants]
        name = call_name(node)
        known = name in AFFINE or (not only and (name in ELEMENTWISE or _is_activation(b, node)))
        if len(inputs) != 1 or not known:
            return node
        (node,) = inputs
    return node


def _is_activation(b, node) -> bool:
    return isinstance(b.layer(node), ACTIVATIONS) or node.target in ACTIVATION_FUNCTIONS


def _is_squashed(b, node) -> bool:
    while b.passes(node) or call_name(node) in VIEWS:
        node = node.args[0]
    if node.op == "call_module":
        return isinstance(b.layer(node), (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d))
    names = ("sigmoid", "hardsigmoid", "softmax")
    return call_name(node) in names


def _has_one_channel(b, node) -> bool:
    """Whether the node is a convolution to one channel, or was computed elementwise from one."""
    root = _elementwise_root(b, node, ())
    return _is_convolution(b, root) and b.weight(root).shape[0] == 1


def _is_broadcast(b, node) -> bool:
    """Whether every path from the image to this node goes through a global pooling, so that it has one position."""
    if node.op == "placeholder":
        return False
    if call_name(node) in ("size", "dim", "getattr"):
        return True  # a number, not a map
    if isinstance(m := b.layer(node), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return m.output_size in (1, (1, 1))
    if node.op == "call_function" and node.target in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        return node.kwargs.get("output_size", node.args[1] if len(node.args) > 1 else None) in (1, (1, 1), [1, 1])
    name = call_name(node)
    if name in ("mean", "amax"):
        axes, source = reduced_axes(node)
        return axes >= {2, 3} or _is_broadcast(b, source)
    if name in ("expand", "expand_as"):
        return _is_broadcast(b, node.args[0])
    inputs = [n for n in node.all_input_nodes if n not in b.constants]
    return bool(inputs) and all(_is_broadcast(b, n) for n in inputs)


def _concatenate(b, node):
    sources = node.args[0] if node.args else node.kwargs["tensors"]
    if any(s in b.constants for s in sources):
        raise b.refusal(node, "it concatenates a constant")
    dim = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else 0))
    return Concatenation(sources, dim)


def _replay(b, node, source) -> Callable[[Tensor], Tensor]:
    """The node's call as a function of its first tensor."""
    env = {**b.constants}
    return lambda t: _execute(node, env | {source: t}, b.modules)


def _selection(b, node):
    if any(n is not node.args[0] and n not in b.constants for n in node.all_input_nodes):
        raise b.refusal(node, "where it cuts depends on the image's values or size")
    return Selection(node.args[0], _replay(b, node, node.args[0]))


def _getitem(b, node):
    parts = node.args[0]
    if call_name(parts) in ("chunk", "split", "tensor_split", "unbind"):
        cut, source = _replay(b, parts, parts.args[0]), parts.args[0]
        return Selection(source, lambda t: cut(t)[node.args[1]])
    return _selection(b, node)


def _reshape(b, node, *_):
    return Reshape(node.args[0])


def _expand(b, node):
    return Expansion(node.args[0])


def _attention(b, node, *_):
    raise b.refusal(node, "attention multiplies tensors that all depend on the image, and Eq. 5 needs fixed weights")


def _product(b, node):
    raise b.refusal(node, "a matrix product of two tensors, as in attention, has none: Eq. 5 needs fixed weights")


ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign,
)  # fmt: skip
ACTIVATION_FUNCTIONS = (
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.prelu, F.rrelu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish,
    F.sigmoid, torch.sigmoid, F.logsigmoid, F.tanh, torch.tanh, F.hardtanh, F.hardswish, F.hardsigmoid, F.softplus,
    F.softsign,
)  # fmt: skip
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)
NORM_FUNCTIONS = (F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm)
AFFINE = ("add", "mul", "truediv", "div", "sub")
ELEMENTWISE = ("erf", "exp", "log1p", "clamp", "pow", "relu", "sigmoid", "tanh")
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)

MODULE_RULES: list[tuple[Any, Callable]] = [
    (nn.Conv2d, _conv_module),
    (nn.BatchNorm2d, _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (NORMS, _norm),
    (ACTIVATIONS, _unchanged),
    ((nn.Identity, nn.modules.dropout._DropoutNd), _unchanged),
    (nn.MaxPool2d, _max_pool_module),
    (nn.AdaptiveMaxPool2d, lambda b, node, m: _adaptive_max_pool(b, node, m.output_size, m.return_indices)),
    (nn.AvgPool2d, _avg_pool_module),
    (nn.AdaptiveAvgPool2d, _adaptive_avg_pool),
    (nn.Upsample, _interpolate_module),
    (nn.Linear, lambda b, node, m: Linear(node.args[0], m.weight.detach())),
    ((nn.Flatten, nn.Unflatten), _reshape),
    (nn.MultiheadAttention, _attention),
    ((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), lambda b, node, m: _selection(b, node)),
]
FUNCTION_RULES: dict[Callable, Callable] = {
    **dict.fromkeys((F.conv2d, torch.conv2d), _conv_function),
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    **dict.fromkeys((F.group_norm, F.instance_norm, F.local_response_norm), _norm),
    **dict.fromkeys((*ACTIVATION_FUNCTIONS, *DROPOUTS), _unchanged),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool_function),
    F.adaptive_max_pool2d: lambda b, node: _adaptive_max_pool(
        b, node, *b.arguments(node, output_size=None, return_indices=False)),
    F.avg_pool2d: _avg_pool_function,
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    torch.mean: _mean,
    F.interpolate: _interpolate_function,
    F.linear: lambda b, node: Linear(node.args[0], b.arguments(node, weight=None)[0].detach()),
    **dict.fromkeys((operator.add, torch.add), _add),
    **dict.fromkeys((operator.sub, torch.sub, torch.subtract), _subtract),
    **dict.fromkeys((operator.mul, torch.mul, torch.multiply), _multiply),
    **dict.fromkeys((operator.truediv, torch.div, torch.divide), _divide),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concatenate),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze), _reshape),
    **dict.fromkeys((torch.permute, torch.transpose, torch.narrow, F.pixel_shuffle, F.pixel_unshuffle), _selection),
    operator.getitem: _getitem,
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm, torch.einsum), _product),
    F.scaled_dot_product_attention: _attention,
}  # fmt: skip
METHOD_RULES: dict[str, Callable] = {
    **dict.fromkeys(("relu", "sigmoid", "tanh", "contiguous", "clone", "float"), _unchanged),
    "add": _add, "sub": _subtract, "subtract": _subtract, "mul": _multiply, "multiply": _multiply, "div": _divide,
    "divide": _divide, "mean": _mean,
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("permute", "transpose", "narrow"), _selection),
    **dict.fromkeys(("expand", "expand_as"), _expand), **dict.fromkeys(("matmul", "bmm"), _product),
}  # fmt: skip
