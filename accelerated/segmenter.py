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
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from prm import InputError
from prm.settings import SegmentationSettings

from .aggregation import aggregation
from .checkpoint import Checkpoint
from .classes import Classes
from .inputs import scaled, to_input
from .peak_backprop import PeakBackprop
from .peak_stimulation import enlarge, peak_stimulation
from .retrieval import Choice, Fit, Proposals, choose, fit, merged
from .stages import Peaks, Responses, Walked
from .views import Views

MIN_SIDE = 32  # least rows and columns of the network's input


@dataclass(frozen=True, eq=False)
class Answer:
    """All stages of one picture.

    seconds : time by stage: forward, peaks, walk, retrieval; what a batch shares is shared evenly
    """

    walked: Walked
    fitted: Fit
    choice: Choice
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Instance:
    """One segmented instance.

    label : class index
    mask : one run-length encoded mask at the picture's own size
    score : Eq. 6
    confidence : sigmoid of the class's score
    peak : (row, column) in the picture's coordinates, pixel centres at integers
    prm : (H, W), network input size, sum 1; the PRMs of suppressed instances are merged in
    proposal : index among the proposals handed in
    terms : the three sums of Eq. 6 before weighting: R over S, R over contour(S), Q over S
    name : of the class, where the segmenter's have names
    """

    label: int
    mask: Proposals
    score: float
    confidence: float
    peak: tuple[float, float]
    prm: Tensor
    proposal: int
    terms: tuple[float, float, float]
    name: str = ""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer for one picture: instances by falling score, none being a valid answer.

    size : (H, W) of the picture
    maps : (C, h, w) class response maps
    scores : (C,) class scores before the sigmoid
    peaks : number of peaks that were walked back
    leaked : (peaks,) mass that each walk lost
    bound : (peaks,) most by which each PRM may differ from the exact one in L1; 0 with epsilon = 0
    seconds : as in `Answer`
    """

    size: tuple[int, int]
    maps: Tensor
    scores: Tensor
    instances: list[Instance]
    peaks: int = 0
    leaked: Tensor | None = None
    bound: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)


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
    classes : what the answers' labels stand for; None is the network's classes, without names

    Raises InputError for a network of pictures with more or fewer than 3 channels.
    """

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], contrast: bool = False,
        settings: SegmentationSettings | None = None, device: str = "cpu", aggregate: nn.Module | None = None,
        classes: Classes | None = None,
    ):  # fmt: skip
        self.settings = s = settings or SegmentationSettings()
        self.mean, self.std, self.contrast, self.device = list(mean), list(std), contrast, device
        self.aggregate, self.classes = aggregate, classes or Classes(())
        self.backprop = PeakBackprop(
            model.to(device), s.upsample, signed=s.signed, epsilon=s.epsilon, precision=s.precision
        )
        if (channels := self.backprop.channels) not in (3, None):
            raise InputError(f"the network reads pictures of {channels} channels, and these have 3 (red, green, blue)")

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: str = "cpu", **overrides) -> Segmenter:
        """A segmenter with the checkpoint's network and settings; `overrides` replace single settings."""
        given, pool = checkpoint.input, checkpoint.aggregation
        try:
            settings = SegmentationSettings(**(checkpoint.segmentation | overrides))
            aggregate = None if pool["name"] == "peak" else aggregation(pool["name"], **pool.get("options", {}))
            classes = Classes.from_json(checkpoint.class_names, checkpoint.classes)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"checkpoint: a setting cannot be used ({error})") from None
        contrast = given.get("contrast", False)
        return cls(checkpoint.model(), given["mean"], given["std"], contrast, settings, device, aggregate, classes)

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
        # A side of a few pixels is enlarged for itself: no network's stride leaves anything of it.
        return scaled((height, width), self.settings.size, longest=self.settings.longest, least=MIN_SIDE)

    def network_input(self, image: np.ndarray, scale: float = 1.0) -> Tensor:
        """(1, 3, H', W') float32, what the network sees of a picture (H, W, 3) uint8; memory as for `to_input`.

        scale: so many times `input_size`.
        """
        height, width = (max(MIN_SIDE, round(scale * side)) for side in self.input_size(*image.shape[:2]))
        size = (height, width)
        return to_input(image, self.mean, self.std, self.contrast, size)[None].to(self.device)

    @torch.no_grad()
    def respond(self, images: Sequence[np.ndarray], numbers: Sequence[int] | None = None) -> Responses:
        """One forward pass of pictures (H, W, 3) uint8 whose network inputs have one size, and Eqs. 1-2 on its maps.

        numbers: what the pictures are called in the ValueError about a non-finite map; None counts from 0.
        """
        s = self.settings
        inputs = [torch.cat([self.network_input(image, scale) for image in images]) for scale in (1, *s.scale_factors)]
        alone = s.views == len(inputs) == 1
        run = self.backprop.prepare(inputs[0], numbers) if alone else Views(self.backprop, inputs, s.views, numbers)
        maps = self.classes.maps(run.maps)
        scores, peaks = peak_stimulation(maps, s.window, s.threshold, s.upsample)
        if self.aggregate is not None:
            scores = self.aggregate(maps)
        image, label, row, column = peaks.unbind(1)
        response = self._enlarged(maps)[image, label, row, column]
        kind = image * maps.shape[1] + label
        strongest = response.new_full((maps.shape[0] * maps.shape[1],), float("-inf"))
        strongest = strongest.scatter_reduce(0, kind, response, "amax")[kind]
        index, last = torch.arange(len(kind), device=kind.device), len(kind)
        first = torch.full((maps.shape[0] * maps.shape[1],), last, device=kind.device)
        first = first.scatter_reduce(0, kind, index.where(response == strongest, last), "amin")
        share = torch.where(strongest > 0, response / strongest, (index == first[kind]).to(response.dtype))
        if self.classes.exclusive:  # every class has a peak
            every = self._enlarged(run.maps)[peaks[first, 0], :, peaks[first, 2], peaks[first, 3]]
            scores = self.classes.scores(every.reshape(*maps.shape[:2], -1))
        sizes = tuple((picture.shape[0], picture.shape[1]) for picture in images)
        presence = self.classes.presence(run.maps)
        return Responses(run, sizes, maps, scores, presence, peaks, response, strongest, share)

    def find_peaks(
        self, responses: Responses, *settings: SegmentationSettings, labels: Sequence[Sequence[int]] | None = None
    ) -> Peaks:
        """The peaks that pass any of `settings` (default: the segmenter's own): Algorithm 1, lines 3-5.

        labels: the classes that each picture is known to hold; these take part and no others, whatever their scores.
        """
        passes = torch.stack([passing(responses, s, labels) for s in settings or (self.settings,)]).any(dim=0)
        peaks, map_size = responses.peaks[passes], responses.maps.shape[2:]
        starts = peaks[:, 1]
        if self.classes.members is not None:
            every = self._enlarged(responses.run.maps)[peaks[:, 0], :, peaks[:, 2], peaks[:, 3]]
            starts = self.classes.starts(every, starts)
        positions = [self.position(at, map_size, responses.sizes[n]) for n, _, *at in peaks.tolist()]
        return Peaks(peaks, starts, responses.response[passes], responses.share[passes],
                     np.array(positions, np.float64).reshape(-1, 2))  # fmt: skip

    @torch.no_grad()
    def walk(self, responses: Responses, peaks: Peaks) -> list[Walked]:
        """Walk back from peaks of all pictures at once; what each picture has of it."""
        image, _, row, column = peaks.peaks.unbind(1)
        walked, found = responses.run.prms(torch.stack([image, peaks.starts, row, column], dim=1)), []
        for n, size in enumerate(responses.sizes):
            mine = peaks.peaks[:, 0] == n
            kept = mine & ~walked.empty
            found.append(Walked(
                size, responses.maps[n], responses.scores[n], peaks.peaks[kept, 1:], peaks.response[kept],
                peaks.share[kept], peaks.positions[kept.cpu().numpy()], walked.prms[kept], walked.leaked[mine],
                walked.bound[mine],
            ))  # fmt: skip
        return found

    def look(
        self, image: np.ndarray, *settings: SegmentationSettings, labels: Sequence[int] | None = None
    ) -> Walked:
        """The first three stages for one picture (H, W, 3) uint8; settings and labels as for `find_peaks`."""
        responses = self.respond([image])
        given = None if labels is None else [labels]
        return self.walk(responses, self.find_peaks(responses, *settings, labels=given))[0]

    def _segmentation(self, answer: Answer) -> Segmentation:
        """A picture's stages as the instances that they found."""
        walked, fitted, choice = answer.walked, answer.fitted, answer.choice
        prms = merged(walked.prms, dict(zip(choice.peaks.tolist(), choice.suppressed)))
        confidence, names = walked.scores.sigmoid(), self.classes.names
        instances = [
            Instance(
                label=label, mask=fitted.proposals.select([k]), score=value, confidence=float(confidence[label]),
                peak=tuple(walked.positions[p].tolist()), prm=prm.cpu(), proposal=k,
                terms=tuple(fitted.sums[p, k].tolist()), name=names[label] if names else "",
            )
            for p, label, k, value, prm in zip(
                choice.peaks.tolist(), walked.peaks[choice.peaks, 0].tolist(), choice.proposals.tolist(),
                choice.scores.tolist(), prms,
            )
        ]  # fmt: skip
        return Segmentation(walked.size, walked.maps.cpu(), walked.scores.cpu(), instances, len(walked.leaked),
                            walked.leaked.cpu(), walked.bound.cpu(), answer.seconds)  # fmt: skip

    def _enlarged(self, maps: Tensor) -> Tensor:
        """Maps (N, C, h, w) as peaks are found on them, at least float32."""
        return enlarge(maps.to(torch.promote_types(maps.dtype, torch.float32)), self.settings.upsample)

    def position(self, peak: Sequence[int], map_size: Sequence[int], size: Sequence[int]) -> tuple[float, float]:
        """Where a peak (row, column) of the enlarged maps lies in a picture of `size`, pixel centres at integers.

        (i + 0.5) * H_image / H_map - 0.5, i the fractional row on the un-enlarged map; columns alike.
        """
        f = self.settings.upsample
        row, column = (
            (i * (m - 1) / max(f * m - 1, 1) + 0.5) * full / m - 0.5 for i, m, full in zip(peak, map_size, size)
        )
        return row, column


def passing(
    responses: Responses, settings: SegmentationSettings, labels: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """(K,) bool: which valid peaks take part, Algorithm 1, lines 3-5: by class, by response, and the strongest few.

    labels: see `Segmenter.find_peaks`.
    """
    s, response, strongest = settings, responses.response, responses.strongest
    image, label = responses.peaks[:, :2].unbind(1)
    if s.peak_minimum is not None:
        passes = response > s.peak_minimum
    else:
        passes = torch.where(strongest > 0, response >= s.peak_threshold * strongest, responses.share == 1)
    allowed = (responses.scores.sigmoid() >= s.class_threshold) & (responses.presence >= s.image_threshold)
    if labels is not None:
        allowed = torch.zeros_like(allowed)
        for n, own in enumerate(labels):
            allowed[n, list(own)] = True
    elif s.top is not None:
        ranked = responses.scores.masked_fill(~allowed, float("-inf")).argsort(dim=1, descending=True, stable=True)
        allowed = allowed.scatter(1, ranked[:, s.top :], False)
    passes = passes & allowed[image, label]
    for n in range(len(responses.sizes)):
        mine = (passes & (image == n)).nonzero()[:, 0]
        weakest = responses.share[mine].argsort(descending=True, stable=True)[s.max_peaks :]
        passes[mine[weakest]] = False
    return passes


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
