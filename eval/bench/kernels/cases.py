"""The cases of `prm bench kernels`, as data: what the kernels meet where peaks are found, walked from and retrieved.

Every case also has a reduced form, the same structure in a size that an interpreter gets through, and there are a few
samples of each kernel for compilation. Geometry comes from real walks of VGG16 and ResNet-50; a test keeps it so.
"""

from __future__ import annotations

from functools import cache, partial

from .case import PEAKS, Case
from .layers import WalkConvolution, WalkMaxPool, WalkRatio, WalkWindows
from .stages import BestProposal, PeakPooling, RunSums, Walk

FLOATS = ("float32", "float64", "bfloat16", "float16")
PRECISIONS = (("float32", "ieee"), ("float32", "tf32"), ("float32", "bf16"), ("bfloat16", "ieee"))

# Convolutions of a network at 448 x 448 that a walk from a central peak passes, the widest windows of each:
# (C_in, C_out, kernel, stride, padding, side of the map above, of its window, of the window below, how far that begins
# after the first position that the window above reaches).
CONVOLUTIONS = {
    "resnet50": (
        (2048, 20, 1, 1, 0, 14, 2, 2, 0), (512, 2048, 1, 1, 0, 14, 6, 6, 0), (512, 512, 3, 1, 1, 14, 4, 6, 0),
        (2048, 512, 1, 1, 0, 14, 6, 6, 0), (512, 512, 3, 2, 1, 14, 6, 14, 0), (1024, 512, 1, 1, 0, 28, 14, 14, 0),
        (1024, 2048, 1, 2, 0, 14, 6, 12, 0), (256, 1024, 1, 1, 0, 28, 24, 24, 0), (256, 256, 3, 1, 1, 28, 24, 24, 1),
        (1024, 256, 1, 1, 0, 28, 24, 24, 0), (256, 256, 3, 2, 1, 28, 24, 48, 0), (512, 256, 1, 1, 0, 56, 48, 48, 0),
        (512, 1024, 1, 2, 0, 28, 24, 48, 0), (128, 512, 1, 1, 0, 56, 56, 56, 0), (128, 128, 3, 1, 1, 56, 56, 56, 1),
        (512, 128, 1, 1, 0, 56, 56, 56, 0), (128, 128, 3, 2, 1, 56, 56, 112, 1), (256, 128, 1, 1, 0, 112, 112, 112, 0),
        (256, 512, 1, 2, 0, 56, 56, 112, 0), (64, 256, 1, 1, 0, 112, 112, 112, 0), (64, 64, 3, 1, 1, 112, 112, 112, 1),
        (256, 64, 1, 1, 0, 112, 112, 112, 0), (64, 64, 1, 1, 0, 112, 112, 112, 0), (3, 64, 7, 2, 3, 224, 224, 448, 3),
    ),
    "vgg16": (
        (512, 20, 1, 1, 0, 14, 2, 2, 0), (512, 512, 3, 1, 1, 28, 8, 10, 0), (512, 512, 3, 1, 1, 56, 24, 24, 0),
        (256, 512, 3, 1, 1, 56, 24, 28, 0), (256, 256, 3, 1, 1, 112, 56, 56, 0), (128, 256, 3, 1, 1, 112, 56, 64, 0),
        (128, 128, 3, 1, 1, 224, 128, 128, 0), (64, 128, 3, 1, 1, 224, 128, 128, 0),
        (64, 64, 3, 1, 1, 448, 256, 256, 0), (3, 64, 3, 1, 1, 448, 256, 256, 0),
    ),
}  # fmt: skip
# Max poolings of the same walks: (channels, kernel, stride, padding, side of the pooled map, of its window, of the
# window below, where that begins as above).
POOLINGS = {
    "resnet50": ((64, 3, 2, 1, 112, 112, 224, 1),),
    "vgg16": (
        (512, 2, 2, 0, 14, 2, 4, 0), (512, 2, 2, 0, 28, 10, 20, 0), (256, 2, 2, 0, 56, 28, 56, 0),
        (128, 2, 2, 0, 112, 64, 128, 0), (64, 2, 2, 0, 224, 128, 256, 0),
    ),
}  # fmt: skip
# Products with shared maps and sums of windows, of the same walks: (channels, side of the map, of the window, of the
# window that is written, where that begins inside of the other, maps to multiply by, whether it is added to).
WINDOWS = {
    "resnet50": (
        (2048, 14, 4, 6, -1, 1, True), (1024, 28, 20, 24, -2, 1, True), (1024, 28, 24, 24, 0, 1, False),
        (1024, 28, 24, 24, 0, 0, True), (1024, 28, 20, 20, -1, 0, False), (512, 56, 48, 56, -7, 1, True),
        (512, 56, 48, 48, -1, 0, False), (512, 56, 56, 56, 0, 1, False), (512, 56, 56, 56, 0, 0, True),
        (256, 112, 112, 112, 0, 0, True), (256, 112, 112, 112, 0, 1, False), (64, 112, 112, 112, 0, 0, True),
        (3, 448, 448, 448, 0, 1, False),
    ),
    "vgg16": ((3, 448, 256, 256, 0, 1, False), (1, 448, 256, 448, -134, 0, False)),
}  # fmt: skip


@cache
def cases() -> tuple[Case, ...]:
    """All cases of the bench, each once."""
    found: dict[str, Case] = {}
    for group in (_pooling, _convolutions, _between, _walks, _retrieval):
        for case in group():
            found.setdefault(case.name, case)
    return tuple(found.values())


def _pooling():
    for dtype in ("float32", "bfloat16", "float16"):
        yield PeakPooling((16, 20, 14, 14), 8, dtype)
        for shape in ((16, 20, 112, 112), (16, 80, 112, 112), (4, 80, 448, 448)):
            yield PeakPooling(shape, 1, dtype)


def _convolutions():
    for geometry in (geometry for listed in CONVOLUTIONS.values() for geometry in listed):
        for dtype in ("float32", "bfloat16"):
            yield WalkRatio(*geometry[:6], dtype)
        for peaks in PEAKS:
            for dtype, precision in PRECISIONS:
                yield WalkConvolution(*geometry, peaks, dtype, precision)


def _between():
    for dtype in ("float32", "bfloat16"):
        for peaks in PEAKS:
            for listed, make in ((WINDOWS, WalkWindows), (POOLINGS, WalkMaxPool)):
                yield from (make(*geometry, peaks, dtype) for part in listed.values() for geometry in part)


def _walks():
    for name in ("resnet50", "vgg16"):
        for size in ((448, 448), (800, 1333)):
            yield from (Walk(name, *size, peaks) for peaks in PEAKS[:3])
        yield from (Walk(name, 448, 448, 32, precision) for precision in ("tf32", "bf16"))


def _retrieval():
    for maps, masks in ((32, 200), (32, 2000), (256, 2000)):
        yield from (make(maps, masks) for make in (RunSums, BestProposal))


def samples() -> tuple[Case, ...]:
    """What is compiled: one case for each kernel, dtype, precision and form of code, of few bytes."""
    pool = partial(PeakPooling, (16, 20, 14, 14))
    three, one, first, widest = ((256, 256, 3, 1, 1, 28, 24, 24, 1), (1024, 256, 1, 1, 0, 28, 24, 24, 0),
                                 (3, 64, 7, 2, 3, 56, 16, 32, 3), (64, 64, 2, 2, 0, 28, 8, 16, 0))  # fmt: skip
    return (
        *(pool(upsample, dtype) for upsample in (1, 8) for dtype in ("float32", "bfloat16", "float16")),
        *(pool(1, "float32", kind) for kind in ("mean", "max", "constant")),
        *(PeakPooling((4, 20, 112, 112), 1, dtype) for dtype in ("float32", "bfloat16", "float16")),
        *(WalkConvolution(*three, 8, dtype, precision) for dtype, precision in PRECISIONS),
        *(WalkConvolution(*geometry, 8, "float32") for geometry in (one, first)),
        WalkConvolution(*widest, 8, "float32", groups=64),  # average pooling
        *(WalkRatio(*three[:6], dtype) for dtype in ("float32", "bfloat16")),
        WalkRatio(*first[:6], "float32", above=False),
        *(WalkWindows(256, 28, 16, 20, -2, maps, add, 8, dtype)
          for maps, add, dtype in ((0, True, "float32"), (2, False, "float32"), (1, False, "bfloat16"))),
        *(WalkMaxPool(*geometry, 8, dtype) for geometry, dtype in
          (((64, 3, 2, 1, 28, 16, 32, 1), "float32"), ((64, 2, 2, 0, 28, 16, 32, 0), "bfloat16"))),
        *(RunSums(8, 16, 24, 32, dtype) for dtype in FLOATS), *(BestProposal(8, 16, dtype) for dtype in FLOATS),
    )  # fmt: skip
