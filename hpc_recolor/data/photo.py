"""One photograph: from the bytes of its file to square RGB pixels, or the reason why it cannot be used."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hpc_recolor.config import FitName
from hpc_recolor.data.color_profiles import has_foreign_profile, to_srgb
from hpc_recolor.data.entries import HEIF_BEGINNING
from hpc_recolor.data.made_profiles import add_named_profile

# Pillow's names of the formats; decided by content, not by suffix. DALI decodes all but the last two.
PHOTO_FORMATS = frozenset({"JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "AVIF", "HEIF"})
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
# What files contain that DALI does not read as Pillow does: a color profile of JPEG or PNG, Adobe RGB in EXIF, a gamma,
# an orientation in XMP. In TIFF and WebP such have no names that are as easy to find.
MARKS = (b"ICC_PROFILE", b"iCCP", b"R03\0", b"gAMA", b"tiff:Orientation", b"ftypavif")
TIFF_OR_WEBP = (b"II", b"MM", b"RIFF")
# Of large photographs and odd metadata. What cannot be used has an error of its own.
warnings.filterwarnings("ignore", module=r"PIL\.")
# TIFF tags (TIFF 6.0, TIFF/EP and DNG 1.7): what an image is beside others, where those are, and DNG's own.
NEW_SUBFILE_TYPE, SUB_IFDS, DNG_VERSION = 254, 330, 50706
MOST_DPI = 1e5  # more, or infinitely many, are no resolution, and cannot be written
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
    """The photograph upright, as sRGB of 8 bits.

    Colors are converted by the file's color profile, if it has one that can be read; transparency is dropped. Of files
    with several images the first is taken, unless they are an animation.
    min_side: smallest side that is accepted [pixels]. at_least: a JPEG may be decoded at a half, quarter or eighth of
    its size, as long as neither side falls below this [pixels].
    Raises UnfitPhotoError if the photograph cannot be decoded, is animated, has a side below min_side, or more than
    MAX_PIXELS (according to its header, before it is decoded).
    """
    with _opened(content, min_side, at_least) as photo:
        return _without_info(_turned(to_srgb(photo), photo))  # not copied: a large one takes much memory


@dataclass(frozen=True)
class WholePhoto:
    """A photograph with all that its colored copy keeps. rgb: as `decode` returns it; alpha: its transparency, 8 bits,
    None without; metadata: EXIF without orientation and thumbnail, and resolution, as arguments of Pillow's `save`;
    is_deep: whether the file has more than 8 bits a channel."""

    rgb: Image.Image
    alpha: Image.Image | None
    metadata: dict[str, Any]
    is_deep: bool


def decode_whole(content: bytes, at_least: int | None = None, max_pixels: int = MAX_PIXELS) -> WholePhoto:
    """A photograph and what belongs to it. at_least: as for `decode`. max_pixels: a limit below MAX_PIXELS.

    Raises UnfitPhotoError as `decode` does.
    """
    with _opened(content, at_least=at_least, max_pixels=max_pixels) as photo:
        alpha = photo.convert("RGBA").getchannel("A") if photo.has_transparency_data else None
        alpha, upright = alpha and _turned(alpha, photo), _turned(to_srgb(photo), photo)
        metadata = _kept_metadata(photo)  # takes the orientation out, and needs what the next line removes
        return WholePhoto(_without_info(upright), alpha, metadata, _is_deep(content))


@contextmanager
def _opened(
    content: bytes, min_side: int = 1, at_least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """A file's photograph as Pillow decodes it. Arguments, and errors raised inside the context too: see `decode`."""
    try:
        with _open(content) as photo:
            _check_header(photo, min_side, min(max_pixels, MAX_PIXELS))
            if _is_raw(photo, content):
                raise UnfitPhotoError("foreign: a camera's raw image, of which only a preview could be read")
            if at_least:
                photo.draft(None, (at_least, at_least))
            photo.load()
            if photo.mode == "F":
                raise UnfitPhotoError("foreign: holds floating-point pixels")
            yield photo
    except DECODER_ERRORS as error:
        raise UnfitPhotoError(_reason(error, content)) from None


def _open(content: bytes) -> Image.Image:
    """As Pillow opens a file. Raises UnfitPhotoError if it is HEIC and its package is missing, and DECODER_ERRORS."""
    if HEIF_BEGINNING.match(content) and "HEIF" not in Image.OPEN:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise UnfitPhotoError("foreign: HEIC is read after pip install 'hpc-recolor[heic]'") from None
        register_heif_opener()
    photo = Image.open(io.BytesIO(content))
    add_named_profile(photo)
    return photo


def to_rgb(photo: Image.Image) -> Image.Image:
    """Upright 8-bit sRGB of a Pillow image of any mode, by its color profile, as a new one; transparency dropped."""
    upright = _turned(to_srgb(photo), photo)
    return _without_info(upright.copy() if upright is photo else upright)


def _without_info(upright: Image.Image) -> Image.Image:
    upright.info = {}  # else the caller might apply the orientation again
    return upright


def _turned(image: Image.Image, photo: Image.Image) -> Image.Image:
    """An image as upright as the EXIF orientation of `photo` makes that one."""
    turn = TURNS.get(photo.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def for_dali(content: bytes) -> bytes:
    """A file that DALI decodes to the pixels of `decode`: this one, or an uncompressed copy of these pixels.

    DALI applies no color profile and no orientation in XMP, and reads neither AVIF, HEIC nor lossless WebP with EXIF.
    The copy costs what Pillow takes to decode it. A file that Pillow cannot decode is returned as it is.
    """
    is_plain = not content.startswith(TIFF_OR_WEBP) and not HEIF_BEGINNING.match(content)
    if is_plain and not any(mark in content for mark in MARKS):
        return content  # parsing the header takes half as long as decoding
    try:
        with _open(content) as photo:
            turned_by_xmp = "xmp" in photo.info and ExifTags.Base.Orientation in photo.getexif()
            unread = photo.format in ("AVIF", "HEIF") or (photo.format == "WEBP" and "exif" in photo.info)
            if not (has_foreign_profile(photo) or turned_by_xmp or unread):
                return content
        copy = io.BytesIO()
        decode(content).save(copy, "BMP")
    except (UnfitPhotoError, *DECODER_ERRORS):
        return content
    return copy.getvalue()


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


def _kept_metadata(photo: Image.Image) -> dict[str, Any]:
    """What an upright copy keeps of a photograph. EXIF that cannot be read is left out."""
    kept: dict[str, Any] = {}
    with suppress(*DECODER_ERRORS):
        exif = photo.getexif()
        exif.pop(ExifTags.Base.Orientation, None)
        _mark_as_srgb(exif)
        if exif:
            kept["exif"] = exif.tobytes()
    with suppress(*DECODER_ERRORS):
        dpi = tuple(map(float, photo.info.get("dpi", ())))
        if dpi and all(0 < value < MOST_DPI for value in dpi):
            kept["dpi"] = dpi
    return kept


def _mark_as_srgb(exif: Image.Exif) -> None:
    """The copy's pixels are sRGB, whatever the photograph's were."""
    details = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
    if ExifTags.Base.ColorSpace in details:
        details[ExifTags.Base.ColorSpace] = 1
    details.pop(ExifTags.IFD.Interop, None)


def _check_header(photo: Image.Image, min_side: int, max_pixels: int) -> None:
    if photo.format not in PHOTO_FORMATS:
        raise UnfitPhotoError(f"foreign: holds {photo.format}, expected one of {', '.join(sorted(PHOTO_FORMATS))}")
    if photo.width * photo.height > max_pixels:
        raise UnfitPhotoError(f"too large: {photo.width} x {photo.height}, more than {max_pixels:,} pixels")
    if min(photo.size) < min_side:
        raise UnfitPhotoError(f"too small: {photo.width} x {photo.height}, a side is below {min_side} pixels")
    if photo.format in ("PNG", "WEBP", "AVIF") and getattr(photo, "is_animated", False):
        raise UnfitPhotoError("animated")


def _is_raw(photo: Image.Image, content: bytes) -> bool:
    """Whether a TIFF is what a camera's sensor saw. Pillow would take the small preview in it for the photograph."""
    tags = getattr(photo, "tag_v2", {})
    is_preview = int(tags.get(NEW_SUBFILE_TYPE, 0)) & 1 and SUB_IFDS in tags
    return bool(DNG_VERSION in tags or is_preview or content[8:10] == b"CR") and photo.format == "TIFF"


def _is_deep(content: bytes) -> bool:
    """Whether a file that can be decoded has more than 8 bits a channel. Pillow keeps these in gray alone."""
    with _open(content) as photo:
        formats = [
            tile.args[0] if isinstance(tile.args, tuple) else tile.args for tile in getattr(photo, "tile", [])[:1]
        ]
        return photo.mode.startswith("I") or "16" in str(formats) or photo.info.get("bit_depth", 8) > 8


def _reason(error: Exception, content: bytes) -> str:
    if not content:
        return "empty"
    if isinstance(error, UnidentifiedImageError):
        return "foreign: holds no photograph that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: more than {MAX_PIXELS:,} pixels"
    return f"unreadable: {' '.join(str(error).split()) or type(error).__name__}"
