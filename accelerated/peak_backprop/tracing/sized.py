"""Networks whose code looks at the sizes of its maps: torch.fx follows them at one size of the picture at a time."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .graph import Tracer, Untraceable

FIRST = (224, 224)
"""The size at which it is found out whether a network can be followed at all."""
GRAPHS = 8
"""Sizes whose graphs are kept: in training all pictures have one."""


class Sized(fx.Proxy):
    """A value of the trace that knows what it would be: a tensor without elements (on torch's meta device), several of
    them, or a number that depends on the number of pictures."""

    value: Any = None

    def __getattr__(self, name: str) -> Any:
        if name == "shape" and isinstance(self.value, Tensor):
            return (self.size(0), *self.value.shape[1:])
        if name in ("ndim", "dtype") and isinstance(self.value, Tensor):
            return getattr(self.value, name)
        return super().__getattr__(name)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self):
        return (self.tracer.create_proxy("call_function", operator.getitem, (self, i), {}) for i in range(len(self)))


class SizedTracer(Tracer):
    """Sizes are numbers, but for the number of pictures, which stays open."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size, self._computing = tuple(size), False

    def proxy(self, node: fx.Node) -> Sized:
        return Sized(node, self)

    def create_proxy(self, kind, target, args, kwargs, *rest, **options) -> Any:
        of_tensor = bool(args) and isinstance(args[0], Sized) and isinstance(args[0].value, Tensor)
        if kind == "call_method" and target == "size" and len(args) == 1 and not kwargs and of_tensor:
            return args[0].shape
        value = self._value(kind, target, args, kwargs)
        is_open = isinstance(value, int) and _counts_pictures(target, args, kwargs)
        if not (_holds_tensor(value) or isinstance(value, torch.device) or is_open):
            return value
        made: Any = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        made.value = value
        if isinstance(value, Tensor):
            made.node.meta["shape"] = tuple(value.shape)
        return made

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = _known(obj)
        return bool(value) if isinstance(value, int) else super().to_bool(obj)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._computing else super().call_module(m, forward, args, kwargs)

    @torch.no_grad()
    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """What the call gives on the meta device."""
        if kind == "placeholder":
            weight = next((p for p in self.root.parameters() if p.is_floating_point()), torch.empty(0))
            return torch.empty(1, 3, *self.size, dtype=weight.dtype, device="meta")
        args, kwargs = (fx.node.map_aggregate(part, _known) for part in (args, kwargs))
        self._computing = True  # what modules read and call then is no part of the trace
        try:
            if kind == "get_attr":
                return operator.attrgetter(target)(self.root)
            if kind == "call_module":
                return self.root.get_submodule(target).forward(*args, **kwargs)  # a user's hooks do not run
            return target(*args, **kwargs) if kind == "call_function" else getattr(args[0], target)(*args[1:], **kwargs)
        finally:
            self._computing = False


def _known(value: Any) -> Any:
    if isinstance(value, fx.proxy.Attribute):
        return getattr(_known(value.root), value.attr)
    return value.value if isinstance(value, Sized) else value


def _counts_pictures(target: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call's number is the number of pictures, or computed from it."""
    if target == "size":
        axis = args[1] if len(args) > 1 else kwargs["dim"]
        return axis % args[0].value.ndim == 0
    return any(isinstance(a, Sized) and isinstance(a.value, int) for a in (*args, *kwargs.values()))


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensor, value)))


class AtEachSize(nn.Module):
    """A network that is traced anew for every size of the picture; its parameters have the model's own names.

    model : the network, on torch's meta device: its code alone is used
    convert : from such a network and its graph to the network that runs; None: as it is

    Raises Untraceable where one size does not help either.
    """

    _code: nn.Module
    _convert: Callable[[nn.Module, fx.Graph], fx.GraphModule] | None
    _graphs: dict[tuple[int, ...], fx.Graph]

    def __init__(self, model: nn.Module, convert: Callable[[nn.Module, fx.Graph], fx.GraphModule] | None = None):
        super().__init__()
        # Nobody's parameters but those of what runs, below.
        self.__dict__ |= {"_code": without_elements(model), "_convert": convert, "_graphs": {}}
        graph, first = self._graph(FIRST), model
        if convert is not None:
            first = converted = convert(model, graph)
            graph = converted.graph
        self._graphs[FIRST] = graph
        for name, part in first.named_children():
            self.add_module(name, part)
        for name, parameter in first.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in first.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def _graph(self, size: Sequence[int]) -> fx.Graph:
        try:
            return SizedTracer(size).trace(self._code)
        except Exception as error:
            raise Untraceable(f"torch.fx cannot trace the model for pictures of {tuple(size)} ({error})") from error

    def at(self, size: Sequence[int]) -> fx.GraphModule:
        """The network for pictures (N, 3, *size)."""
        key = tuple(size)
        if key not in self._graphs:
            graph = self._graph(size)
            if self._convert is not None:
                graph = self._convert(without_elements(self._code), graph).graph
            self.__dict__["_graphs"] = dict([*self._graphs.items(), (key, graph)][-GRAPHS:])
        made, own = fx.GraphModule(self, self._graphs[key]), set(self.modules())
        for part in made.modules():
            if part not in own:
                part.training = self.training
        return made

    def forward(self, images: Tensor) -> Tensor:
        return self.at(images.shape[2:])(images)


def without_elements(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode whose parameters and buffers have shapes and no elements."""
    tensors = [*model.parameters(), *model.buffers()]
    empty = {id(t): torch.empty_like(t, device="meta") for t in tensors}
    parameters = {id(p): nn.Parameter(empty[id(p)], p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty | parameters).eval()
