"""The oracle: every equation of the papers as written, slow, in float64, without torch.

| paper       | module             |
|-------------|--------------------|
| Eq. 1-3     | `peak_stimulation` |
| Eq. 4-5     | `peak_backprop`    |
| the network | `network`          |
| Eq. 6, Algorithm 1 | `retrieval` |
| WISE        | `pseudo_labels`    |
"""

from . import network, peak_backprop, peak_stimulation, pseudo_labels, retrieval

__all__ = ["network", "peak_backprop", "peak_stimulation", "pseudo_labels", "retrieval"]
