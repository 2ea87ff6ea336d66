"""The fast path behind the oracle's functions: arrays in, arrays out, computed on a device in a dtype.

A layer is wrapped in a small torch module, traced, and walked back through from any P: so tracing, rules and operators
are those that a whole network uses.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prm.accelerated import PeakBackprop, peak_stimulation
from prm.accelerated import pseudo_labels as wise
from prm.accelerated import retrieval as fast
from prm.accelerated.peak_backprop.tracing import make_plan
from prm.accelerated.peak_backprop.visits import Visits
from prm.accelerated.retrieval import Proposals
from prm.accelerated.training import soft_margin_loss
from prm.parity_tests.tolerances import as_array


class TorchPort:
    """`prm.accelerated` with the functions of `prm.reference`, on a device ("cpu", "cuda"), in a dtype (its name)."""

    def __init__(self, device: str = "cpu", dtype: str = "float32"):
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        others = ("conv2d", "add", "concatenate", "multiply", "permute", "transpose", "batch_norm")
        layers = {name: partial(self._layer, layer) for name, layer in LAYERS.items()}
        moving = {name: partial(self._moving, layer) for name, layer in MOVING.items()}
        retrieval = ("contour", "enlarged_response", "background", "terms", "score", "resize_nearest", "best_proposal",
                     "smoothed", "fit_terms", "best_fit", "nms")
        self.peak_stimulation = SimpleNamespace(forward=self._forward, backward=self._backward)
        self.peak_backprop = SimpleNamespace(**layers, **moving, **{name: getattr(self, f"_{name}") for name in others})
        self.retrieval = SimpleNamespace(**{name: getattr(self, f"_{name}") for name in retrieval})
        pseudo_labels = ("class_loss", "seed_map", "assign", "drawn", "refine")
        self.pseudo_labels = SimpleNamespace(**{name: getattr(self, f"_{name}") for name in pseudo_labels})

    def __repr__(self):
        return f'TorchPort("{self.device}", "{str(self.dtype).removeprefix("torch.")}")'

    def tensor(self, array, dtype=None):
        """The array on the device in the dtype, with the same strides."""
        source = torch.from_numpy(np.asarray(array))
        if not source.is_floating_point():
            return source.to(self.device)
        out = torch.empty_strided(source.shape, source.stride(), dtype=dtype or self.dtype, device=self.device)
        return out.copy_(source)

    # ---- Eq. 1-3

    def _forward(self, M, window=3, threshold="median", f="dirac", upsample=1):
        if f != "dirac":
            raise NotImplementedError("the fast path samples with the delta alone")
        M = self.tensor(M).requires_grad_()
        scores, peaks = peak_stimulation(M, window, threshold, upsample)
        return SimpleNamespace(scores=as_array(scores), peaks=peaks.cpu().numpy(), tensors=(M, scores))

    def _backward(self, grad_scores, result):
        M, scores = result.tensors
        (grad,) = torch.autograd.grad(scores, M, self.tensor(grad_scores, scores.dtype))
        if grad.dtype != M.dtype or grad.shape != M.shape:
            raise AssertionError(f"the gradient is {grad.dtype} {tuple(grad.shape)}, the maps {M.dtype}")
        return as_array(grad)

    # ---- Eq. 4-5

    def _back(self, layer, P, *U, signed=False):
        """P(U) of each input and the leaked mass, of the layer V = layer(*U)."""
        class Layer(nn.Module):
            """Several inputs are cut out of one flat image."""

            def forward(self, x):
                if len(shapes) == 1:
                    return layer(x)
                parts = x.split(sizes, 1)
                return layer(*(parts[i].reshape(x.shape[0], *shape) for i, shape in enumerate(shapes)))

        shapes, sizes = [np.shape(u) for u in U], [int(np.size(u)) for u in U]
        flat = [self.tensor(u).reshape(-1) for u in U]
        P_x, leaked = self.walk_back(Layer().eval(), P, torch.cat(flat) if len(U) > 1 else self.tensor(U[0]), signed)
        parts = np.split(P_x.ravel(), np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes)], leaked

    def walk_back(self, model, P, x, signed=False):
        """From any P at a torch model's output down to its input x, both without a batch axis: P(x) and the leak."""
        plan, P = make_plan(model, signed), self.tensor(P)
        # The other image of the batch must not matter.
        x = torch.stack([-2 * x.flip(-1), x])
        with torch.no_grad(), IN_FLOAT32():
            V, kept = plan.forward(x)
            if V.shape[1:] != P.shape:
                raise AssertionError(f"the layer's output has shape {tuple(V.shape[1:])}, P {tuple(P.shape)}")
            arrived = []
            plan.back(_parted(P), kept, lambda k, *found: arrived.append(found), memory=2**14)
        P_x = sum(as_array(visits.on_whole(tuple(x.shape[1:])).P).sum(axis=0) for visits, _ in arrived)
        return P_x, float(sum(leaked.sum() for _, (leaked, _) in arrived))

    def _layer(self, layer, P, U, return_leak=False, signed=False, **options):
        options = {name: self.tensor(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
        (P_U,), leaked = self._back(lambda x: layer(x, P, **options), P, U, signed=signed)
        return (P_U, leaked) if return_leak else P_U

    def _moving(self, layer, P, shape=None, **options):
        return self._layer(layer, P, np.zeros(P.shape if shape is None else shape), **options)

    def _conv2d(self, P, U, W, stride=1, padding=0, dilation=1, groups=1, signed=False, return_leak=False):
        W, sides = self.tensor(W), (0, 0, 0, 0)
        if not isinstance(padding, int) and len(padding) == 4:
            padding, sides = 0, padding

        def layer(x, P):
            x = F.pad(x, sides) if any(sides) else x
            return F.conv2d(x, W, None, stride, padding, dilation, groups)

        return self._layer(layer, P, U, return_leak, signed)

    def _add(self, P, summands, constant=()):
        tensors = {i: self.tensor(summands[i]) for i in constant}
        takers = [i for i in range(len(summands)) if i not in tensors]

        def layer(*U):
            values = dict(zip(takers, U)) | tensors
            return sum((values[i] for i in range(1, len(summands))), start=values[0])

        parts, _ = self._back(layer, P, *(summands[i] for i in takers))
        shares = dict(zip(takers, parts))
        return [shares.get(i, np.zeros(np.shape(U))) for i, U in enumerate(summands)]

    def _concatenate(self, P, shapes, axis=0):
        return self._back(lambda *U: torch.cat(U, axis + 1), P, *map(np.zeros, shapes))[0]

    def _multiply(self, P, shape):
        return self._back(lambda x, gate: x * torch.sigmoid(gate), P, np.zeros(shape), np.zeros(np.shape(P)))[0][0]

    def _transpose(self, P, axes):
        a, b = (axis + 1 for axis in axes)
        return self._moving(lambda x, P: x.transpose(a, b), P, np.swapaxes(P, *axes).shape)

    def _permute(self, P, axes):
        shape = tuple(np.array(P.shape)[np.argsort(axes)])
        return self._moving(lambda x, P: x.permute(0, *(a + 1 for a in axes)), P, shape)

    def _batch_norm(self, P):
        statistics = [self.tensor(np.linspace(low, 2, len(P))) for low in (-1, 1, -2, -1)]
        return self._moving(lambda x, P: F.batch_norm(x, *statistics), P)

    # ---- Eq. 6

    def _masks(self, masks, shape):
        stack = np.array(masks, bool).reshape(len(masks), *shape)
        return Proposals.from_masks(torch.from_numpy(stack).to(self.device))

    def _contour(self, S, width=5):
        return self._masks([S], S.shape).contours(width).masks()[0].cpu().numpy()

    def _enlarged_response(self, M, shape):
        return as_array(fast.enlarged_response(self.tensor(M)[None], shape)[0])

    def _background(self, M, shape, bias):
        return fast.background(self.tensor(M)[None], [0], shape, bias)[0].cpu().numpy()

    def _sums(self, R, prepared, Q):
        return fast.terms(self.tensor(R)[None], prepared, self.tensor(Q)[None], [0])

    def _terms(self, R, S, Q, width=5):
        return as_array(self._sums(R, fast.prepare(self._masks([S], S.shape), S.shape, width), Q)[0, 0])

    def _score(self, R, S, Q, alpha, beta, width=5):
        prepared = fast.prepare(self._masks([S], S.shape), S.shape, width)
        return as_array(fast.score(self._sums(R, prepared, Q), alpha, beta)[0, 0])

    def _resize_nearest(self, S, shape):
        return self._masks([S], S.shape).resized(*shape).masks()[0].cpu().numpy()

    def _best_proposal(self, R, proposals, Q, alpha, beta, width=5, area=(2e-5, 0.85)):
        shape = proposals[0].shape if proposals else R.shape
        prepared = fast.prepare(self._masks(proposals, shape), R.shape, width, *area)
        sums = self._sums(R, prepared, Q)
        scores = fast.score(sums, alpha, beta)
        index = int(fast.best(scores, prepared.allowed)[0])
        return None if index < 0 else (index, float(scores[0, index]), as_array(sums[0, index]))

    def _smoothed(self, R, smooth):
        return as_array(fast.smoothed(self.tensor(R)[None], smooth)[0] if smooth else self.tensor(R))

    def _fit(self, R, proposals, N, Q, objectness, width=5, smooth=0.0, area=(0.0, 1.1)):
        """The factors and all terms (1, K, 5), and which proposals have an area that is allowed."""
        shape = proposals[0].shape if proposals else R.shape
        masks = replace(self._masks(proposals, shape), objectness=torch.tensor(objectness, dtype=torch.float64))
        prepared = fast.prepare(masks.to(self.device), R.shape, width, *area)
        sums = self._sums(R, prepared, Q)
        found = fast.factors(self.tensor(R)[None], self.tensor(N)[None], prepared.masks, sums, smooth)
        return found, fast.all_terms(found, sums, sums[..., 2], torch.zeros(1, dtype=torch.int64)), prepared.allowed

    def _fit_terms(self, R, S, N, Q, objectness, width=5, smooth=0.0):
        return as_array(self._fit(R, [S], N, Q, [objectness], width, smooth)[1][0, 0])

    def _best_fit(
        self, R, proposals, N, Q, objectness, weights, width=5, area=(2e-5, 0.85), seed_pixel="free", smooth=0.0
    ):  # fmt: skip
        found, terms, allowed = self._fit(R, proposals, N, Q, objectness, width, smooth, area)
        index = int(fast.best_fit(terms, fast.candidates(found, allowed, seed_pixel), weights)[0])
        if index < 0:
            return None
        return index, float(fast.log_linear(terms, weights)[0, index]), as_array(terms[0, index])

    def _nms(self, instances, threshold=0.3, per_class=False, nested=None, again=False):
        if not instances:
            return []
        masks = self._masks([one.mask for one in instances], instances[0].mask.shape)
        scores = self.tensor(np.array([one.score for one in instances]))
        labels = torch.tensor([one.label for one in instances], device=self.device)
        peaks = torch.tensor([one.peak for one in instances], device=self.device)
        prms = self.tensor(np.array([one.prm for one in instances]))
        kept, merged = fast.nms(masks, scores, labels, peaks, prms, threshold, per_class, nested, again)
        return [
            SimpleNamespace(proposal=instances[k].proposal, prm=as_array(prm)) for k, prm in zip(kept.tolist(), merged)
        ]

    # ---- WISE

    def _class_loss(self, scores, labels):
        scores, labels = self.tensor(scores), self.tensor(labels).to(self.dtype)
        return float(soft_margin_loss(scores, labels, torch.ones_like(labels)))

    def _seed_map(self, peaks, prms, size=None):
        return wise.seed_map(self.tensor(peaks), self.tensor(prms), size).cpu().numpy()

    def _rated(self, masks, objectness):
        rated = torch.tensor(objectness, dtype=torch.float64, device=self.device)
        return replace(self._masks(masks, masks.shape[1:]), objectness=rated)

    def _assign(self, masks, objectness, seeds):
        found = wise.assign(self._rated(masks, objectness), self.tensor(seeds))
        columns = (found.seeds, found.proposals, found.scores, found.labels)
        return list(zip(*(column.tolist() for column in columns), as_array(found.probabilities)))

    def _drawn(self, probabilities, u):
        return int(wise.drawn(self.tensor(probabilities, torch.float64)[None], self.tensor(np.array([u]))))

    def _refine(self, detections, masks, objectness, threshold=0.75):
        found = self._masks(detections, masks.shape[1:])
        return wise.refine(found, self._rated(masks, objectness), threshold).masks().cpu().numpy()

    # ---- whole networks

    def walk_module(self, module, images, peaks, upsample=1, signed=False):
        """Maps (N, C, h, w), PRMs (K, H, W), leaked (K,) and empty (K,) of peaks (K, 4), for a torch module."""
        module = module.to(self.device, self.dtype)
        with IN_FLOAT32():
            run = PeakBackprop(module, upsample, signed).prepare(self.tensor(images))
            found = run.prms(torch.as_tensor(peaks))
        return as_array(run.maps), as_array(found.prms), as_array(found.leaked), found.empty.cpu().numpy()


def _interpolate(x, P, mode="bilinear", align_corners=False, scale=None):
    where = {"size": P.shape[1:]} if scale is None else {"scale_factor": scale}
    return F.interpolate(x, **where, mode=mode, **({"align_corners": align_corners} if mode == "bilinear" else {}))


# Layers of one input: V from x, P of V, and the options of the oracle's function.
LAYERS = {
    "linear": lambda x, P, W: F.linear(x, W),
    "max_pool2d": lambda x, P, kernel, **options: F.max_pool2d(x, kernel, **options),
    "adaptive_max_pool2d": lambda x, P: F.adaptive_max_pool2d(x, P.shape[1:]),
    "avg_pool2d": lambda x, P, kernel, **options: F.avg_pool2d(x, kernel, **options),
    "adaptive_avg_pool2d": lambda x, P: F.adaptive_avg_pool2d(x, P.shape[1:]),
    "mean": lambda x, P, axes=(1, 2): x.mean([a + 1 for a in axes], keepdim=P.ndim == 3),
    "interpolate": _interpolate,
    "summation": lambda x, P, axes: x.sum([a + 1 for a in axes], keepdim=P.ndim == 3),
}
# Those where the values of x do not matter: given its shape, if it is not P's.
MOVING = {
    "pad": lambda x, P, padding, mode: F.pad(x, padding, mode),
    "slice_axis": lambda x, P, axis, **cut: x[(slice(None),) * (axis + 1) + (slice(*map(cut.get, CUT)),)],
    "reshape": lambda x, P: x.reshape(x.shape[0], *P.shape),
    "expand": lambda x, P: x.expand(x.shape[0], *P.shape),
    "normalization": lambda x, P: F.layer_norm(x, P.shape[-1:]),
    "activation": lambda x, P: F.gelu(x),
}
CUT = ("start", "stop", "step")

# A card's TF32 rounds activations to 11 bits: another network than the oracle's.
IN_FLOAT32 = partial(torch.backends.cudnn.flags, enabled=True, allow_tf32=False)


def _parted(P):
    """Visits P (C, h, w) of image 1 as four peaks, each in a window of its own; now and then whole, as all else is."""
    image = np.ones(4, np.int64)
    if P.dim() != 3 or min(P.shape[1:]) < 2 or int((P > 0).sum()) % 3 == 0:
        return Visits.whole(P[None], image[:1])
    (h, w), left, values = ((n + 1) // 2 for n in P.shape[1:]), P.clone(), []
    origin = np.array([(i, j) for i in (0, P.shape[1] - h) for j in (0, P.shape[2] - w)])
    for i, j in origin.tolist():
        values.append(left[:, i : i + h, j : j + w].clone())
        left[:, i : i + h, j : j + w] = 0
    return Visits(torch.stack(values), origin, origin + np.array([h, w]), origin, image)


class Recorder(TorchDispatchMode):
    """The names of the `prm` operators that ran while it was active."""

    def __init__(self):
        super().__init__()
        self.calls = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "prm":
            self.calls.add(f"prm::{func._opname}")
        return func(*args, **(kwargs or {}))


def runs_on(call: str, device: str) -> str:
    """What answers an operator on a device type: "kernel", one registered for this device, or "torch code"."""
    key = torch._C._dispatch_key_for_device(torch.device(device).type)
    return "kernel" if torch._C._dispatch_has_kernel_for_dispatch_key(call, key) else "torch code"
