"""A photograph colored for the screen."""

from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from hpc_recolor.data.photo import decode_whole
from hpc_recolor.evaluation.colorizer import Colorizer

LONGEST_SIDE = 1280  # pixels
# JPEGs of small photographs are decoded at a fraction of their size where no side falls below this.
DECODE_AT_LEAST = LONGEST_SIDE // 2
QUALITY = 90


@dataclass(frozen=True)
class Preview:
    """An image file. media_type: image/jpeg, or image/png of a photograph that has transparency."""

    content: memoryview
    media_type: str


def preview(colorizer: Colorizer, content: bytes, vividness: float | None, max_pixels: int) -> Preview:
    """The colored copy of a photograph's file, with sides of at most LONGEST_SIDE. Arguments: as for `color_file`.

    A preview may be colored again with another vividness, in place of the photograph: only its luminance counts.
    Raises UnfitPhotoError as `color_file` does.
    """
    whole = decode_whole(content, at_least=DECODE_AT_LEAST, max_pixels=max_pixels)
    shown = whole.rgb
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
    colorizer.color_in_place(shown, vividness)
    written = BytesIO()
    if whole.alpha:
        shown.putalpha(whole.alpha.resize(shown.size, Image.Resampling.BILINEAR))
        shown.save(written, "PNG", compress_level=1)
        return Preview(written.getbuffer(), "image/png")
    shown.save(written, "JPEG", quality=QUALITY, subsampling="4:4:4")
    return Preview(written.getbuffer(), "image/jpeg")
