"""TIFF files as tifffile, ImageJ and Pillow write them: what is taken of which axes, exactly, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from prm import InputError
from prm.eval.datasets.folder import FolderDataset
from prm.eval.pictures.decoding import composed, stretched
from prm.eval.pictures.images import read_image
from prm.settings import ReadSettings

tifffile = pytest.importorskip("tifffile")

RNG = np.random.default_rng(0)
H, W = 12, 16


def numbers(*outer, dtype=np.uint8):
    """Different numbers, (*outer, H, W), for 12 bits in integers of more than 8."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.normal(0, 1e3, (*outer, H, W)).astype(kind)
    return RNG.integers(0, 256 if kind.itemsize == 1 else 4096, (*outer, H, W)).astype(kind)


def written(array, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def read(data: bytes, channels=None, page=None) -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    picture = read_image(data, "x.tif", ReadSettings(channels, page), notes.append)
    assert picture.dtype == np.uint8 and picture.flags.writeable and picture.ndim == 3
    assert all(note.startswith("x.tif: ") and "\n" not in note for note in notes) and len(notes) <= 1
    return picture, notes


def check(data: bytes, expected: np.ndarray, *words: str, channels=None, page=None) -> None:
    """The picture is `expected`, (H, W) grey or (H, W, 3); the note has these words; no words, no note."""
    picture, notes = read(data, channels, page)
    np.testing.assert_array_equal(picture, composed([expected]) if expected.ndim == 2 else expected)
    assert bool(notes) == bool(words), notes
    for word in words:
        assert word in notes[0], notes


def refused(data: bytes, *words: str, channels=None, page=None) -> None:
    with pytest.raises(InputError) as caught:
        read(data, channels, page)
    message = str(caught.value)
    assert message.startswith("x.tif: ") and "\n" not in message
    for word in words:
        assert word in message, message


def by_hand(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return np.rint((values - values.min()) * (255 / (values.max() - values.min()))).astype(np.uint8)


# ---- one page


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "i8"])
@pytest.mark.parametrize("order", "<>")
def test_grey_of_every_type(dtype, order):
    values = numbers(dtype=dtype)
    if dtype == "u4":
        values[0, 0] = 2**32 - 1  # as a signed number, it would be the least
    expected = values if dtype == "u1" else by_hand(values)
    check(written(values, byteorder=order, metadata=None), expected)
    check(written(values, byteorder=order, compression="zlib", predictor=dtype in ("u2", "i2", "u4", "i4")), expected)


def test_white_is_zero():
    for values in (numbers(), numbers(dtype="f8")):
        shown = values if values.dtype == np.uint8 else by_hand(values)
        check(written(values, photometric="miniswhite"), 255 - shown)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", "<>")
def test_colour(planar, compression, order):
    for values in (numbers(3), numbers(3, dtype="u2") * 16, numbers(3, dtype="f8")):
        as_written = values if planar == "separate" else np.moveaxis(values, 0, -1)
        data = written(as_written, photometric="rgb", planarconfig=planar, compression=compression,
                       byteorder=order)  # fmt: skip
        kinds = {"uint8": lambda a: a, "uint16": lambda a: (a >> 8).astype(np.uint8), "float64": by_hand}
        shown = kinds[values.dtype.name](values)
        check(data, np.moveaxis(shown, 0, -1))
        planes = [values[k] if values.dtype == np.uint8 else by_hand(values[k]) for k in (2, 0)]
        check(data, np.dstack([*planes, np.zeros_like(planes[0])]), "channels 2, 0 as red, green of 3", channels="2,0")


def test_transparency_is_on_white_and_palettes_are_looked_up():
    values = numbers(4)
    values[3] = np.where(values[3] > 127, 255, 0)
    expected = np.where(values[3, ..., None] > 0, np.moveaxis(values[:3], 0, -1), 255).astype(np.uint8)
    for planar, array in (("separate", values), ("contig", np.moveaxis(values, 0, -1))):
        check(written(array, photometric="rgb", planarconfig=planar, extrasamples=["unassalpha"]), expected)
    colours = RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    shown = np.moveaxis(colours >> 8, 0, -1).astype(np.uint8)[values[0]]
    check(written(values[0], photometric="palette", colormap=colours), shown)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
def test_what_pillow_compresses(compression):
    file = io.BytesIO()
    Image.fromarray(numbers()).save(file, "TIFF", compression=compression)
    picture = read(file.getvalue())[0]
    np.testing.assert_array_equal(picture, np.array(Image.open(file).convert("RGB")))


@pytest.mark.parametrize("turned", range(1, 9))
def test_upright_by_either_reader(turned):
    """A picture in uint8, and in the high bytes of uint32: Pillow turns the first, and the second must lie alike."""
    values = numbers()
    tag = [(274, "H", 1, turned, True)]
    small, _ = read(written(values, extratags=tag))
    large, _ = read(written(values.astype(np.uint32) << 24, extratags=tag))
    np.testing.assert_array_equal(large, composed([stretched(small[..., 0])]))
    assert (small.shape[:2] == (W, H)) == (turned > 4)


# ---- channels


def test_two_values_a_pixel_are_refused_until_somebody_says_which():
    values = numbers(2)
    last, named = np.moveaxis(values, 0, -1), {"metadata": {"axes": "CYX"}}
    for data in (written(last), written(last, planarconfig="contig"), written(values, **named),
                 written(values, photometric="minisblack", planarconfig="separate"),
                 written(values, ome=True, **named), written(values, imagej=True, **named)):  # fmt: skip
        refused(data, "2 channels, 0 to 1", "--channels N for grey, N,N or N,N,N")
        check(data, values[1], "channel 1 as grey of 2", channels="1")
        both = np.dstack([values[1], values[0], 0 * values[0]])
        check(data, both, "channels 1, 0 as red, green of 2", channels="1,0")
        refused(data, "no channel 2", "--channels", channels="0,2")


def test_three_named_channels_are_red_green_and_blue_each_stretched():
    for dtype in ("u1", "u2", "f4", "f8"):
        values = numbers(3, dtype=dtype) // np.array([1, 2, 5], dtype)[:, None, None]
        planes = [plane if dtype == "u1" else by_hand(plane) for plane in values]
        data = written(values, photometric="minisblack", metadata={"axes": "CYX"})
        check(data, np.dstack(planes), "axes CYX (3, 12, 16)", "channels 0, 1, 2 as red, green, blue of 3")
        check(data, planes[2], "channel 2 as grey of 3", channels="2")


def test_four_and_more_channels():
    values = numbers(5, dtype="u2")
    data = written(values, photometric="minisblack", metadata={"axes": "CYX"})
    refused(data, "5 channels, 0 to 4")
    planes = [by_hand(values[k]) for k in (4, 0, 2)]
    check(data, np.dstack(planes), "channels 4, 0, 2 as red, green, blue of 5", channels="4,0,2")


def test_one_channel():
    data = written(numbers())
    check(data, read(data)[0], channels="0")
    refused(data, "one channel, 0", "no channel 1", channels="1")


# ---- pages, slices, frames


def test_an_axis_that_nobody_named_is_refused_until_somebody_says_what_it_is():
    values = numbers(5)
    data = written(values)  # tifffile's own way with (5, H, W)
    refused(data, "axes QYX (5, 12, 16)", "--page", "--channels")
    check(data, values[3], "page 3 of 5", page="3")
    check(data, values[0], "page 0 of 5", page="0")
    check(data, np.dstack(values[[1, 4, 2]]), "channels 1, 4, 2 as red, green, blue of 5", channels="1,4,2")
    refused(data, "page 5 is not there; it has 0 to 4", page="5")
    refused(written(numbers(2, 5)), "two axes without names", page="0")


@pytest.mark.parametrize("dtype", ["u1", "u2", "f8"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_slices_and_pages(dtype, compression):
    values = numbers(7, dtype=dtype)
    shown = [plane if dtype == "u1" else by_hand(plane) for plane in values]
    slices = written(values, photometric="minisblack", compression=compression, metadata={"axes": "ZYX"})
    pages = written(values, photometric="minisblack", compression=compression, metadata=None)
    for data, axis in ((slices, "Z"), (pages, "page")):
        check(data, shown[0], f"took {axis} 0 of 7")
        check(data, shown[6], f"took {axis} 6 of 7", page="6")
        refused(data, f"{axis} 7 is not there", page="7")
    check(slices, shown[2], "Z 2 of 7", page="Z=2")
    refused(slices, "no pages lie along T", "Z", page="T=2")
    refused(slices, "one channel", channels="1")
    check(pages, shown[1], "channel 1 as grey of 7", channels="1")  # whoever writes channels as pages


def test_pages_of_different_sizes():
    file = io.BytesIO()
    pages = [numbers(), numbers(dtype="f8")[:8], numbers()[:, :9]]
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page, metadata=None)
    check(file.getvalue(), pages[0], "took page 0 of 3")
    check(file.getvalue(), by_hand(pages[1]), "took page 1 of 3", page="1")
    check(file.getvalue(), pages[2], "took page 2 of 3", page="2")
    refused(file.getvalue(), "pages 0 to 2", "no page 3", page="3")


@pytest.mark.parametrize("kind, axes, sizes", [
    ("ome", "CZYX", (2, 3)), ("ome", "ZCYX", (3, 2)), ("ome", "TCZYX", (4, 2, 3)),
    ("imagej", "TZCYX", (4, 3, 2)), ("imagej", "ZCYX", (3, 2)),
])  # fmt: skip
def test_hyperstacks(kind, axes, sizes):
    values = numbers(*sizes, dtype="u2")
    data = written(values, **{kind: True}, metadata={"axes": axes})
    z, c = 2, 1
    at = [{"Z": z, "C": c}.get(axis, 0) for axis in axes[:-2]]
    refused(data, "2 channels")
    page = "Z=2"
    said = ["Z 2 of 3", "channel 1 as grey of 2", *(["T 0 of 4"] if "T" in axes else [])]
    check(data, by_hand(values[tuple(at)]), f"axes {axes}", *said, channels="1", page=page)
    if "T" in axes:
        at[axes.index("T")] = 3
        check(data, by_hand(values[tuple(at)]), "T 3 of 4", channels="1", page="T=3,Z=2")
        refused(data, "of which axis", "T=2", "Z=2", channels="1", page="2")
    else:
        check(data, by_hand(values[tuple(at)]), "Z 2 of 3", channels="1", page="2")


def test_slices_of_colour():
    values = RNG.integers(0, 256, (4, H, W, 3), dtype=np.uint8)
    data = written(values, photometric="rgb", metadata={"axes": "ZYXS"})
    check(data, values[0], "Z 0 of 4")
    check(data, values[3], "Z 3 of 4", page="3")
    check(data, values[3, ..., 1], "Z 3 of 4", "channel 1 as grey of 3", page="3", channels="1")


# ---- a folder with labels


def test_a_data_set_reads_its_pictures_so(tmp_path):
    values = numbers(3, dtype="f8")
    (tmp_path / "deep.tif").write_bytes(written(values[0]))
    (tmp_path / "slices.tif").write_bytes(written(values, photometric="minisblack", metadata={"axes": "ZYX"}))
    (tmp_path / "channels.tif").write_bytes(written(values[:2], metadata={"axes": "CYX"}))
    (tmp_path / "labels.csv").write_text("file,labels\ndeep.tif,a\nslices.tif,\nchannels.tif,\n")
    first, second, third = (FolderDataset(tmp_path)[k] for k in range(3))
    for sample in (first, second):
        np.testing.assert_array_equal(sample.image, composed([by_hand(values[0])]))
    with pytest.raises(InputError, match=r"channels\.tif: axes CYX .* 2 channels"):
        _ = third.image


# ---- other files, settings, bad files


def test_other_formats_have_pages_and_channels_too():
    colour = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colour).save(file, "PNG")
    chosen = np.dstack([colour[..., 2], colour[..., 0], 0 * colour[..., 0]])
    check(file.getvalue(), chosen, "channels 2, 0 as red, green", channels="2,0")
    refused(file.getvalue(), "one page, 0", "no page 1", page="1")
    refused(file.getvalue(), "no channel 3", channels="3")
    refused(file.getvalue(), "must be a number", page="Z=1")
    frames = [Image.new("RGB", (W, H), name) for name in ("red", "lime", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    for page, frame in ((None, frames[0]), ("2", frames[2])):
        check(file.getvalue(), np.array(frame), f"took page {page or 0} of 3", page=page)
    refused(file.getvalue(), "pages 0 to 2", "no page 3", page="3")


@pytest.mark.parametrize("bad", [
    {"channels": "a"}, {"channels": "0,1,2,3"}, {"channels": "-1"}, {"channels": ""}, {"page": "z=1"}, {"page": "-1"},
    {"page": "Z"}, {"page": "1,2"}, {"page": "٣"},
])  # fmt: skip
def test_settings_that_say_nothing(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        ReadSettings(**bad)


@pytest.mark.parametrize("dtype", ["u1", "f8"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.9])
def test_truncated(dtype, compression, part):
    data = written(RNG.integers(0, 99, (64, 64)).astype(dtype), compression=compression, metadata=None)
    refused(data[: int(part * len(data))])


def test_what_cannot_be_shown():
    refused(written(numbers().astype(np.complex64)), "complex")
    giant = written(np.zeros((1, 1), np.float64), metadata=None)
    page = tifffile.TiffFile(io.BytesIO(giant)).pages[0]
    data = bytearray(giant)
    for tag in ("ImageWidth", "ImageLength"):
        place = page.tags[tag]
        size = 4 if place.dtype == 4 else 2
        data[place.valueoffset : place.valueoffset + size] = (30_000).to_bytes(size, "little")
    refused(bytes(data), "500 Mpixel")
