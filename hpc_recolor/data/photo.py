"""One photograph: from the bytes of its file to square RGB pixels, or the reason why it cannot be used."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hpc_recolor.config import FitName

# Pillow's names of the formats that DALI decodes too; decided by content, not by suffix.
PHOTO_FORMATS = frozenset({"JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP"})
# A decoded photograph takes three bytes per pixel, in every thread at the same time.
MAX_PIXELS = 100_000_000
# A JPEG is decoded at a half, quarter or eighth of its size where it stays this many times larger than the result.
DECODE_AT_LEAST = 3
# Transposition that turns an image with this EXIF orientation upright (Exif 3.0, 4.6.5.1.6). ImageOps.exif_transpose
# would also rewrite the tags, and fails on malformed ones.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnfitPhotoError(Exception):
    """Why a photograph cannot be used: "kind: detail", or the kind alone."""


@dataclass(frozen=True)
class SquareFit:
    """The square that photographs become: its side [pixels] and how they are fitted into it."""

    size: int
    fit: FitName


def decode(content: bytes, min_side: int = 1, at_least: int | None = None) -> Image.Image:
    """The photograph upright, as RGB of 8 bits.

    Colors are taken as they are: no color profile is applied and transparency is dropped. Of files with several
    images the first is taken, unless they are an animation.
    min_side: smallest side that is accepted [pixels]. at_least: a JPEG may be decoded at a half, quarter or eighth of
    its size, as long as neither side falls below this [pixels].
    Raises UnfitPhotoError if the photograph cannot be decoded, is animated, has a side below min_side, or more than
    MAX_PIXELS (according to its header, before it is decoded).
    """
    try:
        with Image.open(io.BytesIO(content)) as photo:
            _check_header(photo, min_side)
            if at_least:
                photo.draft(None, (at_least, at_least))
            photo.load()
            if photo.mode == "F":
                raise UnfitPhotoError("foreign: holds floating-point pixels")
            return to_rgb(photo)
    except DECODER_ERRORS as error:
        raise UnfitPhotoError(_reason(error, content)) from None


def to_rgb(photo: Image.Image) -> Image.Image:
    """Upright 8-bit RGB of a Pillow image of any mode; 16-bit gray is scaled down, transparency dropped."""
    turn = TURNS.get(photo.getexif().get(ExifTags.Base.Orientation, 1))
    if photo.mode.startswith("I"):  # gray of 16 bits, which `convert` would clip at 255
        photo = Image.fromarray((np.asarray(photo).clip(0, 65535) >> 8).astype(np.uint8))
    elif photo.mode == "P":  # a palette with transparency would otherwise cause a warning
        photo = photo.convert("RGBA")
    rgb = photo.convert("RGB")
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info = {}  # else the caller might apply the orientation again
    return upright


def to_square(content: bytes, square: SquareFit, min_side: int = 1) -> NDArray[np.uint8]:
    """The photograph as `decode` returns it, resized by a triangle filter: uint8 (size, size, 3).

    Raises UnfitPhotoError as `decode` does.
    """
    photo = decode(content, min_side, at_least=DECODE_AT_LEAST * square.size)
    size = (square.size, square.size)
    if square.fit == "crop":
        photo = ImageOps.fit(photo, size, Image.Resampling.BILINEAR)
    elif square.fit == "pad":
        photo = ImageOps.pad(photo, size, Image.Resampling.BILINEAR)
    else:
        photo = photo.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(photo)


def colorfulness(rgb_u8_HWC: NDArray[np.uint8]) -> float:
    """How colorful an image (H, W, 3) is: 0 is gray, 15 slightly, 33 averagely colorful.

    Hasler and Suesstrunk, "Measuring colourfulness in natural images", Human Vision and Electronic Imaging VIII, 2003.
    """
    red, green, blue = (rgb_u8_HWC[..., channel].astype(np.float32) for channel in range(3))
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def _check_header(photo: Image.Image, min_side: int) -> None:
    if photo.format not in PHOTO_FORMATS:
        raise UnfitPhotoError(f"foreign: holds {photo.format}, expected one of {', '.join(sorted(PHOTO_FORMATS))}")
    if photo.width * photo.height > MAX_PIXELS:
        raise UnfitPhotoError(f"too large: {photo.width} x {photo.height}, more than {MAX_PIXELS:,} pixels")
    if min(photo.size) < min_side:
        raise UnfitPhotoError(f"too small: {photo.width} x {photo.height}, a side is below {min_side} pixels")
    if photo.format in ("PNG", "WEBP") and getattr(photo, "is_animated", False):
        raise UnfitPhotoError("animated")


def _reason(error: Exception, content: bytes) -> str:
    if not content:
        return "empty"
    if isinstance(error, UnidentifiedImageError):
        return "foreign: holds no photograph that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: more than {MAX_PIXELS:,} pixels"
    return f"unreadable: {' '.join(str(error).split()) or type(error).__name__}"
