"""Golden vectors: small cases of every equation with the oracle's answers, as files for ports that speak no Python.

`golden.md` describes the files and every function in them; `write` puts it beside them. `check` holds an implementation
against such a folder.
"""

from .calls import CASES, Case, cases
from .checking import Result, check
from .functions import FUNCTIONS, ORACLE, defaults
from .inputs import array, mask, numbers, visits
from .network import NETWORKS
from .writing import write

__all__ = [
    "CASES", "FUNCTIONS", "NETWORKS", "ORACLE", "Case", "Result", "array", "cases", "check", "defaults",
    "mask", "numbers", "visits", "write",
]  # fmt: skip
