"""Reading pictures: every kind that a folder can hold, built here, becomes an array or one clear error."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from prm import InputError
from prm.eval.pictures import decoding, images
from prm.eval.pictures import orientation as images_orientation
from prm.eval.pictures.images import find_images, names_of, read_image
from prm.files import atomic_write, json_bytes

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 16), dtype=np.uint8)
DEEP = np.linspace(200, 4095, 12 * 16).reshape(12, 16)  # 12-bit data as microscopes write them


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def stretched(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    grey = np.rint((values - values.min()) / np.ptp(values) * 255).astype(np.uint8)
    return np.stack([grey] * 3, axis=2)


def check(data: bytes, expected: np.ndarray) -> None:
    result = read_image(data)
    assert result.dtype == np.uint8 and result.shape == expected.shape and result.flags.writeable
    np.testing.assert_array_equal(result, expected)


def refused(source, *words: str, name: str | None = None) -> None:
    with pytest.raises(InputError) as caught:
        read_image(source, name)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_path_bytes_and_file_object_agree(tmp_path):
    path = tmp_path / "a b#%.png"
    path.write_bytes(encoded(Image.fromarray(COLOUR)))
    with open(path, "rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            np.testing.assert_array_equal(read_image(source), COLOUR)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM"])
def test_grey(format):
    options = {"lossless": True} if format == "WEBP" else {}
    check(encoded(Image.fromarray(GREY), format, **options), np.stack([GREY] * 3, axis=2))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_stretched(format):
    check(encoded(Image.fromarray(DEEP.astype(np.uint16)), format), stretched(DEEP.astype(np.uint16)))


def test_big_endian_and_32_bit_and_signed_tiff_are_stretched():
    words = DEEP.astype(np.uint16)
    for kind, signed in (("<u2", 1), ("<i2", 2), ("<i4", 2), ("<f4", 3)):
        values = words.astype(kind) - (0 if signed == 1 else 1000)
        bits = values.dtype.itemsize * 8
        tags = [(256, 4, 16), (257, 4, 12), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1)]
        tags += [(278, 4, 12), (279, 4, values.nbytes), (339, 3, signed)]
        for order in "<>":
            head = b"II*\0" if order == "<" else b"MM\0*"
            head += struct.pack(order + "IH", 8, len(tags))
            for tag, code, value in tags:
                head += struct.pack(order + "HHI", tag, code, 1)
                head += struct.pack(order + "HH", value, 0) if code == 3 else struct.pack(order + "I", value)
            head = (head + bytes(4)).ljust(200, b"\0")
            check(head + values.astype(values.dtype.newbyteorder(order)).tobytes(), stretched(values))


def test_float_tiff_is_stretched_and_not_finite_values_are_clipped():
    values = DEEP.astype(np.float32) / 1e6 - 1
    check(encoded(Image.fromarray(values), "TIFF"), stretched(values))
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    result = read_image(encoded(Image.fromarray(values), "TIFF"))
    assert result[0, :3, 0].tolist() == [0, 255, 0]
    assert result[0, 3, 0] == 0 and result[-1, -1, 0] == 255
    for constant in (np.full((4, 5), 7.5, np.float32), np.full((4, 5), np.nan, np.float32)):
        check(encoded(Image.fromarray(constant), "TIFF"), np.zeros((4, 5, 3), np.uint8))


@pytest.mark.filterwarnings("error")
def test_stretching_in_bands_and_at_the_ends_of_floating_point(monkeypatch):
    values = DEEP / 7 - 100
    expected = stretched(values)[..., 0]
    monkeypatch.setattr(decoding, "bands", lambda height, width: [slice(r, r + 5) for r in range(0, height, 5)])
    np.testing.assert_array_equal(decoding.stretched(values), expected)
    signed = values - values.mean()
    for size in (1e-300, 1e300, 1e305, 1e-310):
        shown = decoding.stretched(signed * size)
        assert (shown.min(), shown.max()) == (0, 255), size
    assert decoding.stretched(np.array([[-1.7e308, 0, 1.7e308]])).tolist() == [[0, 128, 255]]


def test_constant_16_bit_is_black():
    check(encoded(Image.fromarray(np.full((3, 4), 900, np.uint16))), np.zeros((3, 4, 3), np.uint8))


def test_opaque_alpha_is_dropped_and_transparency_is_composited_on_white():
    opaque = np.dstack([COLOUR, np.full((12, 16), 255, np.uint8)])
    check(encoded(Image.fromarray(opaque)), COLOUR)
    check(encoded(Image.fromarray(GREY).convert("LA")), np.stack([GREY] * 3, axis=2))
    half = opaque.copy()
    half[:6, :, 3], half[6:9, :, 3] = 0, 128
    result = read_image(encoded(Image.fromarray(half)))
    assert (result[:6] == 255).all()
    np.testing.assert_allclose(result[6:9], COLOUR[6:9] * (128 / 255) + 255 * (127 / 255), atol=1)
    np.testing.assert_array_equal(result[9:], COLOUR[9:])
    ghost = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (16, 12), 0)])
    check(encoded(ghost), np.full((12, 16, 3), 255, np.uint8))


def test_palette_with_and_without_transparency():
    image = Image.fromarray(COLOUR).quantize(16)
    rgb = np.array(image.convert("RGB"))
    for format in ("PNG", "GIF", "TIFF", "BMP"):
        check(encoded(image, format), rgb)
    rgb[np.asarray(image) == 3] = 255
    check(encoded(image, "PNG", transparency=3), rgb)


def test_cmyk_and_one_bit():
    check(encoded(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), COLOUR)
    red = read_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))[4, 4].astype(int)
    assert np.abs(red - (255, 0, 0)).max() <= 2
    bits = GREY > 127
    for format in ("PNG", "TIFF", "BMP", "PPM"):
        check(encoded(Image.fromarray(bits), format), np.stack([bits * np.uint8(255)] * 3, axis=2))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    check(data, np.array(frames[0]))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, format, orientation):
    """The picture becomes upright, and masks and boxes of its stored pixels in the same way."""
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8] = 255  # a white corner in an oblong: all eight orientations differ
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "file").write_bytes(encoded(Image.fromarray(stored), format, exif=exif))
    result = read_image(tmp_path / "file")
    turned = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
              6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a)}
    expected = turned.get(orientation, lambda a: a)(stored)
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).mean() < 4
    assert images_orientation.stored(tmp_path / "file") == (orientation, (16, 24))
    masks = images_orientation.turned(stored[None, ..., 0] > 0, orientation)
    np.testing.assert_array_equal(masks[0], expected[..., 0] > 0)
    (box,) = images_orientation.turned_boxes(np.array([[0.0, 0, 7, 7]]), orientation, (16, 24))
    rows, columns = np.nonzero(masks[0])
    assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_is_ignored():
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff junk"
    assert read_image(encoded(Image.fromarray(COLOUR), "JPEG", exif=exif)).shape == COLOUR.shape


def test_one_pixel_and_very_wide():
    check(encoded(Image.new("RGB", (1, 1), (1, 2, 3))), np.array([[[1, 2, 3]]], np.uint8))
    assert read_image(encoded(Image.new("L", (20_000, 2), 9))).shape == (2, 20_000, 3)


GIANT = """
import re
from pathlib import Path
from types import SimpleNamespace
import torch
from prm.accelerated import Proposals, SegmentationSettings, Segmenter
from prm.eval.pictures.export import to_coco_results
from prm.eval.pictures.figures import overlay, panel
from prm.eval.pictures.images import read_image
from prm.eval.proposals.grouping.generator import _working_image

torch.set_num_threads(1)
segmenter = Segmenter(torch.nn.Conv2d(3, 2, 3), [0.5] * 3, [0.2] * 3, contrast=True)

def everything(n):
    read_image(f"deep{n}.png")
    image = read_image(f"colour{n}.png")
    segmenter.network_input(image), _working_image(image, 512)
    mask = Proposals(n, n, torch.arange(n // 2) * n, torch.arange(n // 2) * n + n // 2, torch.tensor([0, n // 2]))
    one = SimpleNamespace(label=0, mask=mask, score=0.5, confidence=0.5, peak=(3.0, 3.0), prm=torch.rand(30, 30),
                          proposal=0, terms=(1, 1, 1))
    answer = SimpleNamespace(size=(n, n), maps=torch.rand(2, 9, 9), instances=[one])
    overlay(image, answer, "ab"), panel(image, answer, "ab"), to_coco_results(answer, 1, [1, 2], "x")

# Not ru_maxrss, which a process has of the one that started it.
peak = lambda: 1024 * int(re.search("VmHWM: *([0-9]+)", Path("/proc/self/status").read_text().replace("\\t", " "))[1])
everything(60)
before = peak()
everything(5600)
print((peak() - before) / (3 * 5600 * 5600))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that was held is read from /proc")
def test_memory_of_a_giant_picture_is_a_small_multiple_of_it(tmp_path):
    """Reading, contrast, the network's input, the proposals' working picture and the drawings, in 8-bit pictures."""
    for n in (60, 5600):
        deep = np.arange(n * n, dtype=np.uint16).reshape(n, n)
        Image.fromarray(deep).save(tmp_path / f"deep{n}.png", compress_level=0)
        low = Image.fromarray(deep.astype(np.uint8))
        Image.merge("RGB", [low] * 3).save(tmp_path / f"colour{n}.png", compress_level=0)
    done = subprocess.run([sys.executable, "-c", GIANT], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 1 < float(done.stdout) < 4.5, done.stdout


def test_refuses_what_is_no_picture(tmp_path):
    missing, empty, text = tmp_path / "missing.png", tmp_path / "empty.png", tmp_path / "text.png"
    empty.write_bytes(b"")
    text.write_text("not a picture")
    refused(missing, str(missing), "No such file")
    refused(tmp_path, str(tmp_path), "folder")
    refused(empty, str(empty), "empty")
    refused(text, str(text), "not a picture")
    refused("a\0b.png", "cannot be read")
    refused(b"", "archive.zip/a.png", "empty", name="archive.zip/a.png")
    with open(text) as file:
        refused(file, str(text), "binary mode")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_refuses_truncated(format, part):
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), format)
    refused(data[: int(len(data) * part)], "half.img", name="half.img")


def test_refuses_a_damaged_header():
    data = bytearray(encoded(Image.fromarray(COLOUR)))
    data[18] ^= 0xFF  # the width: its checksum no longer holds
    refused(bytes(data), "x.png", name="x.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refuses_decompression_bombs():
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        bomb += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    refused(bomb, "bomb.png", "500 Mpixel", name="bomb.png")
    refused(bomb.replace(header, struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)), "bomb.png", name="bomb.png")
    assert Image.MAX_IMAGE_PIXELS >= decoding.MAX_PIXELS  # Pillow's own limit would refuse scanned slides


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png", "ü #1.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    odd = tmp_path / "notes.txt"
    assert [p.name for p in find_images([tmp_path])] == ["a.jpg", "b.PNG", "ü #1.tiff"]
    assert find_images([odd, tmp_path])[0] == odd
    assert find_images(str(odd)) == [odd]
    with pytest.raises(InputError, match=r"folder\.png: no picture"):
        find_images([tmp_path / "folder.png"])
    with pytest.raises(InputError, match="nowhere"):
        find_images([tmp_path / "nowhere"])


def test_find_images_in_subfolders(tmp_path):
    others = (".cache/z.png", "out/x.overlay.png", "out/a/x.panel.png")
    for name in ("b/x.png", "a/x.png", "a/deep/er/y.TIF", "w.png", *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found = find_images(tmp_path, recursive=True, but=tmp_path / "out")
    names = ["a/deep/er/y.TIF", "a/x.png", "b/x.png", "w.png"]
    assert found == [tmp_path / name for name in names] and names_of(found, [tmp_path]) == names
    assert find_images([tmp_path, tmp_path / "w.png", tmp_path / "a" / ".." / "w.png"]) == [tmp_path / "w.png"]
    (tmp_path / "none" / "at" / "all").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no picture in this folder .* in it and its subfolders"):
        find_images(tmp_path / "none", recursive=True)
    with pytest.raises(InputError, match="as --recursive does"):
        find_images(tmp_path / "none")


@pytest.mark.parametrize("files, folders, names", [
    (["p/x.png", "p/y.png"], ["p"], ["x.png", "y.png"]),
    (["p/x.png", "p/a/y.png"], ["p"], ["x.png", "a/y.png"]),
    (["p/a/x.png", "p/b/x.png"], ["p"], ["a/x.png", "b/x.png"]),
    (["a/x.png", "b/x.png", "b/y.png"], ["a", "b"], ["a/x.png", "b/x.png", "b/y.png"]),
    (["p/a/x.png", "q/a/x.png"], ["p/a", "q/a"], ["p/a/x.png", "q/a/x.png"]),
    (["a/x.png", "b/y.png"], ["a/x.png", "b/y.png"], ["x.png", "y.png"]),
    (["a/x.png", "b/x.png"], [], ["a/x.png", "b/x.png"]),
    (["p/a/x.png", "p/x.png"], ["p", "p/a"], ["a/x.png", "p/x.png"]),
    (["a/x.png", "a/x.jpg"], ["a"], ["x.png", "x.jpg"]),
    ([], ["a"], []),
])  # fmt: skip
def test_names_of(tmp_path, files, folders, names):
    assert names_of([tmp_path / file for file in files], [tmp_path / folder for folder in folders]) == names


def test_json_that_fits_on_a_line_stands_on_one():
    page = {"a": {"class": [0.5, None, True], 3: {}}, "long": [{"of": [k, k / 3, "]"]} for k in range(40)]}
    page["deep"] = {"in": {"it": list(range(100))}}
    text = json_bytes(page).decode()
    assert json.loads(text) == json.loads(json.dumps(page)) and max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[1] == ' "a": {"class": [0.5, null, true], "3": {}},' and len(text.splitlines()) < 60
    with pytest.raises(ValueError, match="JSON"):
        json_bytes({"not": [float("nan")]})
    assert json_bytes([float("nan")], allow_nan=True) == b"[NaN]\n"


def test_atomic_write_is_whole_or_nothing(tmp_path):
    path = tmp_path / "new" / "file.bin"
    atomic_write(path, b"first")
    atomic_write(str(path), lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"

    def fails(error):
        def write(file):
            file.write(b"half")
            raise error
        return write

    with pytest.raises(InputError, match=r"file\.bin: cannot be written \(No space left on device\)"):
        atomic_write(path, fails(OSError(28, "No space left on device")))
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fails(KeyboardInterrupt()))
    assert path.read_bytes() == b"second" and os.listdir(path.parent) == ["file.bin"]
    with pytest.raises(InputError, match="folder"):
        atomic_write(tmp_path, b"")
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write(path / "below", b"")


def test_atomic_write_keeps_links_devices_and_ordinary_permissions(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    atomic_write(link, b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"
    reader, writer = os.pipe()
    atomic_write(f"/dev/fd/{writer}", b"piped")
    assert os.read(reader, 9) == b"piped"
    os.close(reader), os.close(writer)
    mask = os.umask(0o022)
    try:
        atomic_write(tmp_path / "shared", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o644


def test_disk_full_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(images.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        atomic_write(tmp_path / "x", b"data")
    assert os.listdir(tmp_path) == []
