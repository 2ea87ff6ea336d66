"""The plan of a traced network: its calls forward, and the rules of those that P passes, from the output down."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .prepared import Kept, Prepared, Workspace
from .rules import Addition, Convolution, FixedWeights, FoldedNorm, Rule, Sliding
from .shared import launched
from .visits import Visits

MAPS_PER_PEAK = 4  # maps of the largest layer's size that a pass holds for every peak it carries


class Plan:
    """A traced network and the rule of every call that P passes, from the output down to the image."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module], constants: dict, rules: dict[fx.Node, Rule]):
        self._modules, self._constants, self._rules = modules, constants, rules
        self._workspace = Workspace()
        self.image = next(node for node in graph.nodes if node.op == "placeholder")
        self.output = output_of(graph)
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

    @property
    def channels(self) -> int | None:
        """How many channels the images have, by a convolution that reads them; None where none does at once."""
        read = (r for r in self._rules.values() if isinstance(r, Convolution) and r.parents == (self.image,))
        return next((rule.weight.shape[1] * rule.groups for rule in read), None)

    def _may_overwrite(self, node: fx.Node) -> bool:
        """Whether a ReLU may overwrite its input: nobody else reads it, and no rule needs what it was."""
        called = type(self._modules[str(node.target)]) if node.op == "call_module" else node.target
        source = node
        while type(self._rules[node]) is Rule and called in (nn.ReLU, F.relu, torch.relu, "relu"):
            (source,) = self._rules[source].parents
            if len(source.users) != 1 or source is self.output:
                return False
            if not isinstance(self._rules.get(source), FoldedNorm):
                return type(self._rules.get(source)) in (Convolution, Addition)
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, dict[fx.Node, Kept]]:
        """Class response maps, and what the walks back need of every call that P passes."""
        env: dict[fx.Node, Any] = {**self._constants, self.image: images}
        prepared = Prepared(self._workspace)
        kept = {self.image: Kept((), (), tuple(images.shape[1:]), prepared)}
        for node, read_last in self._calls:
            run = lambda node=node: execute(node, env, self._modules)  # noqa: E731
            if node in self._rules:
                U = [env[parent] for parent in self._rules[node].parents]
                overwrite = node in self._overwriting
                env[node], tensors = (U[0].relu_(), ()) if overwrite else self._rules[node].forward(run, *U)
                below, above = tuple(tuple(u.shape[1:]) for u in U), tuple(env[node].shape[1:])
                kept[node] = Kept(tensors, below, above, prepared)
                del U
            elif node is not self.image:
                env[node] = run()
            for done in read_last:
                del env[done]
        if launched(images):
            rules = self._rules.items()
            shifting = [(n, len(r.parents)) for n, r in rules if isinstance(r, (Sliding, FixedWeights, Addition))]
            prepared.survey(U for node, count in shifting for U in kept[node].tensors[:count])
        return env[self.output], kept

    def back(
        self, visits: Visits, kept: dict[fx.Node, Kept], arrive: Callable[[np.ndarray, Visits, Tensor], None],
        memory: int, epsilon: float = 0.0,
    ) -> None:  # fmt: skip
        """From visits of the output to visits of the images' pixels.

        arrive : called with the numbers of some peaks (k,), their visits of the pixels and the mass (2, k) that leaked
            and that was dropped, until all have been given
        memory : bytes that the maps of the peaks that go down together should not exceed
        epsilon : most mass of a peak that may be dropped at its windows' ends
        """
        lost = torch.zeros(2, len(visits.values), dtype=torch.float64, device=visits.values.device)
        numbers = np.arange(len(visits.values))
        self._descend(0, {self.output: visits}, numbers, lost, kept, arrive, memory, epsilon)

    def _descend(self, at: int, live: dict[fx.Node, Visits], peaks, lost, kept, arrive, memory, epsilon) -> None:
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
                    picked = {n: v.pick(some, kept[n].above) for n, v in live.items()}
                    self._descend(i, picked, peaks[some], lost[:, some], kept, arrive, memory, epsilon)
                return
            rule, here = self._rules[node], live.pop(node)
            if epsilon and node in self._growing:
                here, dropped = here.truncated(epsilon / (4 * len(self._growing)))
                lost = lost + torch.stack([torch.zeros_like(dropped), dropped])
            if not rule.local:
                here = here.on_whole(kept[node].above)
            below, leaked = rule.back(here if rule.factored else here.dense(), kept[node])
            del here
            if leaked is not None:
                lost = lost + torch.stack([leaked, torch.zeros_like(leaked)])
            for parent, more in zip(rule.parents, below):
                # Several consumers of one tensor: their contributions add up.
                live[parent] = live[parent].plus(more, kept[parent].above) if parent in live else more
            del below, more
        arrive(peaks, live[self.image], lost)


def output_of(graph: fx.Graph) -> fx.Node:
    """The node whose value the model returns."""
    (out,) = next(node for node in graph.nodes if node.op == "output").args
    if not isinstance(out, fx.Node):
        raise NotImplementedError("the model must return one tensor, its class response maps")
    return out


def execute(node: fx.Node, env: dict, modules: dict[str, nn.Module]) -> Any:
    """What the model's own code does at this node."""
    target: Any = node.target  # a path, a function or a method's name, as the kind of call has it
    args: Any = fx.node.map_arg(node.args, lambda n: env[n])
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: env[n])
    if node.op == "get_attr":
        return operator.attrgetter(target)(modules[""])
    if node.op == "call_module":
        return modules[target](*args, **kwargs)
    return target(*args, **kwargs) if node.op == "call_function" else getattr(args[0], target)(*args[1:], **kwargs)
