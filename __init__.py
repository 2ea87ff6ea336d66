"""Peak Response Mapping (Zhou et al., CVPR 2018): instance masks from image-level labels only.

`prm.reference` is the oracle, `prm.accelerated` the fast path, `prm.eval` data, figures and the command line.
Importing this module imports none of them, and no torch. `prm.Segmenter` is `prm.eval.segmenter.Segmenter`, imported
when it is first asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, where, and what to do."""


def __getattr__(name: str) -> Any:
    if name == "Segmenter":
        return import_module("prm.eval.segmenter").Segmenter
    raise AttributeError(f"module 'prm' has no attribute {name!r}")
