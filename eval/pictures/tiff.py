"""TIFF files by their axes: channels, pages, slices and frames, as microscopes write them, OME and ImageJ among them.

Axes are named as in tifffile: Y and X; S, the samples of a pixel; C, channels; Z, slices; T, frames; I, pages that
nothing is said about; Q, an axis that nobody named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from prm import InputError
from prm.settings import ReadSettings

from .decoding import check_pixels, composed, decode, in_one_line, pages_to, stretched, to_rgb, told_channels
from .orientation import turned

if TYPE_CHECKING:
    import tifffile

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it has to say about tags is not for our users

BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What a TIFF file begins with."""


def read_tiff(file: BinaryIO, name: str, settings: ReadSettings, note: Callable[[str], None]) -> np.ndarray:
    """A picture of a TIFF as (H, W, 3) uint8 RGB, upright.

    file, name: as for `decode`. note: told in one line what was taken, where the file holds more than that.

    Of pages, slices and frames the first is taken, or `settings.page`; of named channels one is grey and three are red,
    green and blue, or `settings.channels` says which. 8 bits stay as they are, and everything else is stretched from
    its own [min, max], each channel by itself; but colours of 16 bits keep the high byte, and of more are stretched as
    one. Memory: the page as it is in the file, 1 byte a pixel of each channel, and the answer.

    Raises InputError: as `read_image`; a page or channel that is not there; two, four or more channels, or an axis
    without a name, of which the settings do not say what to take.
    """
    try:
        import tifffile
    except ImportError:
        note(f"{name}: took the first page as it is; all else needs tifffile")
        return decode(file, name)
    file.seek(0)
    try:
        tiff = tifffile.TiffFile(file)
        count = len(tiff.series)
        first = tiff.series[0]  # read now: whatever is wrong with the tags shows here
    except Exception:
        return decode(file, name)  # what Pillow cannot read either, it says why
    with in_one_line(name), tiff:
        series, left, number = first, settings.page, 0
        if count > 1 and left is not None and left.isdecimal() and not _page_axes(first):
            number, left = int(left), None
            if number >= count:
                raise InputError(f"{name}: has {pages_to(count)}, and no page {number} (--page)")
            series = tiff.series[number]
        taken = _choose(series, name, settings.channel_numbers, left)
        picture = _picture(file, name, series, taken)
    said = [*([f"page {number} of {count}"] if count > 1 else []), *taken.said]
    if said:
        note(f"{name}: axes {_told(taken)}: took {', '.join(said)}")
    return picture


# ---- what to take


@dataclass
class _Taken:
    """What is taken of a series with these axes: a place on each of the axes `at`, and which `channels` of axis `of`.

    channels: None takes the picture as it is, grey or in colours.
    """

    axes: str
    shape: tuple[int, ...]
    at: dict[str, int] = field(default_factory=dict)
    of: str | None = None
    channels: Sequence[int] | None = None
    said: list[str] = field(default_factory=list)


def _told(taken: _Taken) -> str:
    return f"{taken.axes} ({', '.join(map(str, taken.shape))})"


def _sizes(series: tifffile.TiffPageSeries) -> tuple[str, dict[str, int]]:
    """The axes, and the lengths of those that are longer than 1.

    An array (Y, X, C) that was saved as it is looks like Y pages of X rows: nobody stacks pictures a few pixels wide.
    """
    axes, shape = series.axes, series.shape
    if axes == "QYX" and shape[2] <= 4 < min(shape[:2]):
        axes = "YXC"
    return axes, {axis: length for axis, length in zip(axes, shape) if length > 1}


def _is_colour(series: tifffile.TiffPageSeries) -> bool:
    """Whether the samples of a pixel are a colour, or grey with transparency, and not channels."""
    page = series.keyframe
    if _word(page.photometric) in ("MINISBLACK", "MINISWHITE"):
        return page.samplesperpixel == 2 and bool(page.extrasamples) and int(page.extrasamples[0]) in (1, 2)
    return page.samplesperpixel > 1


def _page_axes(series: tifffile.TiffPageSeries) -> list[str]:
    """The axes along which pictures lie, each of them whole."""
    axes, sizes = _sizes(series)
    apart = "YXS" if _is_colour(series) else "YXSC"
    return [axis for axis in axes if axis in sizes and axis not in apart]


def _choose(series: tifffile.TiffPageSeries, name: str, channels: Sequence[int] | None, page: str | None) -> _Taken:
    """What the settings, or what is usual, take of a series; InputError where that cannot be said."""
    axes, sizes = _sizes(series)
    taken, colour, pages = _Taken(axes, series.shape), _is_colour(series), _page_axes(series)
    where = f"{name}: axes {_told(taken)}"
    if len(set(axes)) < len(axes):
        raise InputError(f"{where}: two axes without names; save it with its axes, as OME-TIFF or ImageJ's hyperstack")
    taken.of = next((axis for axis in "CS" if axis in sizes and axis not in pages), None)
    if colour:
        taken.of = "S"
    elif taken.of is None and channels is not None and page is None and pages in (["I"], ["Q"]):
        taken.of = pages.pop()  # pages that are channels: whoever asks for channels says so
    if "Q" in pages and page is None:
        n = sizes["Q"]
        raise InputError(f"{where}: pages or channels? Say --page N for one of {n} pages, or --channels N[,N,N]")
    taken.at = _places(where, pages, sizes, page)
    taken.said = [f"{_called(axis)} {place} of {sizes[axis]}" for axis, place in taken.at.items()]
    count = series.keyframe.samplesperpixel if colour else sizes.get(taken.of, 1)
    if channels is not None:
        taken.channels = list(channels)
        if max(taken.channels) >= count:
            raise InputError(f"{where}: has {_channels(count)}, and no channel {max(taken.channels)} (--channels)")
    elif not colour and count == 3:
        taken.channels = [0, 1, 2]
    elif not colour and count > 1:
        raise InputError(f"{where}: has {_channels(count)}; say which to take: --channels N for grey, N,N or N,N,N")
    if taken.channels is not None and count > 1:
        taken.said.append(f"{told_channels(taken.channels)} of {count}")
    return taken


def _channels(count: int) -> str:
    return f"{count} channels, 0 to {count - 1}" if count > 1 else "one channel, 0"


def _called(axis: str) -> str:
    return "page" if axis in "IQ" else axis


def _places(where: str, pages: Sequence[str], sizes: dict[str, int], page: str | None) -> dict[str, int]:
    """The place on each of the axes `pages`: what `page` says, or else the first."""
    if page is None:
        given = {}
    elif page.isdecimal():
        if len(pages) > 1:
            example = ",".join(f"{axis}={page}" for axis in pages)
            raise InputError(f"{where}: --page {page} of which axis? Say --page {example}")
        given = dict.fromkeys(pages, int(page))
        if not pages and int(page) > 0:
            raise InputError(f"{where}: has {pages_to(1)}, and no page {page} (--page)")
    else:
        given = {part[0]: int(part[2:]) for part in page.split(",")}
    for axis, place in given.items():
        if axis not in pages:
            known = ", ".join(pages) or "none"
            raise InputError(f"{where}: --page {axis}={place}: no pages lie along {axis}; the axes of pages: {known}")
        if place >= sizes[axis]:
            raise InputError(f"{where}: --page: {_called(axis)} {place} is not there; it has 0 to {sizes[axis] - 1}")
    return {axis: given.get(axis, 0) for axis in pages}


# ---- its pixels


def _picture(file: BinaryIO, name: str, series: tifffile.TiffPageSeries, taken: _Taken) -> np.ndarray:
    """What is taken, as (H, W, 3) uint8."""
    page = series.keyframe
    kind = "unknown" if page.dtype is None else page.dtype.name  # numbers of odd lengths, such as 12 bits
    if kind.startswith("complex"):
        raise InputError(f"{name}: holds complex numbers; save their magnitude")
    lengths = dict(zip(taken.axes, taken.shape))
    check_pixels(lengths["X"], lengths["Y"], name)

    def by_pillow() -> np.ndarray:
        return decode(file, name, _number(series, taken.at))

    def by_tifffile() -> np.ndarray:
        return _upright(_by_tifffile(series, taken, page), page)

    # Pillow mixes up what is deeper than 8 bits and one sample after the other, or in another order of bytes.
    apart = int(page.planarconfig) == 2
    if taken.channels is None and (kind in ("uint8", "bool", "unknown") or (_is_colour(series) and not apart)):
        return _either(by_pillow, by_tifffile)
    try:
        return by_tifffile()
    except Exception as error:
        if "imagecodecs" not in str(error):
            raise
        if taken.channels is None and not apart and (page.parent.byteorder == "<" or kind == "uint16"):
            return by_pillow()
        known = f"{name}: compression {_word(page.compression)} needs imagecodecs"
        raise InputError(f"{known}; install it, or save the picture with Deflate") from error


def _either(usual: Callable[[], np.ndarray], other: Callable[[], np.ndarray]) -> np.ndarray:
    """What the first makes, or if it cannot, the other; the error is the first one's."""
    try:
        return usual()
    except InputError as error:
        try:
            return other()
        except Exception:
            raise error from None


def _by_tifffile(series: tifffile.TiffPageSeries, taken: _Taken, page: tifffile.TiffPage) -> np.ndarray:
    if taken.channels is None:
        return _coloured(_pixels(series, taken.axes, taken.at), page)
    if taken.of == "S":
        samples = _pixels(series, taken.axes, taken.at)
        planes = (samples[..., k] for k in taken.channels)
    else:
        planes = (_pixels(series, taken.axes, taken.at | {taken.of: k}) for k in taken.channels)
    return composed([_grey(plane, page) for plane in planes])


def _place(series: tifffile.TiffPageSeries, at: dict[str, int]) -> tuple[int, int]:
    """Which of how many pages of the series it is; an axis that `at` does not name counts as its first place."""
    k, count = 0, 1
    for axis, length in zip(series.axes, series.shape):
        if axis not in "YXS":
            k, count = k * length + at.get(axis, 0), count * length
    return k, count


def _number(series: tifffile.TiffPageSeries, at: dict[str, int]) -> int:
    """Which page of the file it is."""
    k, count = _place(series, at)
    page = series.pages[k] if count == len(series.pages) else None
    return k if page is None else page.index


def _pixels(series: tifffile.TiffPageSeries, axes: str, at: dict[str, int]) -> np.ndarray:
    """(H, W) or (H, W, S), as the file has them; a page alone where it can be had alone, else out of the whole."""
    k, count = _place(series, at)
    if axes == series.axes and count == len(series.pages):
        if series.pages[k] is None:
            raise ValueError("this page lies in another file")
        array, axes = series.pages[k].asarray(), series.keyframe.axes
    else:
        array = series.asarray()
    array = array[tuple(slice(None) if axis in "YXS" else at.get(axis, 0) for axis in axes)]
    left = [axis for axis in axes if axis in "YXS"]
    return array.transpose([left.index(axis) for axis in "YXS" if axis in left])


def _grey(plane: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    """(H, W) of any numbers -> (H, W) uint8."""
    if plane.dtype == bool:
        plane = plane * np.uint8(255)
    plane = plane if plane.dtype == np.uint8 else stretched(plane)
    return 255 - plane if _word(page.photometric) == "MINISWHITE" else plane


def _coloured(pixels: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    """What Pillow does not know: (H, W) or (H, W, S) of any numbers -> (H, W, 3) uint8."""
    kind = _word(page.photometric)
    if pixels.ndim == 2 and kind == "PALETTE":
        return np.moveaxis(page.colormap >> 8, 0, -1).astype(np.uint8)[pixels]
    if pixels.ndim == 2:
        return composed([_grey(pixels, page)])
    if kind in ("MINISBLACK", "MINISWHITE"):  # the other sample is transparency
        return composed([_grey(pixels[..., 0], page)])
    if kind != "RGB":
        raise ValueError(f"colours of the kind {kind} in {page.dtype.name}")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype == np.uint8 and pixels.shape[2] == 4 and page.extrasamples[:1] == (2,):
        return to_rgb(Image.fromarray(pixels))
    height, width = pixels.shape[:2]
    pixels = np.ascontiguousarray(pixels[..., :3])
    if pixels.dtype != np.uint8:
        pixels = stretched(pixels.reshape(height, 3 * width)).reshape(height, width, 3)
    return pixels


def _word(tag: int) -> str:
    """The name of a tag's value; of one that tifffile has no name for, the number."""
    return getattr(tag, "name", str(tag))


def _upright(picture: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    tag = page.tags.get("Orientation")
    orientation = int(tag.value) if tag and 1 <= int(tag.value) <= 8 else 1
    return np.ascontiguousarray(np.moveaxis(turned(np.moveaxis(picture, 2, 0), orientation), 0, 2))
