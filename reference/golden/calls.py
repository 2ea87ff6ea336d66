"""All cases, in porting order, each as one call with all its arguments."""

from collections.abc import Iterator
from dataclasses import dataclass

from . import network, peak_backprop, peak_stimulation, pseudo_labels, retrieval
from .functions import FUNCTIONS, defaults

CASES = {
    **peak_stimulation.CASES, **peak_backprop.CASES, **network.CASES, **retrieval.CASES, **pseudo_labels.CASES,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One call: the function's dotted name in `prm.reference`, the edge it covers, its arguments by name."""

    name: str
    function: str
    sentence: str
    arguments: dict


def cases() -> Iterator[Case]:
    """All cases, in porting order. Nothing in them is random."""
    for function in FUNCTIONS:
        module, short = function.split(".")
        short = f"network_{short}" if module == "network" else short
        for name, sentence, arguments in CASES[function]:
            yield Case(f"{short}_{name}" if name else short, function, sentence, _complete(function, arguments))


def _complete(function, arguments):
    """The arguments with those that have a default in the oracle written out: a port needs no defaults."""
    source = "peak_stimulation.forward" if function == "peak_stimulation.backward" else function
    return {**arguments, **{key: value for key, value in defaults(source).items() if key not in arguments}}
