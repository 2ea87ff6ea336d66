"""The fast path: operators of torch for peak stimulation, peak back-propagation and retrieval, networks, training.

The public names live in modules of the same stem as the oracle's; this page only gathers them.
"""

from .aggregation import aggregation
from .networks import fully_convolutional, network
from .peak_backprop import PeakBackprop
from .peak_stimulation import PeakStimulation, peak_stimulation

__all__ = ["PeakBackprop", "PeakStimulation", "aggregation", "fully_convolutional", "network", "peak_stimulation"]
