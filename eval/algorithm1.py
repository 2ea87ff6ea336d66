"""Algorithm 1 (section 3.4) taken apart: one walk of a picture, then any proposals, weights and thresholds.

The forward pass and the walks cost most and do not depend on the proposals; the sums of Eq. 6 do not depend on its
weights. `Segmenter` does the same in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prm.accelerated import Proposals, SegmentationSettings, Segmenter
from prm.accelerated.peak_stimulation import enlarge
from prm.accelerated.retrieval import background, best, prepare, score, suppression, terms


@dataclass(frozen=True, eq=False)
class Walk:
    """A picture's peaks and their Peak Response Maps: Algorithm 1, lines 1-7. Peaks whose map is empty are left out.

    maps : (C, h, w) class response maps
    scores : (C,) class scores before the sigmoid
    peaks : (P, 3) int64, rows (class, row, column) on the enlarged maps
    share : (P,) each peak's response as a share of its class's strongest
    response : (P,) its response
    prms : (P, H, W), network input size, each with sum 1
    positions : (P, 2) row and column in the picture, pixel centres at integers
    """

    maps: Tensor
    scores: Tensor
    peaks: Tensor
    share: Tensor
    response: Tensor
    prms: Tensor
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class Fit:
    """The sums of Eq. 6 of every peak with every proposal, (P, K, 3), by the bias that makes Q; see `terms`."""

    proposals: Proposals
    sums: dict[float, Tensor]
    allowed: Tensor
    area: int


@dataclass(frozen=True, eq=False)
class Choice:
    """Instances that are left after suppression, by falling score: which peak, which proposal, class and score."""

    peaks: np.ndarray
    proposals: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@torch.no_grad()
def respond(segmenter: Segmenter, image: np.ndarray) -> tuple[Tensor, Tensor]:
    """Class response maps (C, h, w) and class scores (C,) of a picture (H, W, 3) uint8, without any walk."""
    maps = segmenter.prepare([image], segmenter.input_size(*image.shape[:2])).maps[0]
    return maps, segmenter.peaks(maps)[0]


@torch.no_grad()
def walk(segmenter: Segmenter, image: np.ndarray, *settings: SegmentationSettings) -> Walk:
    """Walk back from the peaks of a picture (H, W, 3) uint8 that pass any of `settings` (default: the segmenter's)."""
    run = segmenter.prepare([image], segmenter.input_size(*image.shape[:2]))
    maps = run.maps[0]
    scores, several, shares = zip(*(segmenter.peaks(maps, one) for one in settings or (None,)))
    scores, share = scores[0], torch.cat(shares)
    peaks, index = torch.cat(several).unique(dim=0, return_inverse=True)
    share = share.new_empty(len(peaks)).scatter(0, index, share)
    walked = run.prms(torch.cat([torch.zeros_like(peaks[:, :1]), peaks], dim=1))
    peaks, share, prms = (t[~walked.empty] for t in (peaks, share, walked.prms))
    response = enlarge(maps, segmenter.settings.upsample)[tuple(peaks.T)]
    positions = [segmenter.position(peak, maps.shape[1:], image.shape[:2]) for peak in peaks[:, 1:].tolist()]
    return Walk(maps, scores, peaks, share, response, prms, np.array(positions, np.float64).reshape(-1, 2))


def fit(found: Walk, proposals: Proposals, settings: SegmentationSettings, biases: Sequence[float] = ()) -> Fit:
    """The sums of Eq. 6, for the settings' own bias or for several."""
    size = tuple(found.prms.shape[1:])
    ready = prepare(proposals.to(found.prms.device), size, settings.contour, settings.min_area, settings.max_area)
    classes, of = found.peaks[:, 0].unique(return_inverse=True)
    biases = biases or (settings.bias,)
    sums = {b: terms(found.prms, ready, background(found.maps, classes, size, b), of).cpu() for b in biases}
    return Fit(proposals, sums, ready.allowed.cpu(), size[0] * size[1])


def choose(
    found: Walk, fitted: Fit, settings: SegmentationSettings, keep: tuple[float, float, float] = (1, 1, 1)
) -> Choice:
    """The best proposal of each peak by Eq. 6, then non-maximum suppression: Algorithm 1, lines 8-13.

    keep: factors of the instance-aware, the boundary-aware and the class-aware term; 0 leaves one out.
    """
    if not len(found.peaks) or not fitted.allowed.any():
        none = np.zeros(0, np.int64)
        return Choice(none, none, none, np.zeros(0))
    kept, peaks = torch.tensor(keep, dtype=torch.float64), found.peaks.cpu()
    values = score(fitted.sums[settings.bias] * kept, settings.alpha, settings.beta_area / fitted.area)
    choice = best(values, fitted.allowed)
    value = values.gather(1, choice[:, None])[:, 0]
    rivals = fitted.proposals.select(choice).ious() >= settings.nms
    left = list(suppression(rivals, value, peaks[:, 0], peaks[:, 1:], settings.nms_per_class))
    return Choice(np.array(left, np.int64), choice[left].numpy(), peaks[left, 0].numpy(), value[left].numpy())
