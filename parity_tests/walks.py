"""What tests of the walk share: pictures, peaks, and the comparison of a module's walks with the oracle's."""

import numpy as np
import torch

from prm.accelerated import PeakBackprop
from prm.parity_tests.convert import to_reference
from prm.parity_tests.tolerances import NETWORK, as_array, assert_close
from prm.reference.network import forward, walk


def pictures(*size, count=2, seed=0):
    """(count, 3, *size) float64 of both signs."""
    return torch.randn(count, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_peaks(maps, seed=0, count=4, upsample=1):
    """The four corners of the first map, and random positions of random maps, in no order."""
    N, C, h, w = maps.shape
    h, w = h * upsample, w * upsample
    corners = [(0, 0, i, j) for i in (0, h - 1) for j in (0, w - 1)]
    rng = np.random.default_rng(seed)
    anywhere = [tuple(int(rng.integers(n)) for n in (N, C, h, w)) for _ in range(count)]
    return torch.tensor([anywhere[0], *corners, *anywhere[1:]])


def oracle_walks(module, images, peaks, upsample=1, signed=False):
    """The oracle's maps (N, C, h, w), and its walk from each of the peaks (n, c, row, column)."""
    network = to_reference(module)
    activations = [forward(network, as_array(image)) for image in images]
    walks = [walk(network, activations[n], peak, upsample, signed) for n, *peak in np.asarray(peaks).tolist()]
    return np.stack([a[network.output] for a in activations]), walks


def assert_same_walks(found, expected, dtype):
    """PRMs, leaked mass and empty flags of the fast path against the oracle's walks, and what both must satisfy."""
    assert len(found.prms) == len(expected) and found.prms.dtype == dtype
    for k, wanted in enumerate(expected):
        assert_close(found.prms[k], wanted.prm, dtype, f"PRM {k}", NETWORK)
        assert abs(float(found.leaked[k]) - wanted.leaked) <= NETWORK[dtype], f"leaked {k}"
        assert abs(wanted.arrived + wanted.leaked - 1) < 1e-9
        assert bool(found.empty[k]) == wanted.empty
        total = float(found.prms[k].double().sum())
        assert total == 0 if wanted.empty else abs(total - 1) < NETWORK[dtype]
        assert float(found.prms[k].min()) >= 0


def assert_walks_agree(module, images, peaks=None, upsample=1, signed=False):
    """Maps and walks of the fast path against the oracle's; the maps against the module's own, too. What was found."""
    dtype, device = images.dtype, images.device
    run = PeakBackprop(module, upsample=upsample, signed=signed).prepare(images)
    peaks = some_peaks(run.maps, upsample=upsample) if peaks is None else torch.as_tensor(peaks)
    maps, expected = oracle_walks(module, images, peaks, upsample, signed)
    with torch.no_grad():
        assert_close(run.maps, module(images.clone()), dtype, "maps against the model's own", NETWORK)
    assert_close(run.maps, maps, dtype, "maps", NETWORK)
    found = run.prms(peaks.to(device))
    assert_same_walks(found, expected, dtype)
    return found
