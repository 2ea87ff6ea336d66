"""What every implementation must satisfy whatever its numbers: on the oracle and on the fast path alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import prm.reference
from prm.parity_tests.conformance import answered_walks
from prm.parity_tests.convert import to_reference
from prm.parity_tests.operators import (
    OPERATORS,
    convolutions,
    features,
    instances,
    linears,
    scored,
    suppressed,
    visits,
)
from prm.parity_tests.strategies import cnns, exact_maps
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.parity_tests.torch_port import TorchPort
from prm.parity_tests.walks import oracle_walks
from prm.parity_tests.zoo import SmallCnn
from prm.reference.network import forward
from prm.reference.peak_backprop import start

F64 = torch.float64
LEAKING = ("conv2d", "linear", "avg_pool2d", "adaptive_avg_pool2d", "mean", "interpolate")
KEEPING = ("max_pool2d", "adaptive_max_pool2d", "add", "concatenate", "slice_axis", "multiply", "reshape", "expand",
           "permute", "transpose", "batch_norm", "normalization", "activation")  # fmt: skip


@pytest.fixture(scope="module", params=["oracle", "fast path"])
def port(request):
    """An implementation in float64, and both of them in turn."""
    return prm.reference if request.param == "oracle" else TorchPort(request.config.getoption("--device"), "float64")


def back(port, name, arguments):
    """P(U), flat, of all inputs together, and the leaked mass."""
    answer = OPERATORS[f"peak_backprop.{name}"].answer(port, arguments)
    leaked = float(answer.pop("leaked", 0.0))
    return np.concatenate([np.ravel(P) for P in answer.values()]), leaked


def image_visits(port, case):
    """P at the image (K, C, H, W) and leaked (K,), each peak's walk started at 1, for the one module of the case."""
    module, images = case.module(), case.pictures().numpy()
    network = to_reference(module)
    activations = [forward(network, image) for image in images]
    maps = np.stack([a[network.output] for a in activations])
    P, leaked = [], []
    for n, *peak in case.positions(maps.shape):
        if port is prm.reference:
            walk = port.network.walk(network, activations[n], peak, case.upsample, case.signed)
            one, lost = walk.P, walk.leaked
        else:
            first = start(peak, maps.shape[1:], case.upsample)
            one, lost = port.walk_back(module.to(port.device), first, port.tensor(images[n]), case.signed)
        P.append(one)
        leaked.append(lost)
    return np.stack(P), np.array(leaked)


def prms(port, case):
    """Maps, PRMs, leaked and empty of a case, as arrays."""
    return answered_walks(case, port, "float64").values()


def walked(port, module, images, peaks, upsample):
    """PRMs of peaks (n, class, row, column) of a module."""
    if port is not prm.reference:
        return port.walk_module(module, images, peaks, upsample)[1]
    return np.stack([walk.prm for walk in oracle_walks(module, images, peaks, upsample)[1]])


# ---- Eq. 4-5, a layer at a time


@pytest.mark.parametrize("name", LEAKING + KEEPING)
@given(data=st.data())
def test_no_mass_is_made_or_lost_and_none_is_negative(port, name, data):
    arguments = data.draw(OPERATORS[f"peak_backprop.{name}"].cases(F64))
    P_U, leaked = back(port, name, arguments)
    assert (P_U >= 0).all() and leaked >= 0
    mass = arguments["P"].sum()
    if name == "add" and len(arguments["constant"]) == len(arguments["summands"]):
        mass = 0.0
    assert abs(P_U.sum() + leaked - mass) <= 1e-12 * max(mass, 1)
    assert name in LEAKING or leaked == 0


@pytest.mark.parametrize("name", LEAKING + KEEPING)
@given(data=st.data())
def test_the_walk_is_linear_in_P(port, name, data):
    arguments = data.draw(OPERATORS[f"peak_backprop.{name}"].cases(F64))
    other = {**arguments, "P": visits(np.random.default_rng(data.draw(st.integers(0, 999))), arguments["P"].shape)}
    together = {**arguments, "P": 2.0 * arguments["P"] + 0.75 * other["P"]}
    (one, one_leaked), (two, two_leaked) = back(port, name, arguments), back(port, name, other)
    both, leaked = back(port, name, together)
    assert_close(both, 2.0 * one + 0.75 * two, F64, "P(U) of the sum")
    assert abs(leaked - 2.0 * one_leaked - 0.75 * two_leaked) < 1e-12 * max(together["P"].sum(), 1)


@pytest.mark.parametrize("name", ["conv2d", "linear"])
@given(data=st.data())
def test_a_positive_factor_on_a_filter_changes_nothing(port, name, data):
    arguments = data.draw({"conv2d": convolutions, "linear": linears}[name](F64))
    W = arguments["W"]
    factors = np.array(data.draw(st.lists(st.sampled_from([0.01, 0.5, 3.0, 1e6]), min_size=len(W), max_size=len(W))))
    scaled = {**arguments, "W": W * factors.reshape(-1, *[1] * (W.ndim - 1))}
    (P_U, leaked), (same, same_leaked) = back(port, name, arguments), back(port, name, scaled)
    assert_close(same, P_U, F64, "P(U)")
    assert abs(same_leaked - leaked) < 1e-12 * max(arguments["P"].sum(), 1)


@given(arguments=convolutions(F64), seed=st.integers(0, 999))
def test_permuted_channels_permute_the_answer(port, arguments, seed):
    assume(arguments["groups"] == 1)
    rng, U, W = np.random.default_rng(seed), arguments["U"], arguments["W"]
    into, out = rng.permutation(W.shape[1]), rng.permutation(W.shape[0])
    moved = {**arguments, "U": U[into], "W": W[out][:, into], "P": arguments["P"][out]}
    (P_U, leaked), (same, same_leaked) = back(port, "conv2d", arguments), back(port, "conv2d", moved)
    assert_close(same.reshape(U.shape), P_U.reshape(U.shape)[into], F64, "P(U)")
    assert abs(same_leaked - leaked) < 1e-12 * max(arguments["P"].sum(), 1)


# ---- Eq. 4-5, whole networks


@given(case=cnns())
def test_the_start_mass_arrives_or_leaks(port, case):
    P, leaked = image_visits(port, case)
    assert (P >= 0).all() and (leaked >= 0).all()
    assert np.abs(P.sum((1, 2, 3)) + leaked - 1).max() < 1e-9


def structure(module):
    """The same connections with positive weights and averages for maxima: its gradient shows what each output sees."""
    for path, part in list(module.named_modules()):
        if isinstance(part, nn.Conv2d):
            nn.init.constant_(part.weight, 1 / part.weight[0].numel())
            nn.init.constant_(part.bias, 0.0) if part.bias is not None else None
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.MaxPool2d):
            parent, _, name = path.rpartition(".")
            average = nn.AvgPool2d(part.kernel_size, part.stride, part.padding, part.ceil_mode)
            setattr(module.get_submodule(parent), name, average)
    return module


@given(case=cnns())
def test_a_prm_is_zero_outside_the_receptive_field(port, case):
    # a gate is global, and these two take maxima that an average does not stand in for
    assume(not {"gate", "max_dilated", "branches"} & set(case.blocks))
    maps, found, *_ = prms(port, case)
    sees = structure(case.module())
    x = torch.ones(1, 3, *case.size, dtype=F64, requires_grad=True)
    out = sees(x)[0].sum(0)
    for prm_, (_, _, *position) in zip(found, case.positions(maps.shape)):
        at = torch.from_numpy(start((0, *position), (1, *out.shape), case.upsample)[0])
        (gradient,) = torch.autograd.grad(out, x, at, retain_graph=True)
        seen = gradient[0].abs().sum(0).numpy() > 0
        assert (prm_[~seen] == 0).all()


MIRRORED = ("plain", "bare", "dilated", "grouped", "depthwise", "residual", "concat", "halves", "folded", "unfolded",
            "gate", "dense_norm", "branches", "separable_norm", "leaky")  # fmt: skip


@given(blocks=st.lists(st.sampled_from(MIRRORED), min_size=1, max_size=3), case=cnns(), seed=st.integers(0, 999))
def test_a_flipped_picture_flips_the_prm_of_a_symmetric_network(port, blocks, case, seed):
    module = SmallCnn(blocks, seed).double()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.weight += part.weight.flip(3).clone()
    images = case.pictures().numpy()
    (H, W), upsample = case.size, case.upsample
    peaks = np.random.default_rng(seed).integers(0, (len(images), 3, upsample * H, upsample * W), (3, 4))
    flipped = peaks * [1, 1, 1, -1] + [0, 0, 0, upsample * W - 1]
    prm_, mirrored = (
        walked(port, module, given, rows, upsample)
        for given, rows in ((images, peaks), (images[..., ::-1].copy(), flipped))
    )
    assert_close(mirrored[..., ::-1], prm_, F64, "the flipped PRM", NETWORK)


# ---- Eq. 1-3


@given(M=exact_maps(F64, ("fine", "coarse", "negative", "plateaus")), seed=st.integers(0, 999))
def test_what_leaves_threshold_and_valid_peaks_alone_leaves_the_score_alone(port, M, seed):
    before = port.peak_stimulation.forward(M, threshold=0.0)
    at = np.zeros(M.shape, bool)
    at[tuple(np.asarray(before.peaks).T)] = True
    # A map whose best value stays below the threshold keeps that value: there nothing may change.
    assume((M[at] >= 0).all())
    below = -np.random.default_rng(seed).integers(1, 99, M.shape) / 8.0
    after = port.peak_stimulation.forward(np.where(at, M, below), threshold=0.0)
    np.testing.assert_array_equal(after.peaks, before.peaks)
    np.testing.assert_array_equal(after.scores, before.scores)
    gradients = [np.asarray(port.peak_stimulation.backward(np.ones(M.shape[:2]), r)) for r in (before, after)]
    np.testing.assert_array_equal(*gradients)


# ---- Eq. 6


@given(arguments=scored(F64), a=st.sampled_from([0.25, 1.0, 3.0]), b=st.sampled_from([0.125, 2.0]))
def test_the_score_is_linear_in_alpha_and_beta(port, arguments, a, b):
    def score(alpha, beta):
        return float(port.retrieval.score(**{**arguments, "alpha": alpha, "beta": beta}))

    rest = score(0, 0)
    assert score(a, b) - rest == a * (score(1, 0) - rest) + b * (score(0, 1) - rest)
    assert score(1, 0) >= rest >= score(0, 1)


@given(arguments=suppressed(F64))
def test_suppression_is_idempotent(port, arguments):
    options = {key: arguments[key] for key in ("threshold", "per_class", "nested", "again")}
    given = instances(arguments)
    once = port.retrieval.nms(given, **options)
    left = [replace(given[one.proposal], prm=np.asarray(one.prm)) for one in once]
    twice = port.retrieval.nms(left, **options)
    assert [one.proposal for one in twice] == [one.proposal for one in once]
    for one, same in zip(once, twice):
        assert_close(same.prm, one.prm, F64, "PRM")


def test_features_are_as_their_kind_says():
    rng = np.random.default_rng(0)
    assert features(rng, (50,), "rectified").min() == 0 < features(rng, (50,), "rectified").max()
    assert features(rng, (50,), "negative").max() <= 0 > features(rng, (50,), "both signs").min()
