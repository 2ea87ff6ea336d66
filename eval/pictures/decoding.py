"""Pixels of any kind as 8-bit RGB: what Pillow decodes, and numbers of any range."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from prm import InputError
from prm.files import reason

MAX_PIXELS = 500_000_000

# Pillow refuses twice its own limit of 89 Mpixel, which scanned slides pass; read_image applies MAX_PIXELS instead.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Truncated File Read")  # the error says so


def decode(
    file: BinaryIO, name: str, page: int = 0, note: Callable[[str], None] = lambda line: None
) -> np.ndarray:
    """A page of a file as Pillow reads it, as (H, W, 3) uint8; see `read_image`."""
    file.seek(0)
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: has more than {MAX_PIXELS // 10**6} Mpixel; cut it into tiles") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{name}: is not a picture in a known format; convert it to PNG or JPEG") from error
    except Exception as error:  # decoders raise whatever a damaged header makes them trip over
        raise InputError(f"{name}: is damaged ({reason(error)}); copy the file again") from error
    with in_one_line(name):
        count = 1 if image.format in ("TIFF", "MPO") else getattr(image, "n_frames", 1)
        if page >= count and image.format != "TIFF":
            raise InputError(f"{name}: has {pages_to(count)}, and no page {page} (--page)")
        if page:
            image.seek(page)
        width, height = image.size
        check_pixels(width, height, name)
    with in_one_line(name, f"{width} x {height} "):
        image.load()
        picture = to_rgb(_upright(image))
    if count > 1:
        note(f"{name}: took page {page} of {count}")
    return picture


@contextmanager
def in_one_line(name: str, size: str = "") -> Iterator[None]:
    """Whatever goes wrong with a file's pixels as an InputError; size: of the picture, in words and with a space."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name}: {size}does not fit into memory; cut it into tiles") from error
    except Exception as error:  # decoders raise whatever damaged bytes make them trip over
        raise InputError(f"{name}: is damaged or truncated ({reason(error)}); copy the file again") from error


def check_pixels(width: int, height: int, name: str) -> None:
    """Raises InputError above MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: {width} x {height} is more than {MAX_PIXELS // 10**6} Mpixel; cut it into tiles")


def pages_to(count: int) -> str:
    return f"pages 0 to {count - 1}" if count > 1 else "one page, 0"


def told_channels(channels: Sequence[int]) -> str:
    """In words, what becomes of so many channels."""
    colours = "grey" if len(channels) == 1 else ", ".join(("red", "green", "blue")[: len(channels)])
    return f"channel{'s' * (len(channels) > 1)} {', '.join(map(str, channels))} as {colours}"


def composed(planes: Sequence[np.ndarray]) -> np.ndarray:
    """One (H, W) uint8 plane as grey, two as red and green, three as red, green and blue: (H, W, 3) uint8."""
    if len(planes) == 1:
        return np.repeat(planes[0][..., None], 3, axis=2)
    return np.stack([*planes, np.zeros_like(planes[0])][:3], axis=2)


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)  # else it copies what stands upright
    except Exception:  # an unreadable EXIF block says nothing about the pixels, which are whole
        pass
    return image


def to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded picture of any Pillow mode -> (H, W, 3) uint8."""
    if image.mode == "F" or image.mode.startswith("I"):
        return composed([stretched(np.asarray(image))])
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows in bands(image.height, image.width):
        band = image.crop((0, rows.start, image.width, min(rows.stop, image.height)))
        pixels[rows] = np.asarray(_opaque(band).convert("RGB"))
    return pixels


def _opaque(image: Image.Image) -> Image.Image:
    """On white, if it has transparency."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def stretched(values: np.ndarray) -> np.ndarray:
    """(H, W) numbers -> (H, W) uint8, the smallest finite value to 0 and the largest to 255; memory: 1 byte a pixel."""
    low, high = _extremes(values)
    # Powers of two change no digit, and bring what would overflow into reach.
    unit = 2.0 ** min(-math.frexp(max(abs(low), abs(high)))[1], 1000)
    low, high = low * unit, high * unit
    scale = 255.0 / (high - low) if high > low else 0.0
    shown = np.empty(values.shape, np.uint8)
    for rows in bands(*values.shape):
        with np.errstate(invalid="ignore"):  # a NaN may be a signalling one
            band = values[rows].astype(np.float64) * unit
        band = np.nan_to_num(band, nan=low, posinf=high, neginf=low)
        shown[rows] = np.rint((band - low) * scale)
    return shown


def bands(height: int, width: int) -> Iterator[slice]:
    """Slices of rows, about a megapixel each, that together are the picture: what is made of one stays small."""
    step = max(1, 2**20 // width)
    return (slice(row, row + step) for row in range(0, height, step))


def _extremes(values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest finite value; 0 and 0 where there is none."""
    bounds = []
    for rows in bands(*values.shape):
        finite = values[rows][np.isfinite(values[rows])]
        bounds += [float(finite.min()), float(finite.max())] if finite.size else []
    return min(bounds, default=0.0), max(bounds, default=0.0)
