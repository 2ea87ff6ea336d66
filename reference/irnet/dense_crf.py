"""A fully connected conditional random field (Krähenbühl & Koltun, NIPS 2011) on a label map, by mean field, exactly.

Symbols: U unary energy; K_1 kernel of positions, K_2 of positions and colours; S row sums of a kernel; Q the labels'
probabilities. Every pair of pixels is summed: O((HW)^2) in time.
"""

import numpy as np

SURE = 0.7  # probability of the label given
SMOOTH = 3.0  # spread of K_1, pixels
FAR, COLOUR = 50.0, 5.0  # spreads of K_2: pixels, and 8-bit steps of a channel
WEIGHTS = (3.0, 10.0)
PAIRS = 2**22  # entries of a kernel that are held at a time


def crf(image, label, n, steps=10, weights=WEIGHTS) -> np.ndarray:
    """Q (n, H, W) after `steps` steps of mean field, all pixels at once.

    image: (H, W, 3) 8-bit RGB; label: (H, W) 0..n - 1; weights: w_1, w_2. U = -log p, with p = 0.7 for the label given
    and 0.3 / (n - 1) for each other; Q starts as softmax(-U); then Q_i(l) is proportional to
    exp(-U_i(l) + sum over m and j of w_m K~m_ij Q_j(l)), K~ = S^-1/2 K S^-1/2, the pixel itself included. ValueError
    for sizes or labels that do not fit.
    """
    image, label = np.asarray(image, np.float64), np.asarray(label)
    if image.ndim != 3 or image.shape[2] != 3 or label.shape != image.shape[:2]:
        raise ValueError(f"picture {image.shape} and labels {label.shape}: (H, W, 3) and (H, W)")
    if n < 1 or label.min(initial=0) < 0 or label.max(initial=0) >= n:
        raise ValueError(f"labels must be 0 .. {n - 1}, and n 1 or more")
    p = np.full((n, label.size), 0.3 / max(n - 1, 1))
    p[label.ravel(), np.arange(label.size)] = SURE
    U = -np.log(p)
    place = np.indices(label.shape).reshape(2, -1).T.astype(np.float64)
    kernels = [_Kernel(place / SMOOTH), _Kernel(np.hstack([place / FAR, image.reshape(-1, 3) / COLOUR]))]
    Q = _softmax(-U)
    for _ in range(steps):
        Q = _softmax(-U + sum(w * K.times(Q) for w, K in zip(weights, kernels)))
    return Q.reshape(n, *label.shape)


class _Kernel:
    """exp(-|f_i - f_j|^2 / 2) between all pixels, scaled by its row sums on both sides; features f (N, k)."""

    def __init__(self, features):
        self.features = features
        self.root = np.ones(len(features))
        self.root = 1 / np.sqrt(self.times(np.ones((1, len(features))))[0])

    def times(self, Q):
        """K~ Q for each label: (n, N)."""
        f, found = self.features, np.empty_like(Q)
        step = max(1, PAIRS // max(1, len(f)))
        for first in range(0, len(f), step):
            own = f[first : first + step]
            distance = ((own**2).sum(1)[:, None] + (f**2).sum(1) - 2 * own @ f.T).clip(0)
            found[:, first : first + step] = (Q * self.root) @ np.exp(-distance / 2).T
        return found * self.root


def _softmax(x):
    e = np.exp(x - x.max(0))
    return e / e.sum(0)
