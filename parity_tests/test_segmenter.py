"""Algorithm 1: the segmenter against the oracle's, on random small networks, pictures and proposals."""

import dataclasses
import inspect
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prm import InputError
from prm.accelerated import Proposals, SegmentationSettings, Segmenter, aggregation
from prm.accelerated.checkpoint import random_checkpoint
from prm.accelerated.classes import Classes
from prm.accelerated.peak_backprop.walk import PreparedWalk
from prm.accelerated.retrieval.log_linear import WEIGHTS, weights_of
from prm.accelerated.segmenter import MIN_SIDE
from prm.parity_tests.checks import refused
from prm.parity_tests.convert import to_reference
from prm.parity_tests.strategies import has_near_ties
from prm.parity_tests.tolerances import NETWORK, as_array, assert_close, assert_equal
from prm.parity_tests.zoo import Model, SmallCnn
from prm.reference import classes as oracle_classes
from prm.reference import peak_stimulation as oracle_stimulation
from prm.reference import retrieval as oracle
from prm.reference import views as oracle_views

MEAN, STD = [0.5, 0.4, 0.45], [0.25, 0.3, 0.2]
BLOCKS = (["max", "strided"], ["strided", "residual", "max"], ["strided", "concat", "strided"])


def picture(height, width, seed):
    """Smooth coloured noise, uint8: its maps have peaks of many heights."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 7, 7, generator=draw)
    image = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return (255 * image).round().byte().permute(1, 2, 0).numpy()


def masks(height, width, seed, count=20):
    """Random ellipses, and what retrieval must handle with care: no pixel, one pixel, all pixels, a repeated mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    found = []
    for _ in range(count):
        i, j = rng.uniform(0, height), rng.uniform(0, width)
        a, b = rng.uniform(2, height / 2), rng.uniform(2, width / 2)
        found.append(((rows - i) / a) ** 2 + ((columns - j) / b) ** 2 <= 1)
    full, empty, point = np.ones((height, width), bool), *np.zeros((2, height, width), bool)
    point[height // 2, width // 3] = True
    return np.array([empty, *found[: count // 2], full, *found[count // 2 :], point, *found[:3]])


def encoded(dense):
    return Proposals.from_masks(torch.from_numpy(dense))


def segmenter(device, module=None, mean=MEAN, std=STD, contrast=False, aggregate=None, classes=None, **settings):
    """Of the module, or of a small network, with the default settings but for those given."""
    module = module or SmallCnn(["max", "strided"], 2)
    return Segmenter(module, mean, std, contrast, SegmentationSettings(**settings), str(device), aggregate, classes)


def network_input(image, size):
    """What the network is handed, (3, H, W) float64: normalised, then resized as pictures are, antialiased."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    if pixels.shape[1:] != size:
        pixels = F.interpolate(pixels[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    return as_array(pixels)


SHARED = (
    "bias", "class_threshold", "image_threshold", "top", "peak_threshold", "peak_minimum", "window", "threshold",
    "upsample", "contour", "min_area", "max_area", "nms", "nms_per_class", "choice", "seed_pixel", "smooth",
    "nms_nested", "choose_again", "views", "min_score",
)  # fmt: skip


OBJECTNESS = np.random.default_rng(0).permutation(64) / 64


def sizes(s, size):
    """The sizes of the network's inputs."""
    return [size, *(tuple(max(MIN_SIDE, round(f * side)) for side in size) for f in s.scale_factors)]


def expected(module, image, dense, s, size, **classes):
    """The oracle's instances with the settings s; its beta is per pixel, its options have the paper's names."""
    scaled = [network_input(image, one) for one in sizes(s, size)[1:]]
    return oracle.segment(
        to_reference(module), network_input(image, size), dense, alpha=s.alpha, beta=s.beta_area / (size[0] * size[1]),
        weights=weights_of(s), objectness=OBJECTNESS[: len(dense)], scaled=scaled,
        **{name: getattr(s, name) for name in SHARED}, **classes,
    )  # fmt: skip


def test_a_setting_has_one_name_and_one_default_everywhere():
    oracles = {p.name: p.default for p in inspect.signature(oracle.segment).parameters.values()}
    ours = {f.name: f.default for f in dataclasses.fields(SegmentationSettings)}
    assert {name: oracles[name] for name in SHARED} == {name: ours[name] for name in SHARED}
    # what only one of them has: the network's, the picture's size, the walk's speed, beta per picture area
    assert set(ours) - set(SHARED) - {"signed", "alpha"} == {
        "size", "longest", "max_peaks", "beta_area", "epsilon", "precision", "scales",
        *(f"weight_{name}" for name in WEIGHTS)}
    assert set(oracles) - set(ours) == {
        "network", "image", "proposals", "beta", "class_logit", "groups", "exclusive", "weights", "objectness",
        "scaled"}


def unclear(module, image, s, size, groups=None):
    """Whether float32 could find other peaks than float64: near-ties of the maps, which no test may lean on."""
    plain = to_reference(module)
    seen = oracle_views.look(plain, [network_input(image, one) for one in sizes(s, size)], s.views)
    M = oracle_views.mean_maps(plain, seen)
    M = (M if groups is None else oracle_classes.group_maps(M, groups))[None]
    E = oracle_stimulation.enlarge(M, s.upsample)
    levels = [oracle_stimulation.threshold_value(m, s.threshold) for m in E.reshape(-1, *E.shape[2:])]
    return has_near_ties(E, s.window, levels, gap=1e-5)


def assert_same_instances(found, wanted):
    assert [one.label for one in found] == [one.label for one in wanted]
    assert [one.proposal for one in found] == [one.proposal for one in wanted]
    for k, (mine, theirs) in enumerate(zip(found, wanted)):
        assert len(mine.mask) == 1
        assert_equal(mine.mask.masks()[0], theirs.mask, f"mask of instance {k}")
        for name in ("score", "confidence", "peak"):
            value = getattr(mine, name)
            assert value == pytest.approx(getattr(theirs, name), rel=NETWORK[torch.float32]), f"{name} of {k}"
        # the third term counts pixels; where the map crosses bias * mean, a pixel may fall on either side
        assert mine.terms[:2] == pytest.approx(theirs.terms[:2], rel=NETWORK[torch.float32], abs=1e-6)
        assert mine.terms[2] == theirs.terms[2]
        assert mine.prm.dtype == torch.float32
        assert_close(mine.prm, theirs.prm, torch.float32, f"PRM of instance {k}", NETWORK)
        assert float(mine.prm.sum()) == pytest.approx(1, abs=1e-4)


SETTINGS = {
    "defaults": {},
    "enlarged": {"upsample": 2},
    "wide window": {"window": 5, "threshold": "mean", "peak_threshold": 0.5},
    "every peak": {"threshold": None, "peak_threshold": 0.0, "class_threshold": 0.0, "contour": 3},
    "no background": {"beta_area": 0.0, "alpha": 0.1},
    "much background": {"beta_area": 6.0, "bias": 1.2},
    "per class": {"nms_per_class": True, "class_threshold": 0.0, "nms": 0.1},
    "no suppression": {"nms": 1.1, "class_threshold": 0.2},
    "narrow areas": {"min_area": 0.05, "max_area": 0.3},
    "absolute": {"peak_minimum": 0.4, "class_threshold": 0.3},
    "fit": {"choice": "fit"},
    "fit, all weights": {"choice": "fit", "weight_response": 2.0, "weight_inside": 0.5, "weight_on_contour": 0.25,
                         "class_threshold": 0.3},
    "fit, seed preferred": {"choice": "fit", "seed_pixel": "prefer", "weight_mass": 0.0, "weight_response": 1.0},
    "fit, smooth": {"choice": "fit", "smooth": 0.1, "weight_objectness": 0.0, "weight_inside": 1.0},
    "nested": {"nms_nested": 0.5, "class_threshold": 0.2, "nms": 0.6},
    "again": {"choose_again": True, "class_threshold": 0.0, "nms_per_class": True},
    "fit, again": {"choice": "fit", "choose_again": True, "nms_nested": 0.6, "weight_on_contour": 0.5,
                   "peak_threshold": 0.0, "class_threshold": 0.0},
    "least score": {"min_score": 1.1, "class_threshold": 0.2},
    "mirrored": {"views": 2, "class_threshold": 0.3},
    "eight views": {"views": 8, "class_threshold": 0.3},
    "eight views, enlarged": {"views": 8, "upsample": 3, "class_threshold": 0.3},
    "scales": {"scales": "0.75,1.5", "class_threshold": 0.3},
    "views and scales": {"views": 4, "scales": "1.25", "upsample": 2, "class_threshold": 0.3},
    "WISE": {"choice": "fit", "seed_pixel": "require", "weight_mass": 0.0, "min_area": 0.0, "max_area": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_against_the_oracle(kind, device):
    # the settings know nothing of the network: each kind has one of three
    s, blocks = SegmentationSettings(**SETTINGS[kind]), BLOCKS[list(SETTINGS).index(kind) % len(BLOCKS)]
    size, compared, instances = (44, 36), 0, 0
    for seed in range(49):
        module, image, dense = SmallCnn(blocks, seed), picture(*size, seed), masks(*size, seed)
        if unclear(module, image, s, size):
            continue
        # Nor may two scores be so near each other that rounding decides which instance suppresses the other.
        # Two peaks of one class and one proposal may have one score where no term knows the peak.
        rivals = sorted({(one.score, one.label, one.proposal, *(one.peak if s.weight_mass else ()))
                         for one in expected(module, image, dense, dataclasses.replace(s, nms=1.1), size)})  # fmt: skip
        if any(b[0] - a[0] < 1e-5 for a, b in pairwise(rivals)):
            continue
        proposals = dataclasses.replace(encoded(dense), objectness=torch.from_numpy(OBJECTNESS[: len(dense)]))
        found = segmenter(device, module, **SETTINGS[kind])([image], [proposals])[0]
        wanted = expected(module, image, dense, s, size)
        assert_same_instances(found.instances, wanted)
        assert found.size == size
        compared, instances = compared + 1, instances + len(wanted)
        if compared == 4 and instances:
            return
    raise AssertionError(f"only {compared} pictures could be compared, {instances} instances")


GROUPED = {
    "groups": (((0, 2), (1,)), False, {"class_threshold": 0.3}),
    "exclusive": (None, True, {"class_threshold": 0.2}),
    "exclusive groups": (((0, 2), (1,)), True, {"class_threshold": 0.2}),
    "of some classes": (((1, 2),), True, {"class_threshold": 0.1, "upsample": 2}),
    "the most probable": (((0,), (2,), (1,)), True, {"class_threshold": 0.05, "top": 1}),
    "absent": (((0,), (1, 2)), True, {"class_threshold": 0.05, "image_threshold": 0.4}),
}


@pytest.mark.parametrize("case", GROUPED)
def test_classes_are_the_oracles(case, device):
    groups, exclusive, options = GROUPED[case]
    s, size, compared, starts = SegmentationSettings(**options), (44, 36), 0, set()
    named = Classes(("a",) * len(groups or "abc"), groups, exclusive)
    for seed in range(49):
        module, image, dense = SmallCnn(BLOCKS[0], seed), picture(*size, seed), masks(*size, seed)
        if unclear(module, image, s, size, groups):
            continue
        finder = segmenter(device, module, classes=named, **options)
        wanted = expected(module, image, dense, s, size, groups=groups, exclusive=exclusive)
        assert_same_instances(finder([image], [encoded(dense)])[0].instances, wanted)
        peaks = finder.find_peaks(finder.respond([image]))
        starts |= set(zip(peaks.peaks[:, 1].tolist(), peaks.starts.tolist(), strict=True))
        compared += bool(wanted)
        if compared == 4:
            break
    assert compared == 4
    assert all(start in (groups[label] if groups else [label]) for label, start in starts)


def test_a_class_of_all_classes_is_certain(device):
    one = Classes(("all",), ((0, 1, 2),), exclusive=True)
    answer = segmenter(device, classes=one)([picture(44, 36, 1)], [encoded(masks(44, 36, 1))])[0]
    assert answer.scores.tolist() == [np.inf] and answer.instances
    assert {instance.confidence for instance in answer.instances} == {1.0}


@pytest.mark.parametrize(
    ("size", "options", "input_size"),
    [
        ((60, 80), {"size": 36}, (36, 48)),
        ((60, 80), {"longest": 64}, (48, 64)),
        ((80, 60), {"size": 60, "longest": 40}, (40, 32)),
        ((20, 90), {}, (32, 90)),  # a side below the least is enlarged
    ],
)
def test_proposals_of_another_size_than_the_networks_input(size, options, input_size, device):
    s = SegmentationSettings(**options, class_threshold=0.2)
    cases = ((SmallCnn(["max", "strided"], seed), picture(*size, seed), masks(*size, seed)) for seed in range(99))
    module, image, dense = next(case for case in cases if not unclear(*case[:2], s, input_size))
    finder = segmenter(device, module, **options, class_threshold=0.2)
    assert finder.input_size(*size) == input_size
    found = finder([image], [encoded(dense)])[0]
    assert found.instances
    assert found.instances[0].prm.shape == input_size
    assert (found.instances[0].mask.height, found.instances[0].mask.width) == size
    assert_same_instances(found.instances, expected(module, image, dense, s, input_size))


def test_contrast_is_stretched_first(device):
    image = picture(40, 40, 1) // 4 + 20
    table = np.percentile(image, [0.5, 99.8])
    stretched = np.rint(255 * np.clip((image - table[0]) / (table[1] - table[0]), 0, 1)).astype(np.uint8)
    dim, bright = segmenter(device, contrast=True).respond([image]), segmenter(device).respond([stretched])
    assert torch.equal(dim.maps, bright.maps)


def test_a_giant_picture_is_reduced_in_8_bits_and_others_are_not(device):
    """From 16 times the input's pixels on; within rounding of what floating point gives."""
    settings = SegmentationSettings(longest=50)
    segmenter = Segmenter(SmallCnn(["max", "strided"], 1), MEAN, STD, settings=settings, device=str(device))
    for side, giant in ((199, False), (200, True), (900, True)):
        image = picture(side, side, 1)
        seen, exact = as_array(segmenter.network_input(image)[0]), network_input(image, (50, 50))
        assert np.array_equal(seen, exact) != giant
        assert np.abs(seen - exact).max() <= 2 / 255 / min(STD)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("made", [
    lambda a: a, lambda a: np.broadcast_to(a, a.shape), lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    lambda a: a[::-1].copy()[::-1], lambda a: a.astype(a.dtype.newbyteorder()),
], ids=["writable", "read-only", "of bytes", "upside down", "other byte order"])  # fmt: skip
@pytest.mark.parametrize("contrast", [False, True])
def test_callers_arrays_of_any_kind_are_read_and_left_alone(made, contrast, device):
    image, dense = picture(40, 40, 1), masks(40, 40, 1)
    settings = SegmentationSettings(class_threshold=0)
    segmenter = Segmenter(SmallCnn(["max", "strided"], 5), MEAN, STD, contrast, settings, str(device))
    given, proposals = made(image), Proposals.from_masks(made(dense))
    expected, found = segmenter([image.copy()], [encoded(dense)])[0], segmenter([given], [proposals])[0]
    assert torch.equal(found.maps, expected.maps) and found.instances
    assert [one.terms for one in found.instances] == [one.terms for one in expected.instances]
    run = segmenter.backprop.prepare(segmenter.network_input(given))
    peaks, chosen = np.array([[0, 0, 1, 1], [0, 1, 2, 0]]), np.array([2, 0])
    assert torch.equal(run.prms(made(peaks)).prms, run.prms(torch.tensor([[0, 0, 1, 1], [0, 1, 2, 0]])).prms)
    assert torch.equal(proposals.select(made(chosen)).masks(), encoded(dense).masks([2, 0]))
    assert np.array_equal(given, picture(40, 40, 1)) and np.array_equal(peaks, [[0, 0, 1, 1], [0, 1, 2, 0]])


# ---- several pictures


@pytest.mark.parametrize("sizes", [[(44, 36)] * 3, [(44, 36), (40, 40), (44, 36), (36, 44), (40, 40)]])
def test_a_batch_is_its_pictures_one_at_a_time_in_one_walk_for_each_size(sizes, device, monkeypatch):
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    proposals = [encoded(masks(*size, seed)) for seed, size in enumerate(sizes)]
    finder = segmenter(device, SmallCnn(["max", "strided"], 5), class_threshold=0)
    walked, prms = [], PreparedWalk.prms
    monkeypatch.setattr(PreparedWalk, "prms", lambda run, peaks: walked.append(len(peaks)) or prms(run, peaks))
    together = finder(images, proposals)
    assert len(walked) == len(set(sizes)) and sum(walked) == sum(found.peaks for found in together)
    assert len(together) == len(images)
    for image, own, found in zip(images, proposals, together):
        alone = finder([image], [own])[0]
        assert found.size == alone.size == image.shape[:2]
        assert found.instances
        assert_close(found.maps, alone.maps, torch.float32, "maps", NETWORK)
        assert_close(found.scores, alone.scores, torch.float32, "scores", NETWORK)
        assert found.peaks == alone.peaks == len(found.leaked) == walked[-1]
        assert [(one.label, one.proposal, one.peak) for one in found.instances] == [
            (one.label, one.proposal, one.peak) for one in alone.instances
        ]
        for one, other in zip(found.instances, alone.instances):
            assert_close(one.prm, other.prm, torch.float32, "PRM", NETWORK)
            assert one.score == pytest.approx(other.score, rel=1e-4)
    assert len(walked) == len(set(sizes)) + len(sizes)


def test_no_pictures(device):
    assert segmenter(device)([], []) == []


# ---- nothing found


@pytest.mark.parametrize(
    ("options", "dense"),
    [
        ({"class_threshold": 1.0}, masks(40, 36, 0)),
        ({"peak_minimum": 1e9, "class_threshold": 0.0}, masks(40, 36, 0)),
        ({"class_threshold": 0.0}, np.zeros((0, 40, 36), bool)),
        ({"class_threshold": 0.0}, np.zeros((3, 40, 36), bool)),  # none within the limits of area
        ({"class_threshold": 0.0, "min_area": 0.8, "max_area": 0.8}, masks(40, 36, 0)),
    ],
)
def test_nothing_found_is_an_empty_answer(options, dense, device):
    found = segmenter(device, **options)([picture(40, 36, 2)], [encoded(dense)])[0]
    assert found.instances == []
    assert found.maps.shape[0] == len(found.scores) == 3
    if "peak_minimum" in options or options["class_threshold"] == 1:
        assert found.peaks == 0


def test_an_empty_map_yields_no_instance(device):
    # a positive bias, and no weight that excites: the peaks have no evidence in the picture
    module = nn.Sequential(nn.Conv2d(3, 2, 3, stride=4)).eval()
    nn.init.constant_(module[0].weight, -0.01)
    nn.init.constant_(module[0].bias, 5.0)
    image, dense = picture(40, 36, 2), masks(40, 36, 0)
    found = segmenter(device, module)([image], [encoded(dense)])[0]
    assert found.peaks > 0
    assert torch.equal(found.leaked, torch.ones_like(found.leaked))
    assert found.instances == []
    assert expected(module, image, dense, SegmentationSettings(), (40, 36)) == []


# ---- settings


def passing_rows(maps, **settings):
    """(class, row, column) of the peaks that take part, of class response maps (C, h, w) whatever the picture."""
    given = Model(
        lambda m, x: m.nothing(F.adaptive_avg_pool2d(x, maps.shape[1:])) + m.maps,
        maps=nn.Parameter(maps[None]), nothing=nn.Conv2d(3, len(maps), 1),
    )  # fmt: skip
    for parameter in given.nothing.parameters():
        nn.init.zeros_(parameter)
    finder = segmenter(maps.device, given.eval(), **settings)
    found = finder.find_peaks(finder.respond([picture(40, 36, 0)]))
    assert len(found.peaks) == len(found.share) == len(found.response)
    return [tuple(row[1:]) for row in found.peaks.tolist()]


def test_an_absolute_threshold_replaces_the_share(device):
    maps = torch.zeros(2, 7, 9, device=device)
    maps[0, 1, 1], maps[0, 1, 5], maps[0, 5, 1] = 10.0, 3.0, 2.0  # the last is a fifth of the strongest
    maps[1, 3, 3] = 2.5

    rows = partial(passing_rows, maps, class_threshold=0.5, threshold=0.5)
    assert rows(peak_threshold=0.3) == [(0, 1, 1), (0, 1, 5), (1, 3, 3)]
    assert rows(peak_threshold=0.3, peak_minimum=1.9) == [(0, 1, 1), (0, 1, 5), (0, 5, 1), (1, 3, 3)]
    assert rows(peak_threshold=0.9, peak_minimum=2.5) == [(0, 1, 1), (0, 1, 5)]  # greater, not equal
    assert rows(peak_minimum=30.0) == []
    # shares of the strongest of the class: 1, 0.3, 0.2 and 1
    assert rows(peak_minimum=1.0, max_peaks=3) == [(0, 1, 1), (0, 1, 5), (1, 3, 3)]
    assert rows(peak_minimum=1.0, max_peaks=2) == [(0, 1, 1), (1, 3, 3)]


def test_where_no_response_is_positive_the_first_strongest_peak_passes(device):
    maps = torch.full((1, 5, 7), -4.0, device=device)
    maps[0, 1, 1], maps[0, 1, 5], maps[0, 3, 3] = -2.0, -1.0, -1.0
    assert passing_rows(maps, class_threshold=0.0, threshold=None) == [(0, 1, 5)]
    assert oracle.select_peaks([-2.0, -1.0, -1.0], SegmentationSettings().peak_threshold) == [1]


def test_scores_of_another_aggregation(device):
    given = [picture(40, 36, 2)], [encoded(masks(40, 36, 2))]
    for name in ("average", "lse"):
        pool = aggregation(name)
        found = segmenter(device, aggregate=pool, class_threshold=0.0)(*given)[0]
        assert_close(found.scores, pool(found.maps[None])[0], torch.float32, "scores", NETWORK)
        for one in found.instances:
            assert one.confidence == pytest.approx(float(found.scores[one.label].sigmoid()), rel=1e-6)


def test_from_a_checkpoint(device):
    checkpoint = random_checkpoint("smallnet", ["a", "b"], widths=(4, 6), pools=2, depth=1)
    checkpoint.segmentation = {"alpha": 0.3, "window": 5}
    finder = Segmenter.from_checkpoint(checkpoint, str(device), alpha=0.7)
    assert finder.settings == dataclasses.replace(SegmentationSettings(), alpha=0.7, window=5)
    found = finder([picture(40, 36, 2)], [encoded(masks(40, 36, 2))])[0]
    assert found.maps.shape == (2, 10, 9)
    refused(lambda: Segmenter.from_checkpoint(checkpoint, str(device), aplha=0.7), match="aplha")


def test_truncated_maps_come_with_their_bounds(device):
    checkpoint = random_checkpoint("smallnet", ["a", "b"], widths=(4, 6), pools=2, depth=2)
    options = {"class_threshold": 0.0, "peak_threshold": 0.0}
    given = [picture(64, 80, 2)], [encoded(masks(64, 80, 2))]
    exact, near = (
        Segmenter.from_checkpoint(checkpoint, str(device), **options, epsilon=epsilon)(*given)[0]
        for epsilon in (0.0, 0.1)
    )
    assert exact.bound.shape == (exact.peaks,) and not exact.bound.any()
    assert near.peaks == exact.peaks and (near.bound > 0).any() and (near.bound <= 0.2 / (1 - near.leaked)).all()


# ---- what is refused


def test_a_network_of_grey_pictures_is_refused(device):
    with pytest.raises(InputError, match="reads pictures of 1 channels, and these have 3"):
        Segmenter(nn.Conv2d(1, 2, 3), [0.5], [0.5], device=device)


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, "0.1"])
def test_an_epsilon_that_is_no_share(epsilon, device):
    checkpoint = random_checkpoint("smallnet", ["a"], widths=(4,), pools=1, depth=1)
    with pytest.raises(InputError, match="epsilon"):
        Segmenter.from_checkpoint(checkpoint, str(device), epsilon=epsilon)


def test_proposals_of_another_picture(device):
    finder = segmenter(device)
    refused(lambda: finder([picture(40, 36, 0)], [encoded(masks(36, 40, 0))]), match=r"36 x 40.*40 x 36")
    with pytest.raises(ValueError):
        finder([picture(40, 36, 0)], [])


def test_non_finite_maps_are_named_by_image_and_class(device):
    # black pixels are zeros to the network; white ones leave the range of float32 in the second class
    module = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False)).eval()
    nn.init.constant_(module[0].weight[0].data, 1.0)
    nn.init.constant_(module[0].weight[1].data, 3e38)
    finder = segmenter(device, module, [0.0] * 3, [1.0] * 3)
    sizes, bad = [(40, 36), (36, 40), (36, 40)], 2
    images = [np.full((*size, 3), 255 if k == bad else 0, np.uint8) for k, size in enumerate(sizes)]
    # the number is the picture's place in the call, not among those that share a forward pass
    proposals = [encoded(masks(*size, 0)) for size in sizes]
    refused(lambda: finder(images, proposals), "image 2, class 1", error=ValueError)


def test_the_second_choice_without_anything_to_choose(device):
    module, image = SmallCnn(BLOCKS[0], 1), picture(44, 36, 1)
    finder = segmenter(device, module, choice="fit", seed_pixel="require", class_threshold=0.0)
    nothing = np.zeros((3, 44, 36), bool)
    corner = nothing.copy()
    corner[:, 43, 35] = True  # no strongest pixel lies there
    for proposals in (Proposals.empty(44, 36), encoded(nothing), encoded(corner)):
        (answer,) = finder([image], [proposals])
        assert answer.peaks and answer.instances == []
    assert finder([image], [encoded(np.concatenate([corner, masks(44, 36, 1)]))])[0].instances


@pytest.mark.parametrize(("wrong", "words"), [
    ({"weight_mass": 0.0, "weight_objectness": 0.0}, "not all of them 0"), ({"weight_mass": -1.0}, "weight_"),
    ({"smooth": 1.5}, "smooth"), ({"choice": "best"}, "eq6 or fit"), ({"seed_pixel": "maybe"}, "free or prefer"),
])  # fmt: skip
def test_what_cannot_choose_is_refused(wrong, words):
    refused(lambda: SegmentationSettings(**wrong), words)
