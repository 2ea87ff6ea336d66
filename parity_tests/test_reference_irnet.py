"""IRNet's oracle: pairs of pixels, centres and the random walk, by hand and by what must hold of each."""

import numpy as np
import pytest

from prm.reference.irnet.centroids import centroids, instances
from prm.reference.irnet.dense_crf import crf
from prm.reference.irnet.heads import heads
from prm.reference.irnet.label_synthesis import cam_merge, detect, labels, merge_views, seed_index, seed_merge
from prm.reference.irnet.pixel_pairs import SMALL, affinity, losses, offsets, path
from prm.reference.irnet.random_walk import transition, walk
from prm.reference.irnet.resize import bilinear


def field(to, size):
    """D that leads every cell to `to`."""
    rows, columns = np.indices(size).astype(float)
    return np.stack([to[0] - rows, to[1] - columns])


# ---- pairs


def test_offsets_and_paths():
    assert len(offsets(5)) == 34 and len(offsets(10)) == 152 and offsets(1) == []
    assert sorted(offsets(2)) == [(0, 1), (1, -1), (1, 0), (1, 1)]
    for d in offsets(6):
        assert (-d[0], -d[1]) not in offsets(6) and 0 < d[0] ** 2 + d[1] ** 2 < 36
        steps = path(d)
        assert steps == sorted(steps) and (0, 0) in steps and d in steps
        mirrored = {(y, -x) for y, x in path((d[0], -d[1]))}
        assert set(steps) == mirrored
    assert path((0, 3)) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    # (qx - 2 qy)^2 < 5 holds in all of the box of (1, 2); |qx - qy| < sqrt 2 leaves two corners of that of (2, 2) out.
    assert path((1, 2)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert path((2, 2)) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]


def test_affinity_by_hand():
    B = np.array([[0.1, 0.8, 0.2], [0.3, 0.4, 0.5]])
    assert affinity(B, (0, 2), [0, 1], [0]).tolist() == [[1 - 0.8], [1 - 0.5]]
    assert affinity(B, (1, 0), [0], [0, 1, 2]).tolist() == [[0.7, 1 - 0.8, 0.5]]
    assert affinity(B, (1, -1), [0], [1, 2]) == pytest.approx(np.array([[1 - 0.8, 1 - 0.8]]))
    assert affinity(B, (0, 1), [], [0]).shape == (0, 1)
    with pytest.raises(ValueError, match="leave the map 2 x 3"):
        affinity(B, (0, 2), [0], [1])


def test_affinity_falls_where_boundaries_rise():
    rng = np.random.default_rng(0)
    B = rng.uniform(0, 0.9, (6, 7))
    for d in offsets(4):
        rows, columns = np.arange(0, 6 - d[0]), np.arange(max(0, -d[1]), 7 - max(0, d[1]))
        before, after = affinity(B, d, rows, columns), affinity(B + 0.1 * rng.random(B.shape), d, rows, columns)
        assert (after <= before).all()
        # the same pair from its other end
        back = affinity(B[::-1, ::-1], d, 5 - (rows + d[0]), 6 - (columns + d[1]))
        assert (back == before).all()


def test_losses_by_hand():
    """R = 2 on 3 x 3: sources in rows 0..1 and columns 1..1; four offsets. The picture's right column is class 1."""
    labels = np.array([[[0, 0, 2], [0, 0, 2], [0, 0, 2]]])
    B, D = np.full((1, 3, 3), 0.25), np.zeros((1, 2, 3, 3))
    # From (r, 1): (0, 1) and (1, 1) cross to the class, (1, -1) and (1, 0) stay in the background: 4 pairs of each.
    (b, f, plus, minus, fg, bg, whole), dB, dD = losses(labels, B, D, 2)
    assert b == pytest.approx(4 * -np.log(0.75 + SMALL) / (4 + SMALL)) and f == 0 and plus == b / 2
    assert minus == pytest.approx(4 * -np.log(0.25 + SMALL) / (4 + SMALL))
    assert (fg, bg) == (0, 0) and whole == (plus + minus) / 2
    assert dB.shape == B.shape and not dD.any()
    D[0, 0, :, 1] = 3.0  # the sources' rows; (r + 1, 1) moves along, (r + 1, 0) does not
    *_, fg, bg, _ = losses(labels, B, D, 2)[0]
    assert fg == 0 and bg == pytest.approx(2 * 3 / (2 * 4 + SMALL))
    for ignored in ((0, 0, 1), (0, 1, 1)):
        some = labels.copy()
        some[ignored] = 255
        assert losses(some, B, D, 2)[0][0] < b
    assert losses(np.full((1, 3, 3), 255), B, D, 2)[0] == (0,) * 7
    assert losses(labels[:, :1, :1], B[:, :1, :1], D[:, :, :1, :1], 2)[0] == (0,) * 7  # smaller than the radius
    with pytest.raises(ValueError, match="must be"):
        losses(labels, B[:, 1:], D, 2)


def test_the_first_of_equal_maxima_has_the_gradient():
    labels = np.zeros((1, 2, 3), int)
    labels[0, 0, 2] = 1
    B = np.full((1, 2, 3), 0.5)
    _, dB, _ = losses(labels, B, np.zeros((1, 2, 2, 3)), 2)
    # One source, (0, 1): to (0, 2), apart; to (1, 0), (1, 1), (1, 2), alike. The first q of the path to (1, 0) is
    # (0, 0), that of the others (0, 1) itself.
    assert set(zip(*np.nonzero(dB[0]))) == {(0, 0), (0, 1)}


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_the_losses(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, (2, 7, 8))
    y[0, :3], y[1, 4] = 0, 255
    B, D = rng.uniform(0.1, 0.9, y.shape), rng.normal(size=(2, 2, 7, 8))
    _, dB, dD = losses(y, B, D, 3)
    for k, (X, gradient) in enumerate(((B, dB), (D, dD))):
        for _ in range(12):
            at = tuple(int(rng.integers(n)) for n in X.shape)
            found = []
            for step in (1e-6, -1e-6):
                moved = [B.copy(), D.copy()]
                moved[k][at] += step
                found.append(losses(y, *moved, 3)[0][-1])
            assert (found[0] - found[1]) / 2e-6 == pytest.approx(gradient[at], abs=2e-8)


def test_displacements_to_centres_cost_nothing():
    y = np.ones((1, 8, 9), int)
    D = field((3, 4), (8, 9))[None]
    values, _, dD = losses(y, np.full(y.shape, 0.3), D, 3)
    assert values[4] == 0 and values[5] == 0 and not dD.any()
    y[0, :4] = 0
    D = np.random.default_rng(1).normal(size=D.shape)
    shift = np.array([3.0, -7.0])[None, :, None, None]
    one, other = (losses(y, np.full(y.shape, 0.3), D + c, 3)[0] for c in (0, shift))
    assert one[4:6] == pytest.approx(other[4:6], rel=1e-12) and min(one[4:6]) > 0


# ---- centres


def test_displacements_to_a_centre_get_there_in_a_step():
    D = field((3, 4), (8, 9))
    for steps in (1, 5):
        c = centroids(D, steps)
        assert (c[0] == 3).all() and (c[1] == 4).all()
    assert (centroids(D, 0) == np.indices((8, 9))).all()
    assert (instances(c, D) == 0).all()


def test_places_between_cells_by_hand():
    """On a row of three: D = 0.5, then at 0.5 the mean of 0.5 and 1; beyond the end the place stays on the grid."""
    D = np.zeros((2, 1, 3))
    D[1, 0] = [0.5, 1.0, 4.0]
    assert centroids(D, 1)[1, 0].tolist() == [0.5, 2.0, 2.0]
    assert centroids(D, 2)[1, 0].tolist() == [0.5 + 0.75, 2.0, 2.0]
    mirrored = centroids(np.stack([D[0], -D[1]])[:, :, ::-1], 2)
    assert (2 - mirrored[1, :, ::-1] == centroids(D, 2)[1]).all()


def test_instances_by_hand():
    """Cells of small D at both ends make two parts; the middle one goes nowhere near: the pool, which comes first."""
    D = np.zeros((2, 1, 5))
    D[1, 0] = [0.0, -1.0, 9.0, 0.0, 2.5]  # 2.5 is not below the threshold
    at = np.zeros((2, 1, 5))
    at[1, 0] = [0, 0, 2, 3, 3]
    assert instances(at, D).tolist() == [[1, 1, 0, 2, 2]]
    at[1, 0, 2] = 3
    assert instances(at, D).tolist() == [[0, 0, 1, 1, 1]]  # no pool
    at[1, 0] = 3
    assert instances(at, D).tolist() == [[0] * 5]  # a part that none reaches is none
    assert (instances(np.indices((2, 2)), np.full((2, 2, 2), 9.0)) == 0).all()  # the pool alone


# ---- the walk


def test_a_wall_lets_nothing_through():
    """Cells of B = 1 that touch by corners: V stays on its side, exactly."""
    B = np.full((9, 9), 0.2)
    for k in range(9):
        B[k, 3 + (k % 2)] = 1.0
    V = np.zeros((9, 9))
    V[:, :3] = 1
    spread = walk(V, B)
    assert (spread[:, 5:] == 0).all() and (spread[:, :3] > 0).all()


def test_the_walk_keeps_constants_and_range():
    rng = np.random.default_rng(0)
    B = rng.uniform(0, 0.8, (6, 7))
    T = transition(B)
    assert np.allclose(T.sum(1), 1, atol=1e-14) and (T >= 0).all()
    assert np.allclose(np.linalg.matrix_power(T, 256), np.linalg.matrix_power(T @ T, 128), atol=1e-13)
    V = rng.random((2, 3, 6, 7))
    spread, source = walk(V, B), V * (1 - B)
    assert spread.shape == V.shape
    for one, other in zip(spread.reshape(6, -1), source.reshape(6, -1)):
        assert other.min() - 1e-12 <= one.min() and one.max() <= other.max() + 1e-12
    stepped = source.reshape(6, -1)
    for _ in range(256):
        stepped = stepped @ T.T
    assert np.allclose(spread.reshape(6, -1), stepped, atol=1e-13)
    assert np.allclose(walk(1 / (1 - B), B), 1, atol=1e-12)
    assert np.allclose(walk(V[..., ::-1], B[:, ::-1])[..., ::-1], spread, atol=1e-13)
    by_hand = transition(np.array([[0.0, 0.5]]))
    assert by_hand == pytest.approx(np.array([[1, 0.5**10], [0.5**10, 1]]) / (1 + 0.5**10))
    with pytest.raises(ValueError, match=r"\(\.\.\., h, w\) and \(h, w\)"):
        walk(V, B.T)


# ---- the heads


def test_enlargement_by_hand():
    assert bilinear([[0.0, 4.0]], (1, 4)).tolist() == [[0, 1, 3, 4]]
    assert bilinear([[0.0, 1.0, 2.0, 3.0]], (1, 2)).tolist() == [[0.5, 2.5]]
    assert bilinear([[0.0], [4.0]], (3, 1), (1 / 4, 1.0))[:, 0].tolist() == [0, 0, 0.5]  # places -3/8, -1/8, 1/8
    x = np.random.default_rng(0).random((2, 5, 7))
    assert (bilinear(x, (5, 7)) == x).all()
    assert bilinear(x, (9, 4)) == pytest.approx(bilinear(x[..., ::-1], (9, 4))[..., ::-1])


def weights(channels):
    """Random weights of both heads for features of so many channels, a small number of channels inside."""
    rng = np.random.default_rng(0)
    W = {"boundary.out.conv": rng.normal(size=(1, 5 * 8)), "boundary.out.bias": rng.normal(size=1),
         "displacement.out.conv": rng.normal(size=(2, 16))}  # fmt: skip
    inner = [8, 16, 16, 16, 16, 16, 16]
    taken = [*channels, 48, 40]
    for head, outs in (("boundary", [8] * 5), ("displacement", inner)):
        for k, out in enumerate(outs, start=1):
            W[f"{head}.{k}.conv"] = rng.normal(size=(out, taken[k - 1]))
            W[f"{head}.{k}.scale"], W[f"{head}.{k}.shift"] = rng.normal(size=(2, out))
    return W


@pytest.mark.parametrize("size", [(32, 48), (37, 50)])
def test_heads_are_torchs_layers(size):
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    rng, channels = np.random.default_rng(1), (3, 4, 5, 6, 7)
    sizes = [tuple(-(-side // s) for side in size) for s in (4, 4, 8, 16, 16)]
    x = [rng.normal(size=(c, *own)) for c, own in zip(channels, sizes)]
    W = weights(channels)
    T = {name: torch.from_numpy(value) for name, value in W.items()}

    def layers(name, y, groups, factor, to):
        y = F.conv2d(y, T[f"{name}.conv"][:, :, None, None])
        y = F.group_norm(y, groups, T[f"{name}.scale"], T[f"{name}.shift"], 1e-5)
        y = F.interpolate(y, scale_factor=factor, mode="bilinear", align_corners=False) if factor > 1 else y
        return y.relu()[:, :, : to[0], : to[1]]

    f = [torch.from_numpy(one)[None] for one in x]
    edges = [layers(f"boundary.{k + 1}", f[k], 4, (1, 1, 2, 4, 4)[k], sizes[1]) for k in range(5)]
    logit = F.conv2d(torch.cat(edges, 1), T["boundary.out.conv"][:, :, None, None], T["boundary.out.bias"])[0, 0]
    d = [layers(f"displacement.{k + 1}", f[k], (8, 16, 16, 16, 16)[k], (1, 1, 1, 2, 2)[k],
                sizes[k] if k < 2 else sizes[2]) for k in range(5)]  # fmt: skip
    deep = layers("displacement.6", torch.cat(d[2:], 1), 16, 2, sizes[1])
    both = layers("displacement.7", torch.cat([*d[:2], deep], 1), 16, 1, sizes[1])
    moved = F.conv2d(both, T["displacement.out.conv"][:, :, None, None])[0]
    ours = heads(W, x, mean=(1.5, -2))
    assert ours[0] == pytest.approx(logit.numpy(), abs=1e-10)
    assert ours[1] == pytest.approx(moved.numpy() - np.array([1.5, -2])[:, None, None], abs=1e-10)
    del W["displacement.6.scale"]
    with pytest.raises(ValueError, match=r"the weights have no 'displacement\.6\.scale'"):
        heads(W, x)


# ---- the random field


def test_a_field_of_two_pixels_by_hand():
    """Labels 0 and 1, colours 10 apart in one channel; one step."""
    image = np.array([[[0, 0, 0], [10, 0, 0]]], np.uint8)
    k1, k2 = np.exp(-1 / 18), np.exp(-1 / 5000 - 100 / 50)
    p, q = 0.7, 0.3
    # Row sums are 1 + k for both pixels.
    pull = [3 / (1 + k1) * (a + k1 * b) + 10 / (1 + k2) * (a + k2 * b) for a, b in ((p, q), (q, p))]
    expected = p * np.exp(pull[0]) / (p * np.exp(pull[0]) + q * np.exp(pull[1]))
    Q = crf(image, np.array([[0, 1]]), 2, steps=1)[:, 0]
    assert Q == pytest.approx(np.array([[expected, 1 - expected], [1 - expected, expected]]))


def test_what_holds_of_every_field():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    image[:, :4] = (200, 30, 30)
    label = rng.integers(0, 3, (7, 9))
    Q = crf(image, label, 3)
    assert Q.shape == (3, 7, 9) and Q.sum(0) == pytest.approx(1) and (Q >= 0).all()
    order = np.array([2, 0, 1])  # label k becomes order[k]
    assert crf(image, order[label], 3)[order] == pytest.approx(Q, abs=1e-12)
    alone = crf(image, label, 3, weights=(0, 0))
    assert (alone.argmax(0) == label).all() and alone.max(0) == pytest.approx(0.7)
    assert crf(image, label, 4)[3].max() < 0.3  # a label that nobody gave
    assert (crf(image, np.zeros((7, 9), int), 1) == 1).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prm.reference.irnet.dense_crf.PAIRS", 100)  # in blocks
        assert crf(image, label, 3) == pytest.approx(Q, abs=1e-12)


def test_a_field_follows_the_picture():
    """One wrong label in an area of one colour goes; the edge between two colours stays."""
    image = np.full((12, 12, 3), 20, np.uint8)
    image[:, 6:] = 220
    label = np.zeros((12, 12), int)
    label[:, 6:] = 1
    given = label.copy()
    given[3, 2], given[8, 9] = 1, 0
    assert (crf(image, given, 2).argmax(0) == label).all()


@pytest.mark.parametrize(("label", "n"), [(np.zeros((2, 3)), 0), (np.full((2, 3), 2), 2), (np.zeros((3, 3)), 2)])
def test_fields_that_cannot_be(label, n):
    with pytest.raises(ValueError, match="labels"):
        crf(np.zeros((2, 3, 3), np.uint8), label.astype(int), n)


# ---- labels


def test_class_maps_of_scales_by_hand():
    """One scale at the grid's own size: relu, the mirror's turned back, the class that is labelled, its maximum 1."""
    response = np.zeros((2, 3, 4, 4))
    response[0, 1, 0, 0], response[1, 1, 0, 3], response[0, 1, 2, 2], response[0, 2] = 2, 1, -5, 9
    keys, coarse, fine = cam_merge([response], (16, 14), [0, 1, 0])
    assert keys.tolist() == [1] and coarse.shape == (1, 4, 4) and fine.shape == (1, 16, 14)
    assert coarse[0, 0, 0] == 3 / (3 + 1e-5) and np.count_nonzero(coarse) == 1
    assert fine[0, :2, :2] == pytest.approx(3 / (3 + 1e-5))  # centres of the corner pixels lie before the first cell's
    twice = cam_merge([response, response], (16, 14), [0, 1, 0])[1]
    assert twice[0, 0, 0] == 6 / (6 + 1e-5)
    keys, coarse, _ = cam_merge([response], (16, 16), [0, 0, 0])
    assert len(keys) == 0 and coarse.shape == (0, 4, 4)
    assert not cam_merge([-np.ones((2, 1, 4, 4))], (16, 16), [1])[1].any()


def test_seeds_of_labels_by_hand():
    cam = np.array([[[0.3, 0.31, 0.1]], [[0.2, 0.31, 0.9]]])
    assert seed_index(cam, 0.3).tolist() == [[0, 1, 2]]  # at the threshold is background, of equal classes the first
    assert seed_index(cam[:0], 0.3).tolist() == [[0, 0, 0]]
    assert seed_merge([[3, 0, 0]], [[0, 0, 4]]).tolist() == [[3, 0, 255]]


def test_two_views_by_hand():
    z = np.zeros((2, 4, 4))
    z[0, 0, 0], z[1, 0, 2] = 2, 4  # of a picture of three columns
    B, D = merge_views(z, np.arange(64.0).reshape(2, 2, 4, 4), (5, 11))
    assert B.shape == (2, 3) and B[0, 0] == pytest.approx(1 / (1 + np.exp(-3))) and B[1, 2] == 0.5
    assert (D == np.arange(32.0).reshape(2, 4, 4)[:, :2, :3]).all()


def test_parts_of_regions_by_hand():
    maps = np.array([[[0.9, 0.2, 0.5, 0.5]], [[0.1, 0.8, 0.0, 0.0]]])
    regions = np.array([[[1, 0, 1, 1]], [[0, 1, 0, 0]]], bool)
    scores, masks, classes = detect(maps, regions, [4, 2], 2)
    assert scores.tolist() == [0, 0.5, 0] and classes.tolist() == [4, 4, 2]
    assert masks[:, 0].astype(int).tolist() == [[1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]]
    assert detect(maps, regions, [4, 2], 1)[0].tolist() == [0.9, 0.5, 0.8]


def test_two_instances_of_a_class_are_told_apart():
    """The left half leads to one centre, the right half to another, a wall between: two instances, of one class."""
    h, w = 10, 16
    D = np.concatenate([field((5, 3), (h, w))[:, :, :8], field((5, 12), (h, w))[:, :, 8:]], axis=2)
    B = np.zeros((h, w))
    B[:, 7:9] = 1
    M = np.zeros((1, h, w))
    M[0, 2:8, 1:6], M[0, 2:8, 10:15] = 1, 0.9
    (scores, masks, classes), semantic = labels(M, [6], B, D, (38, 61))
    assert classes.tolist() == [6, 6] and max(scores) == 1 and masks.shape == (2, 38, 61)
    assert masks[0, 20, 14] and masks[1, 20, 50] and not (masks[0] & masks[1]).any()
    assert set(np.unique(semantic)) <= {0, 7} and (semantic[masks.any(0)] == 7).mean() > 0.9
    small = labels(M, [6], B, D, (38, 61), min_area=38 * 61)[0][0]
    assert small.tolist() == [0, 0]  # they stay, with no score


def test_nothing_to_find():
    D, B = np.zeros((2, 4, 4)), np.zeros((4, 4))
    for cam, keys in ((np.zeros((0, 4, 4)), []), (np.zeros((1, 4, 4)), [3])):
        (scores, masks, classes), semantic = labels(cam, keys, B, D, (15, 16))
        assert len(scores) == len(classes) == 0 and masks.shape == (0, 15, 16) and not semantic.any()
    cam = np.zeros((2, 4, 4))
    cam[1, 1, 1] = 1e-3  # a label and a map that is not 0: an instance, whose score is 1
    (scores, _, classes), _ = labels(cam, [3, 5], B, D, (15, 16), min_area=0)
    assert scores.max() == 1 and classes[scores.argmax()] == 5
