"""From a model to its plan: every call that P passes gets its rule, or is refused before any work is done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..plan import Plan, execute, output_of
from ..rules import Registered, Rule, registered
from .calls import AFFINE, DROPOUTS, NORM_FUNCTIONS, NORMS, UNREAD, VIEWS, call_name, is_size, path_of, source_of
from .graph import trace
from .tables import FUNCTION_RULES, METHOD_RULES, MODULE_RULES


def make_plan(model: nn.Module, signed: bool = False, precision: str = "ieee") -> Plan:
    """Trace `model` and find a rule for every call that P passes, or say which has none before any work is done."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(f"batch norm {name!r} uses its batch's statistics; call model.eval() first")
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError(
            "float16 is refused for the walk: the ratios of Eq. 5 leave its range; use float32 or bfloat16"
        )
    graph, modules = trace(model)
    for node in reversed(graph.nodes):
        # A value that nobody reads is no consumer.
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    builder = Builder(graph, modules, signed, precision)
    rules, pending = {}, [output_of(graph)]
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
    return Plan(graph, modules, builder.constants, rules)


class Builder:
    """Finds the rule of a node. Nodes that do not depend on the image are constants and evaluated once, here."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module], signed: bool, precision: str):
        self.modules, self.signed, self.precision = modules, signed, precision
        self.constants: dict[fx.Node, Any] = {}
        dynamic = set()
        for node in graph.nodes:
            if node.op == "placeholder" or any(n in dynamic for n in node.all_input_nodes):
                dynamic.add(node)
            elif node.op != "output":
                with torch.no_grad():
                    self.constants[node] = execute(node, self.constants, modules)
        norms = ((conv, self._norm_behind(conv)) for conv in graph.nodes if self.is_convolution(conv))
        self.folded = {conv: norm for conv, norm in norms if norm is not None}

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The module that the node calls, unless it has a rule of the user's: then nothing else is known of it."""
        module = self.modules[path_of(node)] if node.op == "call_module" else None
        return None if module is None or registered(module) else module

    def rule(self, node: fx.Node) -> Rule:
        if node.op == "call_module":
            module = self.modules[path_of(node)]
            if (function := registered(module)) is not None:
                sources: list[fx.Node] = []
                fx.node.map_arg((node.args, node.kwargs), sources.append)
                sources = [n for n in sources if n not in self.constants and not is_size(n)]
                return Registered(sources, function, module, path_of(node))
            for types, build in MODULE_RULES:
                if isinstance(module, types):
                    return build(self, node, module)
        elif node.op == "call_function" and self.stochastic_depth(node):
            return Rule(source_of(node))
        elif node.op == "call_function" and node.target in FUNCTION_RULES:
            return FUNCTION_RULES[node.target](self, node)
        elif node.op == "call_method" and node.target in METHOD_RULES:
            return METHOD_RULES[node.target](self, node)
        raise self.refusal(node, "no rule is known for it")

    def refusal(self, node: fx.Node, why: str) -> NotImplementedError:
        """The error that names operator and place."""
        if node.op == "call_module":
            what, whose = f"{type(self.modules[path_of(node)]).__name__} at {node.target!r}", "its type"
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
            return not path_of(node).split(".")[-1].startswith("_tensor_constant")  # fx's name for a literal tensor
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

    def source_and_pad(self, node: fx.Node) -> tuple[fx.Node, tuple[int, ...]]:
        """The node's first input, seen through a zero pad: what U_hat is taken from, and the pad around it."""
        source = behind = source_of(node)
        pad: tuple[int, ...] = (0, 0, 0, 0)
        while behind.op != "placeholder":
            more = self._zero_pad(behind)
            if more is None and not self.passes(behind):
                break
            behind = source_of(behind)
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

    def is_convolution(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.layer(node), nn.Conv2d)
        return node.op == "call_function" and node.target in (F.conv2d, torch.conv2d)

    def weight(self, conv: fx.Node) -> Tensor:
        """A convolution's weight."""
        module = self.layer(conv)
        return module.weight if isinstance(module, nn.Conv2d) else self.arguments(conv, weight=None)[0]

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
