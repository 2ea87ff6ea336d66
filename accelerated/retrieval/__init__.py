"""Retrieval (section 3.4): run-length proposals, Eq. 6, the choice among proposals, suppression.

`masks` holds the proposals, `runs` the operators on their runs with `loops` behind them on a CPU, `scores` Eq. 6 and
the best proposal, `log_linear` the second choice, `suppress` what becomes of instances that overlap, `choice` the two
stages that end Algorithm 1.
"""

from .choice import Choice, Fit, choose, fit
from .log_linear import Factors, all_terms, best_fit, candidates, factors, holding, log_linear, smoothed
from .masks import CHUNK, Proposals, checked_indices
from .runs import run_contours, run_intersections, run_resize, run_sums, sums_over_runs
from .scores import Prepared, background, best, best_proposal, enlarged_response, first_maximum, prepare, score, terms
from .suppress import merged, nms, rivals, suppression

__all__ = [
    "CHUNK", "Choice", "Factors", "Fit", "Prepared", "Proposals", "all_terms", "background", "best", "best_fit",
    "best_proposal", "candidates", "checked_indices", "choose", "enlarged_response", "factors", "first_maximum", "fit",
    "holding", "log_linear", "merged", "nms", "prepare", "rivals", "run_contours", "run_intersections", "run_resize",
    "run_sums", "score", "smoothed", "sums_over_runs", "suppression", "terms",
]  # fmt: skip
