"""From a network to its plan: torch.fx traces it, tables give every call that P passes its rule."""

from .builder import make_plan

__all__ = ["make_plan"]
