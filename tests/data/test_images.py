from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glimpse_lightning.data.images import decode_image, load_image, path_inside
from glimpse_lightning.runtime.errors import BadSampleError


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (5, 7))
    path = tmp_path / ("x.tiff" if mode in ("CMYK", "YCbCr", "F", "I", "PA") else "x.png")
    if mode == "PA":
        path, image = tmp_path / "x.png", image.convert("RGBA")
    # Pillow 12 cannot read the uncompressed YCbCr that it writes; such files hold JPEG mostly.
    image.save(path, **({"compression": "jpeg"} if mode == "YCbCr" else {}))
    loaded = load_image(path)
    assert (loaded.mode, loaded.size) == ("RGB", (5, 7))


def encoded(values: np.ndarray, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(values).save(data, kind, **options)
    return data.getvalue()


def tiff(values: list[float], dtype: str, bits: int, sample: int = 1, photometric: int = 1) -> bytes:
    """A TIFF of one row, which Pillow cannot write in all of these types."""
    data = np.array(values, dtype).tobytes()
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(data)}
    tags[339] = sample
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else n) for tag, n in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


SIXTEEN = np.array([[0, 30000, 65535]], np.uint16)


@pytest.mark.parametrize(
    ("data", "grey"),
    [
        (encoded(SIXTEEN, "PNG"), [0, 117, 255]),
        (encoded(SIXTEEN, "TIFF"), [0, 117, 255]),
        (encoded(SIXTEEN, "JPEG2000"), [0, 117, 255]),
        (encoded(SIXTEEN, "PNG", transparency=0), [255, 117, 255]),
        (encoded(SIXTEEN[:, 1:2], "PNG"), [117]),
        (encoded(SIXTEEN[:, 2:], "PNG"), [255]),
        (encoded(SIXTEEN.astype(np.int32), "TIFF"), [0, 117, 255]),
        (b"P5 3 1 65535\n" + SIXTEEN.astype(">u2").tobytes(), [0, 117, 255]),
        (b"P5 2 1 1023\n" + np.array([512, 1023], ">u2").tobytes(), [128, 255]),
        (tiff([0, 30000, 65535], "<u2", 16, photometric=0), [255, 138, 0]),
        (tiff([0, 16384, 32767], "<i2", 16, sample=2), [0, 128, 255]),
        (tiff([0, 0.5, 1], "<f4", 32, sample=3), [0, 128, 255]),
    ],
)
def test_many_bits_are_scaled_by_their_types_range(data: bytes, grey: list[int]) -> None:
    assert np.asarray(decode_image(data, "x"))[0, :, 0].tolist() == grey


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(np.array([[2**31 - 1]], np.int32), "TIFF"), "x: expected grey values from 0 to 65535.*2.147"),
        (encoded(np.array([[-1]], np.int32), "TIFF"), "from 0 to 65535, the range of their type, but got -1"),
        (encoded(np.array([[255]], np.float32), "TIFF"), "from 0 to 1, .*save the image with 8 or 16 bits"),
        (encoded(np.array([[np.nan]], np.float32), "TIFF"), "from 0 to 1"),
    ],
)
def test_numbers_without_a_white_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadSampleError, match=message):
        decode_image(data, "x")


def test_a_turned_page_keeps_its_types_range(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 30000]], np.uint16))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    assert np.asarray(load_image(tmp_path / "x.png"))[:, 0, 0].tolist() == [0, 117]


def test_one_bit_and_ink() -> None:
    assert decode_image(encoded(np.array([[True, False]]), "PNG"), "x").getpixel((0, 0)) == (255, 255, 255)
    ink = io.BytesIO()
    Image.new("CMYK", (1, 1), (0, 0, 0, 0)).save(ink, "JPEG")
    assert decode_image(ink.getvalue(), "x").getpixel((0, 0)) == (255, 255, 255)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 9))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").size == (9, 4)


def _truncated(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def _zero_size(path: Path) -> None:
    path.write_bytes(b"P6\n0 0\n255\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such image"),
        (lambda path: path.write_bytes(b""), "not a readable image"),
        (lambda path: path.write_text("hello"), "not a readable image"),
        (lambda path: path.mkdir(), "not a readable image"),
        (_truncated, "truncated or damaged"),
        (_zero_size, "x.png"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(BadSampleError, match=message) as error:
        load_image(path)
    assert str(path) in str(error.value)


def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path) -> None:
    Image.new("1", (2000, 2000)).save(tmp_path / "x.png")
    with pytest.raises(BadSampleError, match="expected at most 1000 pixels"):
        load_image(tmp_path / "x.png", max_pixels=1000)


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "JPEG2000", "AVIF", "TGA"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_named(kind: str) -> None:
    """Bytes changed here and there, and ends cut off: an image comes out, or the one error that datasets expect."""
    rng, data = random.Random(0), io.BytesIO()
    image = Image.effect_noise((24, 24), 60).convert("RGB")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(data, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else {}))
    whole, named = data.getvalue(), 0
    for _ in range(120):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(rng.choice([40, len(whole)]))] = rng.randrange(256)
        try:
            assert decode_image(bytes(damaged[: rng.choice([len(whole), rng.randrange(len(whole))])]), "x", 10**5)
        except BadSampleError as error:
            named += str(error).startswith("x: ")
    assert named


def test_an_icon_cannot_hide_a_bomb() -> None:
    """It says 16 x 16, and holds a picture of a million pixels."""
    icon, inside = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(inside, "PNG")
    picture = inside.getvalue()
    icon.write(struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22) + picture)
    with pytest.raises(BadSampleError, match="expected at most 500000 pixels, but got 1000 x 1000"):
        decode_image(icon.getvalue(), "x", 500_000)


def test_programs_are_not_run() -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "EPS")
    with pytest.raises(BadSampleError, match="it is a program"):
        decode_image(data.getvalue(), "x")


def test_no_path_leads_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (root / "circle").symlink_to("circle")
    secret = tmp_path / "secret.png"
    for name in ("../secret.png", str(secret), "link/secret.png", "a/../../secret.png", "..", "//etc/x"):
        with pytest.raises(BadSampleError, match=r"row 1: image path .* leaves the folder"):
            path_inside(root, name, "row 1")
    for name in ("circle", "circle/x", "a\0b", "a" * 5000):
        with pytest.raises(BadSampleError, match="row 1: "):
            load_image(path_inside(root, name, "row 1"))
    assert path_inside(root, "b/../a.png", "row 1") == root.resolve() / "a.png"


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(BadSampleError, match="no regular file"):
        load_image(tmp_path / "x.png")


def test_bytes_are_read_as_files_are() -> None:
    data = io.BytesIO()
    Image.new("CMYK", (3, 2)).save(data, "TIFF")
    assert decode_image(data.getvalue(), "x").mode == "RGB"
    with pytest.raises(BadSampleError, match="my image: not a readable image"):
        decode_image(b"hello", "my image")


def test_trouble_with_metadata_is_none_with_pixels() -> None:
    """A colour profile that Pillow finds too large, a comment that cannot be unpacked, malformed EXIF."""
    plain = Image.new("RGB", (8, 8), "red")
    for options in ({"icc_profile": os.urandom(2_000_000)}, {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff"}):
        for format in ("PNG", "JPEG"):
            data = io.BytesIO()
            plain.save(data, format, **options)
            red, green, blue = decode_image(data.getvalue(), "x").getpixel((0, 0))
            assert red > 250 and green < 5 and blue < 5
    data = io.BytesIO()
    plain.save(data, "PNG")
    chunk = b"zTXtComment\x00\x00not zlib"
    whole = data.getvalue()
    head = 8 + 25  # signature and IHDR
    text = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    assert decode_image(whole[:head] + text + whole[head:], "x").getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(BadSampleError, match="replace the file"):
        decode_image(whole[: len(whole) // 2], "x")
