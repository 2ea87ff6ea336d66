"""Algorithm 1 (Zhou et al. 2018, section 3.4): pictures and their segment proposals to instances, in five stages.

    respond -> find_peaks -> walk -> fit -> choose

Class response maps and scores; peaks that pass the thresholds; their Peak Response Maps; the sums of Eq. 6 with every
proposal; the best proposal of each peak and non-maximum suppression. What a picture costs once is apart from what is
asked many times: the first three stages know no proposals, the fourth no weights. `Segmenter` is their composition.
Proposals are handed in; this module makes none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from prm import InputError
from prm.settings import SegmentationSettings

from .aggregation import aggregation
from .checkpoint import Checkpoint
from .inputs import to_input
from .peak_backprop import PeakBackprop
from .peak_stimulation import enlarge, peak_stimulation
from .retrieval import Prepared, Proposals, background, best, merged, prepare, score, suppression, terms
from .stages import Answer, Choice, Fit, Instance, Peaks, Responses, Segmentation, Walked

MIN_SIDE = 32  # least rows and columns of the network's input


# ---- the stages


class Segmenter:
    """Algorithm 1 for pictures of any sizes.

    Parameters
    ----------
    model : classifier that maps network inputs (N, 3, H, W) to class response maps
    mean, std, contrast : how a picture becomes network input, see `to_input`
    settings : SegmentationSettings
    device : where to compute
    aggregate : the aggregation (N, C, H, W) -> (N, C) that the classifier was trained with; None is peak stimulation
        with the settings' own window, threshold and upsample
    """

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], contrast: bool = False,
        settings: SegmentationSettings | None = None, device: str = "cpu", aggregate: nn.Module | None = None,
    ):  # fmt: skip
        self.settings = s = settings or SegmentationSettings()
        self.mean, self.std, self.contrast, self.device = list(mean), list(std), contrast, device
        self.aggregate = aggregate
        self.backprop = PeakBackprop(
            model.to(device), s.upsample, signed=s.signed, epsilon=s.epsilon, precision=s.precision
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: str = "cpu", **overrides) -> Segmenter:
        """A segmenter with the checkpoint's network and settings; `overrides` replace single settings."""
        given, pool = checkpoint.input, checkpoint.aggregation
        try:
            settings = SegmentationSettings(**(checkpoint.segmentation | overrides))
            aggregate = None if pool["name"] == "peak" else aggregation(pool["name"], **pool.get("options", {}))
        except (TypeError, ValueError) as error:
            raise InputError(f"checkpoint: a setting cannot be used ({error})") from None
        contrast = given.get("contrast", False)
        return cls(checkpoint.model(), given["mean"], given["std"], contrast, settings, device, aggregate)

    def __call__(self, images: Sequence[np.ndarray], proposals: Sequence[Proposals]) -> list[Segmentation]:
        """Segment pictures (H, W, 3) uint8, each with its own proposals at its own size.

        Pictures whose network inputs have one size share a forward pass and a walk back. Raises InputError where
        proposals are not of their picture's size, and ValueError for non-finite class response maps.
        """
        return [self._segmentation(answer) for answer in self.stages(images, proposals)]

    @torch.no_grad()
    def stages(self, images: Sequence[np.ndarray], proposals: Sequence[Proposals]) -> list[Answer]:
        """What all five stages find, picture by picture; arguments and errors as for a call."""
        for image, own in zip(images, proposals, strict=True):
            if (own.height, own.width) != image.shape[:2]:
                raise InputError(
                    f"proposals are for {own.height} x {own.width}, the picture is {image.shape[0]} x {image.shape[1]}"
                )
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(self.input_size(*image.shape[:2]), []).append(i)
        answers: dict[int, Answer] = {}
        for members in groups.values():
            shared: dict[str, float] = {}
            with _timed(shared, "forward"):
                responses = self.respond([images[i] for i in members], members)
            with _timed(shared, "peaks"):
                peaks = self.find_peaks(responses)
            with _timed(shared, "walk"):
                walked = self.walk(responses, peaks)
            for i, found in zip(members, walked):
                seconds = {stage: spent / len(members) for stage, spent in shared.items()}
                with _timed(seconds, "retrieval"):
                    fitted = fit(found, proposals[i], self.settings)
                    choice = choose(found, fitted, self.settings)
                answers[i] = Answer(found, fitted, choice, seconds)
        return [answers[i] for i in range(len(images))]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the network's input for a picture."""
        factor = 1.0 if self.settings.size is None else self.settings.size / min(height, width)
        factor = min(factor, self.settings.longest / max(height, width))
        # A side of a few pixels is enlarged for itself: no network's stride leaves anything of it.
        rows, columns = (max(MIN_SIDE, round(factor * side)) for side in (height, width))
        return rows, columns

    def network_input(self, image: np.ndarray) -> Tensor:
        """(1, 3, H', W') float32, what the network sees of a picture (H, W, 3) uint8; memory as for `to_input`."""
        size = self.input_size(*image.shape[:2])
        return to_input(image, self.mean, self.std, self.contrast, size)[None].to(self.device)

    @torch.no_grad()
    def respond(self, images: Sequence[np.ndarray], numbers: Sequence[int] | None = None) -> Responses:
        """One forward pass of pictures (H, W, 3) uint8 whose network inputs have one size, and Eqs. 1-2 on its maps.

        numbers: what the pictures are called in the ValueError about a non-finite map; None counts from 0.
        """
        run = self.backprop.prepare(torch.cat([self.network_input(image) for image in images]), numbers)
        s, maps = self.settings, run.maps
        scores, peaks = peak_stimulation(maps, s.window, s.threshold, s.upsample)
        if self.aggregate is not None:
            scores = self.aggregate(maps)
        image, label, row, column = peaks.unbind(1)
        wide = enlarge(maps.to(torch.promote_types(maps.dtype, torch.float32)), s.upsample)
        response = wide[image, label, row, column]
        kind = image * maps.shape[1] + label
        strongest = response.new_full((maps.shape[0] * maps.shape[1],), float("-inf"))
        strongest = strongest.scatter_reduce(0, kind, response, "amax")[kind]
        index, last = torch.arange(len(kind), device=kind.device), len(kind)
        first = torch.full((maps.shape[0] * maps.shape[1],), last, device=kind.device)
        first = first.scatter_reduce(0, kind, index.where(response == strongest, last), "amin")[kind]
        share = torch.where(strongest > 0, response / strongest, (index == first).to(response.dtype))
        sizes = tuple((picture.shape[0], picture.shape[1]) for picture in images)
        return Responses(run, sizes, maps, scores, peaks, response, strongest, share)

    def find_peaks(self, responses: Responses, *settings: SegmentationSettings) -> Peaks:
        """The peaks that pass any of `settings` (default: the segmenter's own): Algorithm 1, lines 3-5."""
        passes = torch.stack([passing(responses, s) for s in settings or (self.settings,)]).any(dim=0)
        return Peaks(responses.peaks[passes], responses.response[passes], responses.share[passes])

    @torch.no_grad()
    def walk(self, responses: Responses, peaks: Peaks) -> list[Walked]:
        """Walk back from peaks of all pictures at once; what each picture has of it."""
        walked, found = responses.run.prms(peaks.peaks), []
        for n, size in enumerate(responses.sizes):
            mine = peaks.peaks[:, 0] == n
            kept = mine & ~walked.empty
            own, map_size = peaks.peaks[kept, 1:], responses.maps.shape[2:]
            positions = [self.position(peak, map_size, size) for peak in own[:, 1:].tolist()]
            found.append(Walked(
                size, responses.maps[n], responses.scores[n], own, peaks.response[kept], peaks.share[kept],
                np.array(positions, np.float64).reshape(-1, 2), walked.prms[kept], walked.leaked[mine],
                walked.bound[mine],
            ))  # fmt: skip
        return found

    def look(self, image: np.ndarray, *settings: SegmentationSettings) -> Walked:
        """The first three stages for one picture (H, W, 3) uint8; settings as for `find_peaks`."""
        responses = self.respond([image])
        return self.walk(responses, self.find_peaks(responses, *settings))[0]

    def _segmentation(self, answer: Answer) -> Segmentation:
        """A picture's stages as the instances that they found."""
        walked, fitted, choice = answer.walked, answer.fitted, answer.choice
        prms = merged(walked.prms, dict(zip(choice.peaks.tolist(), choice.suppressed)))
        confidence = walked.scores.sigmoid()
        instances = [
            Instance(
                label=int(walked.peaks[p, 0]), mask=fitted.proposals.select([k]), score=value,
                confidence=float(confidence[walked.peaks[p, 0]]), peak=tuple(walked.positions[p].tolist()),
                prm=prm.cpu(), proposal=k, terms=tuple(fitted.sums[p, k].tolist()),
            )
            for p, k, value, prm in zip(choice.peaks.tolist(), choice.proposals.tolist(), choice.scores.tolist(), prms)
        ]  # fmt: skip
        return Segmentation(walked.size, walked.maps.cpu(), walked.scores.cpu(), instances, len(walked.leaked),
                            walked.leaked.cpu(), walked.bound.cpu(), answer.seconds)  # fmt: skip

    def position(self, peak: Sequence[int], map_size: Sequence[int], size: Sequence[int]) -> tuple[float, float]:
        """Where a peak (row, column) of the enlarged maps lies in a picture of `size`, pixel centres at integers.

        (i + 0.5) * H_image / H_map - 0.5, i the fractional row on the un-enlarged map; columns alike.
        """
        f = self.settings.upsample
        row, column = (
            (i * (m - 1) / max(f * m - 1, 1) + 0.5) * full / m - 0.5 for i, m, full in zip(peak, map_size, size)
        )
        return row, column


def passing(responses: Responses, settings: SegmentationSettings) -> Tensor:
    """(K,) bool: which valid peaks take part, Algorithm 1, lines 3-5: by class, by response, and the strongest few."""
    s, response, strongest = settings, responses.response, responses.strongest
    image, label = responses.peaks[:, :2].unbind(1)
    if s.peak_minimum is not None:
        passes = response > s.peak_minimum
    else:
        passes = torch.where(strongest > 0, response >= s.peak_threshold * strongest, responses.share == 1)
    passes = passes & (responses.scores.sigmoid()[image, label] >= s.class_threshold)
    for n in range(len(responses.sizes)):
        mine = (passes & (image == n)).nonzero()[:, 0]
        weakest = responses.share[mine].argsort(descending=True, stable=True)[s.max_peaks :]
        passes[mine[weakest]] = False
    return passes


def fit(
    walked: Walked, proposals: Proposals, settings: SegmentationSettings, ready: Prepared | None = None
) -> Fit:  # fmt: skip
    """The sums of Eq. 6 of every peak with every proposal of its picture: Algorithm 1, line 8 without the weights.

    ready: what `retrieval.prepare` makes of the proposals for the settings and the maps' size; None: made here.
    """
    s, size = settings, (walked.prms.shape[1], walked.prms.shape[2])
    if not len(walked.peaks):  # nothing to fit: no contour is drawn
        none = torch.zeros(len(proposals), dtype=torch.bool, device=walked.prms.device)
        sums = walked.prms.new_zeros(0, len(proposals), 3, dtype=torch.float64)
        return Fit(proposals, proposals, none, sums, walked.maps[:0], walked.peaks[:, 0])
    if ready is None:
        ready = prepare(proposals.to(walked.prms.device), size, s.contour, s.min_area, s.max_area)
    classes, of = walked.peaks[:, 0].unique(return_inverse=True)
    sums = terms(walked.prms, ready, background(walked.maps, classes, size, s.bias), of)
    return Fit(proposals, ready.masks, ready.allowed, sums, walked.maps[classes], of)


def choose(
    walked: Walked, fitted: Fit, settings: SegmentationSettings, keep: tuple[float, float, float] = (1, 1, 1)
) -> Choice:
    """The best proposal of each peak by Eq. 6, then non-maximum suppression: Algorithm 1, lines 8-13.

    settings: those that `fitted` was made with. keep: factors of the instance-aware, the boundary-aware and the
    class-aware term; 0 leaves one out.
    """
    s, device = settings, fitted.sums.device
    if not len(walked.peaks) or not bool(fitted.allowed.any()):
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Choice(none, none, none.double())
    sums = fitted.sums * torch.tensor(keep, dtype=torch.float64, device=device)
    values = score(sums, s.alpha, s.beta_area / (fitted.masks.height * fitted.masks.width))
    choice = best(values, fitted.allowed)
    value = values.gather(1, choice[:, None])[:, 0]
    rivals = fitted.proposals.select(choice.to(fitted.proposals.device)).ious() >= s.nms
    left = suppression(rivals, value, walked.peaks[:, 0], walked.peaks[:, 1:], s.nms_per_class)
    kept = torch.tensor(list(left), dtype=torch.int64, device=device)
    return Choice(kept, choice[kept], value[kept], tuple(map(tuple, left.values())))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
