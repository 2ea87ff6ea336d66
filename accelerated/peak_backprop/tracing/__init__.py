"""From a network to its plan: torch.fx traces it, tables give every call that P passes its rule."""

from .builder import make_plan
from .graph import Untraceable
from .sized import FIRST, AtEachSize

__all__ = ["FIRST", "AtEachSize", "Untraceable", "make_plan"]
