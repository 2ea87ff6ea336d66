"""Retrieval (section 3.4): run-length proposals, Eq. 6, the choice among proposals, suppression.

`masks` holds the proposals, `runs` the operators on their runs with `loops` behind them on a CPU, `scores` Eq. 6 and
the best proposal, `suppress` what becomes of instances that overlap, `choice` the two stages that end Algorithm 1.
"""

from .choice import Choice, Fit, choose, fit
from .masks import CHUNK, Proposals, checked_indices
from .runs import run_contours, run_intersections, run_resize, run_sums, sums_over_runs
from .scores import Prepared, background, best, best_proposal, first_maximum, prepare, score, terms
from .suppress import merged, nms, suppression

__all__ = [
    "CHUNK", "Choice", "Fit", "Prepared", "Proposals", "background", "best", "best_proposal", "checked_indices",
    "choose", "first_maximum", "fit", "merged", "nms", "prepare", "run_contours", "run_intersections", "run_resize",
    "run_sums", "score", "sums_over_runs", "suppression", "terms",
]  # fmt: skip
