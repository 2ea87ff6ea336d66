"""Figures of merit, as pure functions of arrays: no torch, no files."""

from .classification import ClassificationResult, average_precision, classification_map
from .instances import (
    ImageRecord,
    InstanceResult,
    average_best_overlap,
    image_ious,
    image_record,
    mean_average_precision,
)

__all__ = [
    "ClassificationResult",
    "ImageRecord",
    "InstanceResult",
    "average_best_overlap",
    "average_precision",
    "classification_map",
    "image_ious",
    "image_record",
    "mean_average_precision",
]
