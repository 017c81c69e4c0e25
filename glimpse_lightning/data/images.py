"""Reading image files from users, which may be damaged or malicious."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from glimpse_lightning.runtime.errors import BadSampleError

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused before they are decoded (Pillow's own limit, a quarter of a gigabyte of RGB)."""

RUNS_A_PROGRAM = "EPS"
"""A format that Pillow passes to Ghostscript, to which our limits do not apply."""


PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks of a PNG that define its pixels; all others are metadata."""


def load_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image at ``path`` as RGB, turned upright by its EXIF orientation; transparency is laid on white.

    The first frame of an animation is used.

    Raises:
        BadSampleError: for a missing, unreadable, truncated, empty or oversized image.
    """
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise BadSampleError(f"{path}: not a readable image (no regular file); replace the file.")
    return _read(path, str(path), max_pixels)


def _pixels_alone(data: bytes) -> bytes:
    """A PNG without its metadata; other data unchanged.

    Pillow refuses a file whose colour profile or comment is large or malformed, although neither is needed.
    """
    if not data.startswith(PNG):
        return data
    kept, place = [PNG], len(PNG)
    while place + 12 <= len(data):
        size, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if name in PNG_CHUNKS:
            kept.append(data[place : place + 12 + size])
        place += 12 + size
    return b"".join(kept)


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As :func:`load_image`, for the contents of an image file; errors show ``name``."""
    return _read(io.BytesIO(data), name, max_pixels)


def looks_like_an_image(data: bytes) -> bool:
    """Whether the contents of a file begin like an image."""
    try:
        with Image.open(io.BytesIO(data)):
            return True
    except Exception:  # readers of headers raise errors of many types
        return False


def _read(source: Path | io.BytesIO, name: str, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            try:
                return _decoded(source, name, max_pixels)
            except (BadSampleError, OSError, Image.DecompressionBombError):
                raise
            except Exception:
                data = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
                if not data.startswith(PNG):
                    raise
                return _decoded(io.BytesIO(_pixels_alone(data)), name, max_pixels)
    except FileNotFoundError:
        raise BadSampleError(f"{name}: no such image; check its path.") from None
    except (PermissionError, UnidentifiedImageError) as error:
        raise BadSampleError(f"{name}: not a readable image ({type(error).__name__}); replace the file.") from None
    except Image.DecompressionBombError as error:
        raise BadSampleError(f"{name}: {error} Scale the image down.") from None
    except BadSampleError:
        raise
    except Exception as error:  # decoders of damaged files raise anything: RuntimeError, struct.error, EOFError, ...
        raise BadSampleError(f"{name}: the image is truncated or damaged ({error}); replace the file.") from None


def _decoded(source: Path | io.BytesIO, name: str, max_pixels: int) -> Image.Image:
    with Image.open(source) as image:
        if image.format == RUNS_A_PROGRAM:
            raise BadSampleError(f"{name}: expected pixels, but it is a program (EPS); convert it to PNG.")
        _check_size(image, name, max_pixels)
        image.load()
        _check_size(image, name, max_pixels)  # an icon may hold another size than declared
        return upright_rgb(image, name)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if not (width and height):
        raise BadSampleError(f"{name}: expected pixels, but its size is {image.size}; replace the file.")
    if width * height > max_pixels:
        raise BadSampleError(
            f"{name}: expected at most {max_pixels} pixels, but got {width} x {height}; "
            "scale the image down, or raise `max_pixels` if you trust the file."
        )


def upright_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """A decoded image as RGB, turned upright by its EXIF orientation; transparency is laid on white.

    Malformed EXIF is ignored. Grey values of more than 8 bits are scaled by the range of their type, not by that of the
    image: 0 to 65,535 for 16 bits and for Pillow's 32-bit whole numbers, which hold 16 bits as well; 0 to 4,095 and 0
    to 32,767 for 12-bit and signed TIFFs; 0 to 1 for floating-point numbers. In a TIFF of 16 bits 0 may mean white. Of
    colours with 16 bits Pillow reads the upper eight.

    Args:
        image: image as opened by Pillow.
        name: name that errors show.

    Raises:
        BadSampleError: if grey values lie outside the range of their type.
    """
    black, white = _ends(image)
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # readers of metadata raise anything: SyntaxError, struct.error, TypeError, ...
        upright = image
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits a pixel: a plain conversion would clip to white
        upright = _eight_bits(upright, black, white, name)
    return _rgb(upright)


def path_inside(root: Path, name: str, where: str, remedy: str = "move the image into it") -> Path:
    """The path ``name``, relative to ``root`` or absolute, with links resolved.

    Args:
        root: folder that the path may not leave.
        name: the path.
        where: beginning of error messages.
        remedy: what an error advises where the path leaves the folder.

    Raises:
        BadSampleError: if ``name`` leaves ``root`` or is no path; the message begins with ``where``.
    """
    root = root.resolve()
    try:
        path = (root / name).resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a zero byte, links in a circle
        reason = getattr(error, "strerror", None) or error  # without the whole of a long name
        raise BadSampleError(f"{where}: image path {name[:80]!r} is no path ({reason}); mend the data file.") from None
    if not path.is_relative_to(root):
        raise BadSampleError(f"{where}: image path {name!r} leaves the folder {root}; {remedy}.")
    return path


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.mode or "transparency" in image.info or image.mode == "PA":
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _ends(image: Image.Image) -> tuple[float, float]:
    """The values of black and of white in a grey image of more than 8 bits."""
    if image.mode == "F":
        return 0.0, 1.0
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits, signed = tags.get(BITSPERSAMPLE, (16,))[0], tags.get(SAMPLEFORMAT, (1,))[0] == 2
    most = 2.0 ** (bits - signed) - 1 if bits <= 16 else 65535.0
    inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == 0  # Pillow applies it up to 8 bits only
    return (most, 0.0) if inverted else (0.0, most)


def _eight_bits(image: Image.Image, black: float, white: float, name: str) -> Image.Image:
    """A grey image of more than 8 bits, scaled from ``black`` .. ``white`` to 0 .. 255; a transparent value becomes
    white.
    """
    grey = np.asarray(image, dtype=np.float64)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(grey == clear, white, grey)
    low, high, most = float(grey.min()), float(grey.max()), max(black, white)
    if not 0 <= low <= high <= most:
        raise BadSampleError(
            f"{name}: expected grey values from 0 to {most:g}, the range of their type, but got {low:g} to {high:g}; "
            "save the image with 8 or 16 bits a pixel."
        )
    return Image.fromarray(((grey - black) * (255 / (white - black))).round().astype(np.uint8))
