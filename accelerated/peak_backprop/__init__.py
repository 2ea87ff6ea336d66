"""Peak back-propagation (Eqs. 4-5): a walk back from peaks, through any CNN that can be traced.

`walk` is the way in. `tracing` makes the `plan` of a network once: its calls, with the rule of each from `rules`. A
forward pass leaves what all peaks of its batch share in `prepared`, maps of it in `shared`. `visits` is P of the peaks
that go down together, on the `windows` that their receptive fields reach; `operators` carry it.
"""

from .rules import register_rule
from .walk import PeakBackprop, PeakResponseMaps, PreparedWalk

__all__ = ["PeakBackprop", "PeakResponseMaps", "PreparedWalk", "register_rule"]
