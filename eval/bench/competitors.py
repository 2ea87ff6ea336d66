"""What `prm bench` compares with: the same answers, computed as they usually are.

Written from the equations. Each gives the same answer as the fast path, so that a time is compared with a time for the
same work; where it does not, the class says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import operator
import sys
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from prm import InputError
from prm.accelerated.peak_backprop import PeakResponseMaps
from prm.accelerated.peak_stimulation import enlarge
from prm.accelerated.retrieval import Choice, Proposals, background, best, score, suppression
from prm.accelerated.stages import Walked
from prm.settings import SegmentationSettings

TINY = 1e-7  # of max(U_hat) * sum(W+_o): below it Z is rounding noise, as in the fast path
AS_THEY_ARE = (nn.MaxPool2d, nn.Dropout, nn.Identity)  # their gradient is what Eqs. 4-5 ask for


# ---- Eqs. 4-5 by automatic differentiation, one peak at a time


def folded(model: nn.Module) -> fx.GraphModule:
    """A copy of the model, in evaluation mode, whose batch norms are folded into the convolutions before them."""
    traced = fx.symbolic_trace(deepcopy(model).eval())
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.op == "call_module" else None
        if not (isinstance(_module(traced, node), nn.BatchNorm2d) and isinstance(_module(traced, source), nn.Conv2d)):
            continue
        fused = fuse_conv_bn_eval(_module(traced, source), _module(traced, node))
        traced.set_submodule(source.target, fused.requires_grad_(False))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _module(traced: fx.GraphModule, node) -> nn.Module | None:
    return traced.get_submodule(node.target) if isinstance(node, fx.Node) and node.op == "call_module" else None


class GradientWalk:
    """A network whose backward pass computes P, and the protocol of `PeakBackprop`: prepare(images).prms(peaks).

    The forward pass is stored with its graph; every peak is a backward pass of its own.
    """

    def __init__(self, network: nn.Module, upsample: int = 1, memory_format=torch.contiguous_format):
        self.network = network.to(memory_format=memory_format)
        self.upsample, self.memory_format = upsample, memory_format

    @torch.enable_grad()
    def prepare(self, images: Tensor, numbers: Sequence[int] | None = None) -> GradientRun:
        images = images.detach().clone(memory_format=self.memory_format).requires_grad_()
        maps = self.network(images)
        return GradientRun(images, maps.detach(), enlarge(maps, self.upsample))


class GradientRun:
    """The stored forward pass of a GradientWalk: class response maps `maps` (N, C, h, w), and enlarged, with graph."""

    def __init__(self, images: Tensor, maps: Tensor, enlarged: Tensor):
        self.images, self.maps, self.enlarged = images, maps, enlarged

    def prms(self, peaks: Tensor) -> PeakResponseMaps:
        """Of peaks (K, 4), rows (image, class, row, column) on the enlarged maps; what leaks is not counted."""
        none = torch.zeros(len(peaks), dtype=torch.float64, device=self.maps.device)
        out = self.images.new_empty(len(peaks), *self.images.shape[2:])
        for prm, (n, c, row, column) in zip(out, peaks.tolist()):
            start = torch.zeros_like(self.enlarged)
            start[n, c, row, column] = 1
            (P,) = torch.autograd.grad(self.enlarged, self.images, start, retain_graph=True)
            prm[:] = P[n].sum(dim=0)
        total = out.sum(dim=(1, 2), keepdim=True)
        empty = ~(total.flatten() > 0)
        return PeakResponseMaps(torch.where(total > 0, out / total, 0), none, empty, none)


def autograd_walk(model: nn.Module, upsample: int = 1, memory_format=torch.contiguous_format) -> GradientWalk:
    """Peak back-propagation through torch's autograd, with other backward passes put in the place of the layers' own.

    The same Eqs. 4-5 as the fast path, batch norm folded. Raises InputError for a layer it does not know.
    """
    traced = folded(model)
    for node in traced.graph.nodes:
        module = _module(traced, node)
        if isinstance(module, nn.Conv2d):
            traced.set_submodule(node.target, _WalkConvolution(module))
        elif isinstance(module, nn.ReLU):
            node.op, node.target, node.args, node.kwargs = "call_function", _relu, node.args[:1], {}
        elif node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add):
            node.target = _add
        elif node.op not in ("placeholder", "output") and not isinstance(module, AS_THEY_ARE):
            raise InputError(f"the competitor autograd knows no {node.target} ({node.name})")
    traced.recompile()
    return GradientWalk(traced, upsample, memory_format)


class _WalkConvolution(nn.Module):
    """A convolution in the forward pass, Eqs. 4-5 in the backward pass."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        self.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.register_buffer("weight", layer.weight.detach())
        self.register_buffer("positive", layer.weight.detach().clamp(min=0))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, U: Tensor) -> Tensor:
        return _Convolution.apply(U, self.weight, self.positive, self.bias, self.geometry)


class _Convolution(torch.autograd.Function):
    """P(U) = U_hat * convT(P(V) / Z, W+), with the normaliser Z computed once, in the forward pass."""

    @staticmethod
    def forward(ctx, U, weight, positive, bias, geometry):
        least = U.amin(dim=(1, 2, 3), keepdim=True)
        U_hat = U if bool((least >= 0).all()) else U - least.clamp(max=0)
        Z = F.conv2d(U_hat, positive, None, *geometry)
        floor = TINY * U_hat.amax(dim=(1, 2, 3), keepdim=True) * positive.sum(dim=(1, 2, 3))[:, None, None]
        ctx.save_for_backward(U_hat, torch.where(floor < Z, 1 / Z, 0), positive)
        ctx.geometry = geometry
        return F.conv2d(U, weight, bias, *geometry)

    @staticmethod
    def backward(ctx, P):
        U_hat, inverse, positive = ctx.saved_tensors
        below = torch.nn.grad.conv2d_input(U_hat.shape, positive, P * inverse, *ctx.geometry)
        return below * U_hat, None, None, None, None


def _relu(U: Tensor) -> Tensor:
    return _PassedOn.apply(U)


def _add(a: Tensor, b: Tensor) -> Tensor:
    return _SplitAddition.apply(a, b)


class _PassedOn(torch.autograd.Function):
    """ReLU; P unchanged."""

    @staticmethod
    def forward(ctx, U):
        return U.relu()

    @staticmethod
    def backward(ctx, P):
        return P


class _SplitAddition(torch.autograd.Function):
    """Residual addition; P in proportion to the summands' positive parts, equally where none is positive."""

    @staticmethod
    def forward(ctx, a, b):
        positive = a.clamp(min=0)
        total = positive + b.clamp(min=0)
        ctx.save_for_backward(torch.where(total > 0, positive / total, 0.5))
        return a + b

    @staticmethod
    def backward(ctx, P):
        (share,) = ctx.saved_tensors
        to_a = P * share
        return to_a, P - to_a


# ---- zennit


def zennit_walk(model: nn.Module) -> GradientWalk:
    """Excitation back-propagation by zennit's composite, batch norms merged by its canonizer, biases left out of Z.

    Where the network adds tensors it is another equation: both summands get the whole of P. And the image's negative
    values walk through negative weights, as with `PeakBackprop(signed=True)`. Raises InputError if zennit is missing.
    """
    composites, canonizers = zennit_parts()
    model = deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if getattr(module, "inplace", False):  # zennit's hooks read what the layer was given after it ran
            module.inplace = False
    composite = composites.ExcitationBackprop(zero_params=["bias"], canonizers=[canonizers.SequentialMergeBatchNorm()])
    composite.register(model)
    return GradientWalk(model)


def zennit_parts():
    """Its modules composites and canonizers.

    Its __init__ is passed over: it imports torchvision's models, which nothing here uses and which cannot be imported
    where torch is a CPU build and torchvision is not.
    """
    if "zennit" not in sys.modules:
        spec = importlib.util.find_spec("zennit")
        if spec is not None:
            sys.modules["zennit"] = importlib.util.module_from_spec(spec)
    try:
        return [importlib.import_module(f"zennit.{name}") for name in ("composites", "canonizers")]
    except ImportError as error:
        raise InputError(
            'the competitor zennit needs the extra "bench": pip install -c constraints.txt ".[bench]"'
        ) from error


def adds(model: nn.Module) -> bool:
    """Whether the network adds tensors, as residual networks do."""
    nodes = fx.symbolic_trace(model).graph.nodes
    return any(node.target in (operator.add, operator.iadd, torch.add) for node in nodes)


# ---- Eq. 6 with dense masks


class DenseRetrieval:
    """Eq. 6 and the suppression of Algorithm 1 as products of dense float32 matrices.

    masks, contours : (K, H * W) float32, made from run-length encoded proposals, H x W the size of the PRMs
    allowed : (K,) bool, whether the area lies inside the settings' limits
    """

    def __init__(self, proposals: Proposals, size: Sequence[int], s: SegmentationSettings):
        fraction = proposals.areas().double() / (proposals.height * proposals.width)
        self.allowed = (fraction >= s.min_area) & (fraction < s.max_area)
        self.size, proposals, width = tuple(size), proposals.resized(*size), s.contour
        shape = (len(proposals), size[0] * size[1])
        self.masks, self.contours = (torch.empty(shape, device=proposals.device) for _ in range(2))
        for first in range(0, len(proposals), 64):
            some = torch.arange(first, min(first + 64, len(proposals)))
            masks = proposals.masks(some).float()
            # max_pool2d pads with -inf: outside the picture neither dilation nor erosion sees anything.
            grown, shrunk = (sign * F.max_pool2d(sign * masks, width, 1, width // 2) for sign in (1, -1))
            self.masks[first : first + 64] = masks.flatten(1)
            self.contours[first : first + 64] = (grown - shrunk).flatten(1)

    def scores(self, walked: Walked, s: SegmentationSettings) -> Tensor:
        """Eq. 6, (P, K)."""
        own, of = walked.peaks[:, 0].unique(return_inverse=True)
        Q = background(walked.maps, own, self.size, s.bias).flatten(1).float()
        R = walked.prms.flatten(1)
        terms = [R.mm(self.masks.T), R.mm(self.contours.T), Q.mm(self.masks.T)[of]]
        return score(torch.stack(terms, dim=2), s.alpha, s.beta_area / (self.size[0] * self.size[1]))

    def choose(self, walked: Walked, scores: Tensor, s: SegmentationSettings) -> Choice:
        """The best proposal of each peak, and non-maximum suppression."""
        choice = best(scores, self.allowed)
        masks, value = self.masks[choice], scores.gather(1, choice[:, None])[:, 0]
        shared, areas = masks.mm(masks.T), masks.sum(dim=1)
        overlap = shared / (areas[:, None] + areas - shared).clamp(min=1) >= s.nms
        left = suppression(overlap, value, walked.peaks[:, 0], walked.peaks[:, 1:], s.nms_per_class)
        kept = torch.tensor(list(left), dtype=torch.int64, device=choice.device)
        return Choice(kept, choice[kept], value[kept], tuple(map(tuple, left.values())))


# ---- Eqs. 1-2 with max pooling


def pooled_peaks(maps: Tensor, window: int = 3) -> tuple[Tensor, Tensor]:
    """Scores (N, C) and peaks (K, 4) of class response maps (N, C, H, W), the threshold being each map's median.

    A position is a peak where max pooling over a padded map reports the position itself. Differentiable. A map none of
    whose peaks passes has none here, where the paper's operator keeps its maximum.
    """
    reach = window // 2
    padded = F.pad(maps.detach(), [reach] * 4, value=float("-inf"))
    height, width = padded.shape[2:]
    _, argmax = F.max_pool2d(padded, window, stride=1, return_indices=True)
    position = torch.arange(height * width, device=maps.device).view(height, width)
    valid = argmax == position[reach : height - reach, reach : width - reach]
    valid &= maps >= maps.detach().flatten(2).median(dim=2).values[:, :, None, None]
    scores = (maps * valid).sum(dim=(2, 3)) / valid.sum(dim=(2, 3))
    return scores, valid.nonzero()
