"""The graph of a model: torch.fx's, in evaluation mode, without calls that work in place."""

from __future__ import annotations

import copy
import inspect
import operator
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..rules import registered
from .calls import VIEWS, argument, call_name, source_of


class Untraceable(ValueError):
    """torch.fx cannot follow the model's code."""


class Tracer(fx.Tracer):
    """torch.fx's tracer for classifiers: modules that a rule is registered for are not looked into, the picture is the
    only argument, all others have their defaults, and of an answer with a name the logits count."""

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        """The model and its picture."""
        _, first, *_ = inspect.signature(inspect.unwrap(root_fn)).parameters
        return root_fn, [self.root, self.create_proxy("placeholder", first, (), {})]

    def create_arg(self, a: Any) -> Any:
        """What a call of the graph is given, or the graph answers."""
        return super().create_arg(a["logits"] if isinstance(a, Mapping) and "logits" in a else a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one call of the graph."""
        return registered(m) is not None or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """The graph of the model in evaluation mode. Modules are copied, parameters are shared."""
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    model = copy.deepcopy(model, shared).eval()
    overwriting = {name for name, module in model.named_modules() if getattr(module, "inplace", False)}
    for name in overwriting:
        module: Any = model.get_submodule(name)
        module.inplace = False
    try:
        graph = Tracer().trace(model)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
        where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "its code"
        raise Untraceable(f"torch.fx cannot trace the model at {where} ({error})") from error
    _spelled_out(graph)
    _pads_apart(graph, model)
    _out_of_place(graph, overwriting)
    return graph, dict(model.named_modules()) | {"": model}


ALIASES = {"swapaxes": "transpose", "swapdims": "transpose"}


def _spelled_out(graph: fx.Graph) -> None:
    """Write what is several operators in one, or an operator's other name, as the operators that rules are for."""
    for node in graph.nodes:
        name = call_name(node)
        if name in ALIASES:
            node.target = ALIASES[name] if node.op == "call_method" else getattr(torch, ALIASES[name])
        elif name == "addcmul":
            base, one, other = (argument(node, k, f"tensor{k}") for k in range(3))
            with graph.inserting_before(node):
                value = node.kwargs.get("value", 1)
                product = graph.call_function(operator.mul, (one, other))
                product = product if value == 1 else graph.call_function(operator.mul, (product, value))
            node.op, node.target, node.args, node.kwargs = "call_function", operator.add, (base, product), {}
        elif name == "stack":
            parts, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
            with graph.inserting_before(node):
                parts = [graph.call_function(torch.unsqueeze, (part, dim)) for part in parts]
            node.target, node.args, node.kwargs = torch.cat, (parts, dim), {}


def _pads_apart(graph: fx.Graph, model: nn.Module) -> None:
    """Give convolutions that pad with copies of the map a pad of its own before them."""
    apart: dict[nn.Module, tuple[list[int], str]] = {}
    for node in graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.Conv2d) or registered(module):
            continue
        if module.padding_mode != "zeros":
            apart[module] = list(module._reversed_padding_repeated_twice), module.padding_mode
            module.padding, module.padding_mode = (0, 0), "zeros"
        if module in apart:
            with graph.inserting_before(node):
                pad, mode = apart[module]
                node.args = (graph.call_function(F.pad, (source_of(node), pad), {"mode": mode}), *node.args[1:])


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
            node.args[0].replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _aliases(node: fx.Node) -> list[fx.Node]:
    """The other nodes that may share this tensor's memory, as views of it or of what it is a view of."""

    def is_view(n: fx.Node) -> bool:
        return call_name(n) in VIEWS

    root = node
    while is_view(root):
        root = source_of(root)
    found = [root]
    for n in found:
        found += [user for user in n.users if is_view(user) and user not in found]
    return [n for n in found if n is not node and not (is_view(n) and not n.users)]
