"""Settings, each said once: the command's options, the checkpoint's fields and the documents are made from these.

Nothing here imports torch, so that `prm --help` needs none.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

from prm import InputError

# How a GPU multiplies matrices on the walk through a convolution: in full float32, or rounded to TF32 or bfloat16, with
# sums in float32. A device without TF32 takes full float32 for it.
PRECISIONS = ("ieee", "tf32", "bf16")


def meanings(settings: type[Any]) -> dict[str, str]:
    """What each field of a settings class means, from its docstring: lines "name : text", which may go on indented."""
    found: dict[str, str] = {}
    for line in (settings.__doc__ or "").splitlines():
        name, colon, text = line.strip().partition(" : ")
        if colon and name in {f.name for f in fields(settings)}:
            last = name
            found[last] = text.strip()
        elif found and line.strip():
            found[last] += " " + line.strip()
    return found


def setting(
    default: Any, least: float | None = None, most: float | None = None, names: tuple[str, ...] = (), form: str = ""
) -> Any:
    """A field of settings with what a command offers of it: the range that makes sense, the names to choose from, or
    the form of text that it takes."""
    return field(default=default, metadata={"least": least, "most": most, "names": names, "form": form})


@dataclass(frozen=True)
class SegmentationSettings:
    """Settings of Algorithm 1; a checkpoint carries its own.

    size : network input: the shorter side in pixels; none is the picture's own size
    longest : most pixels of the longer side; the picture is scaled down to it
    window : side of the square in which a peak is the maximum, odd
    threshold : what a valid peak reaches: median, mean or max of its map, a number, or none
    upsample : factor by which class response maps are enlarged before peaks are looked for
    class_threshold : least probability of a class: the sigmoid of its score, or of exclusive classes the softmax
    image_threshold : of exclusive classes: least softmax of the mean response over the picture; 0: not asked
    top : most classes of a picture, the most probable; none: all that reach class_threshold
    peak_threshold : least response of a peak, as a share of its class's strongest peak
    peak_minimum : the response itself that a peak must exceed, instead of a share (the released code: 30); none: share
    max_peaks : most peaks of a picture, the strongest by share of their class's strongest
    choice : how a peak's proposal is chosen: eq6, the paper's Eq. 6; or fit, the log-linear score of the weights below
    alpha : Eq. 6: weight of the response inside a proposal
    beta_area : Eq. 6: weight of background inside it, per picture area: beta = beta_area / (H * W)
    bias : Eq. 6: background is below bias x the mean response
    contour : Eq. 6: side of the square of the morphological gradient, odd, pixels at network input size
    weight_mass : fit: exponent of the share of the Peak Response Map inside a proposal
    weight_response : fit: exponent of the class's mean response inside it, from 0 to 1
    weight_objectness : fit: exponent of its objectness, which comes with the proposal
    weight_inside : fit: exponent of the share of it that is not background
    weight_on_contour : fit: exponent of the share of the Peak Response Map on its contour
    seed_pixel : fit: whether a proposal has to hold the strongest pixel of the Peak Response Map: free (no), prefer
        (where one does) or require
    smooth : fit: the mass is that of the map smoothed by a Gaussian of this share of the shorter side
    min_area : least share of the picture that a proposal covers
    max_area : a proposal covers less than this share of the picture
    epsilon : let the walk back drop up to this share of each peak, for speed; every answer bounds its error
    nms : mask IoU from which the weaker of two instances is dropped
    nms_per_class : drop instances within their class only, and not across all
    nms_nested : drop the weaker too where this share of the smaller of two masks lies in the other; none: by IoU alone
    choose_again : a peak whose proposal is dropped takes its best one that no instance drops, if there is any
    min_score : leave instances of a lower score out; none: all stay, which mAP^r asks for
    views : average maps over so many turned pictures: 1, 2 (mirrored), 4 (up and down too) or 8 (by a quarter too)
    scales : average maps over the picture at further sizes too, these times its own; none: its own alone
    signed : let negative input walk through negative weights (the picture itself), instead of shifting it to zero
    precision : how a GPU multiplies on the walk: ieee (full float32), tf32 or bf16
    """

    size: int | None = setting(None, 32)
    longest: int = setting(1333, 32)
    window: int = setting(3, 3)
    threshold: str | float | None = setting("median", names=("median", "mean", "max"))
    upsample: int = setting(1, 1)
    class_threshold: float = setting(0.5, 0, 1)
    image_threshold: float = setting(0.0, 0, 1)
    top: int | None = setting(None, 1)
    peak_threshold: float = setting(0.3, 0, 1)
    peak_minimum: float | None = setting(None)
    max_peaks: int = setting(300, 1)
    choice: str = setting("eq6", names=("eq6", "fit"))
    alpha: float = setting(0.8)
    beta_area: float = setting(2.0)
    bias: float = setting(0.95)
    contour: int = setting(5, 1)
    weight_mass: float = setting(1.0, 0)
    weight_response: float = setting(0.0, 0)
    weight_objectness: float = setting(1.0, 0)
    weight_inside: float = setting(0.0, 0)
    weight_on_contour: float = setting(0.0, 0)
    seed_pixel: str = setting("free", names=("free", "prefer", "require"))
    smooth: float = setting(0.0, 0, 1)
    min_area: float = setting(2e-5, 0, 1)
    max_area: float = setting(0.85, 0, 1)
    epsilon: float = setting(0.0, 0, 0.99)
    nms: float = setting(0.3, 0, 1)
    nms_per_class: bool = setting(False)
    nms_nested: float | None = setting(None, 0, 1)
    choose_again: bool = setting(False)
    min_score: float | None = setting(None)
    views: int = setting(1, 1, 8)
    scales: str | None = setting(None, form="FACTOR[,FACTOR]")
    signed: bool = setting(False)
    precision: str = setting("ieee", names=PRECISIONS)

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None and "None" in f.type:
                continue
            if f.type.startswith("int") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"segmentation setting {f.name} must be an integer >= 1, not {value!r}")
            if f.type.startswith("float") and not _is_number(value):
                raise InputError(f"segmentation setting {f.name} must be a number, not {value!r}")
            if f.type == "bool" and not isinstance(value, bool):
                raise InputError(f"segmentation setting {f.name} must be true or false, not {value!r}")
            known = f.metadata["names"]
            if known and value not in known and not (f.type != "str" and _is_number(value)):
                raise InputError(f"segmentation setting {f.name} must be {' or '.join(known)}, not {value!r}")
        for name in ("window", "contour"):
            if getattr(self, name) % 2 == 0:
                raise InputError(f"segmentation setting {name} must be an odd integer, not {getattr(self, name)}")
        if self.views not in (1, 2, 4, 8):
            raise InputError(f"segmentation setting views must be 1, 2, 4 or 8, not {self.views}")
        if self.scales is not None and not all(0 < factor < math.inf for factor in self.scale_factors):
            raise InputError(f"segmentation setting scales must be factors above 0, as 0.75,1.5, not {self.scales!r}")
        weights = [getattr(self, f.name) for f in fields(self) if f.name.startswith("weight_")]
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise InputError(f"segmentation settings weight_: {weights} must be 0 or more, and not all of them 0")
        if not 0 <= self.smooth <= 1:
            raise InputError(f"segmentation setting smooth must be from 0 to 1, not {self.smooth!r}")
        if not 0 <= self.epsilon < 1:
            raise InputError(f"segmentation setting epsilon must be at least 0 and less than 1, not {self.epsilon!r}")

    @property
    def scale_factors(self) -> tuple[float, ...]:
        """`scales` as numbers; 0 for what is none."""
        parts = [] if self.scales is None else str(self.scales).split(",")
        return tuple(float(part) if re.fullmatch(r"\s*[0-9]*\.?[0-9]+\s*", part) else 0.0 for part in parts)


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    epochs : passes over the pictures
    batch_size : pictures of a step
    size : side of the square training crop, pixels
    resize : the shorter side that pictures are scaled to first, and that prm segment then scales to; none: their own
    lr_features : learning rate of the features
    lr_classifier : learning rate of the classifier on them
    momentum : of stochastic gradient descent
    weight_decay : of stochastic gradient descent
    schedule : of the learning rates: cosine (to 0 over all steps) or step (times 0.1 after 60 % and 85 % of the epochs)
    flip : mirror left and right at random
    vertical_flip : mirror up and down too, as suits microscopes
    turn : turn by a quarter at random too; with both mirrors all eight positions of a picture without an up
    jitter : scale by a random factor in [1 / jitter, jitter], then crop or pad to the size
    amp : mixed precision; default: where the device has it
    workers : processes that read pictures ahead
    seed : of the weights, the crops and their order
    """

    epochs: int = setting(20, 1)
    batch_size: int = setting(16, 1)
    size: int = setting(448, 8)
    resize: int | None = setting(None, 8)
    lr_features: float = setting(0.01, 0)
    lr_classifier: float = setting(0.1, 0)
    momentum: float = setting(0.9, 0)
    weight_decay: float = setting(1e-4, 0)
    schedule: str = setting("cosine", names=("cosine", "step"))
    flip: bool = setting(True)
    vertical_flip: bool = setting(False)
    turn: bool = setting(False)
    jitter: float = setting(1.25, 1)
    amp: bool | None = setting(None)
    workers: int = setting(0, 0)
    seed: int = setting(0, 0)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be >= 1, not {getattr(self, name)}")
        if self.resize is not None and self.resize < 1:
            raise InputError(f"resize must be >= 1 or none, not {self.resize}")
        if self.schedule not in ("cosine", "step"):
            raise InputError(f'schedule must be "cosine" or "step", not {self.schedule!r}')
        if self.jitter < 1:
            raise InputError(f"jitter must be >= 1, not {self.jitter}")


@dataclass(frozen=True)
class LabelSettings:
    """How pseudo labels are made.

    method : wise, one proposal for every seed; prm, the instances that Algorithm 1 finds; or student, those that a
        student finds, to train the next one on
    ungated : wise: classes count that the picture is not labelled with, too
    maps : wise: a seed is the strongest pixel of a peak's prm, or of the positive part of its plain gradient
    """

    method: str = setting("wise", names=("wise", "prm", "student"))
    ungated: bool = setting(False)
    maps: str = setting("prm", names=("prm", "gradient"))


@dataclass(frozen=True)
class StudentSettings:
    """How a student is trained.

    steps : steps of the optimiser
    batch_size : pictures of a step
    lr : learning rate
    schedule : of the learning rate: constant, linear (falling to 0), or step (times 0.1 after 60 % and 85 % of them)
    warm_up : steps in which it rises to `lr`, from a third of it
    optimizer : sgd (with momentum 0.9) or adamw
    weight_decay : of the optimiser
    labels : best (the proposal of highest objectness) or sampled (drawn anew whenever the picture is loaded)
    save_every : steps between two checkpoints
    amp : mixed precision in bfloat16; default: where the device has it
    workers : processes that read pictures ahead
    seed : of the weights, the order of the pictures, what is drawn of them, and sampled labels
    """

    steps: int = setting(1500, 1)
    batch_size: int = setting(2, 1)
    lr: float = setting(0.005, 0)
    schedule: str = setting("step", names=("constant", "linear", "step"))
    warm_up: int = setting(100, 0)
    optimizer: str = setting("sgd", names=("sgd", "adamw"))
    weight_decay: float = setting(1e-4, 0)
    labels: str = setting("best", names=("best", "sampled"))
    save_every: int = setting(250, 1)
    amp: bool | None = setting(None)
    workers: int = setting(0, 0)
    seed: int = setting(0, 0)


@dataclass(frozen=True)
class AnswerSettings:
    """What is taken of a student's answer.

    min_score : leave instances of a lower score out; none: all stay, which mAP^r asks for
    refine : replace each mask by the proposal that overlaps it most (WISE)
    refine_minimum : refine: proposals count of an objectness above this (the poster: 0.75); none: the best 100
    """

    min_score: float | None = setting(None)
    refine: bool = setting(False)
    refine_minimum: float | None = setting(None, 0, 1)


@dataclass(frozen=True)
class ReadSettings:
    """What is taken of a picture file that holds more than a picture; pages and channels count from 0.

    channels : which, from 0: one is shown grey, two or three become red, green and blue; none: the file's own colours,
        its single channel, or all three
    page : which page, slice or frame, from 0; where there are several kinds, as Z=3,T=0; none: the first of each
    """

    channels: str | None = setting(None, form="N[,N[,N]]")
    page: str | None = setting(None, form="N|Z=N,T=N")

    def __post_init__(self):
        if self.channels is not None and not re.fullmatch(r"[0-9]+(,[0-9]+){0,2}", self.channels):
            raise InputError(f"channels must be up to three numbers from 0, as 0 or 0,2,1, not {self.channels!r}")
        if self.page is not None and not re.fullmatch(r"[0-9]+|[A-Z]=[0-9]+(,[A-Z]=[0-9]+)*", self.page):
            raise InputError(f"page must be a number from 0, or one an axis, as Z=3,T=0, not {self.page!r}")

    @property
    def channel_numbers(self) -> tuple[int, ...] | None:
        return None if self.channels is None else tuple(int(k) for k in self.channels.split(","))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
