"""The fast path: operators of torch for peak stimulation, peak back-propagation and retrieval, networks, training.

The public names live in modules of the same stem as the oracle's; this page only gathers them.
"""

from importlib.util import find_spec

import torch

from prm.settings import SegmentationSettings

from .aggregation import aggregation
from .networks import fully_convolutional, network
from .peak_backprop import PeakBackprop, register_rule
from .peak_backprop.shared import INTERPRETED
from .peak_stimulation import PeakStimulation, peak_stimulation
from .retrieval import Proposals
from .segmenter import Instance, Segmentation, Segmenter

# Where no kernel can run, Triton is not even imported.
if find_spec("triton") and (torch.version.cuda or torch.version.hip or INTERPRETED):
    from . import kernels  # noqa: F401

__all__ = [
    "Instance", "PeakBackprop", "PeakStimulation", "Proposals", "Segmentation", "SegmentationSettings", "Segmenter",
    "aggregation", "fully_convolutional", "network", "peak_stimulation", "register_rule",
]  # fmt: skip
