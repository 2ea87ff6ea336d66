"""Figures of merit, as pure functions of arrays: no torch, no files."""

from .bootstrap import Interval, bootstrap
from .classification import ClassificationResult, average_precision, classification_map, defined_mean
from .coco import CocoPredictions, CocoTruths, coco_average_precision
from .failures import Failures, failure_counts, failures
from .instances import (
    BestOverlaps,
    ImageRecord,
    InstanceResult,
    average_best_overlap,
    best_overlaps,
    image_ious,
    image_record,
    mean_average_precision,
    ranked_detections,
)
from .localization import localization_map, ranked_points, strongest_points
from .masks import pixel_counts
from .ranking import PrecisionRecall, Ranking
from .response import (
    QualityGroup,
    QualityResult,
    ResponseRecord,
    inside_fractions,
    quality_by_crowding,
    quality_by_size,
    ranked_responses,
    response_map_quality,
    response_record,
)
from .semantic import confusion, mean_iou, merge_instances

__all__ = [
    "BestOverlaps",
    "ClassificationResult",
    "CocoPredictions",
    "CocoTruths",
    "Failures",
    "ImageRecord",
    "InstanceResult",
    "Interval",
    "PrecisionRecall",
    "QualityGroup",
    "QualityResult",
    "Ranking",
    "ResponseRecord",
    "average_best_overlap",
    "average_precision",
    "best_overlaps",
    "bootstrap",
    "classification_map",
    "coco_average_precision",
    "confusion",
    "defined_mean",
    "failure_counts",
    "failures",
    "image_ious",
    "image_record",
    "inside_fractions",
    "localization_map",
    "mean_average_precision",
    "mean_iou",
    "merge_instances",
    "pixel_counts",
    "quality_by_crowding",
    "quality_by_size",
    "ranked_detections",
    "ranked_points",
    "ranked_responses",
    "response_map_quality",
    "response_record",
    "strongest_points",
]
