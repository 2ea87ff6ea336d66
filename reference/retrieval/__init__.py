"""Retrieval (Zhou et al., CVPR 2018, section 3.4): `scores` has Eq. 6, `algorithm` Algorithm 1 with non-maximum
suppression, `log_linear` a second choice among proposals, which is not the paper's."""

from .algorithm import Instance, image_position, nms, overlap, segment, select_classes, select_peaks
from .log_linear import SEED_PIXEL, TERMS, best_fit, confident_score, fit_score, fit_terms, smoothed
from .scores import background, best_proposal, contour, enlarged_response, resize_nearest, score, terms

__all__ = [
    "SEED_PIXEL", "TERMS", "Instance", "background", "best_fit", "best_proposal", "confident_score", "contour",
    "enlarged_response", "fit_score", "fit_terms", "image_position", "nms", "overlap", "resize_nearest", "score",
    "segment", "select_classes", "select_peaks", "smoothed", "terms",
]  # fmt: skip
