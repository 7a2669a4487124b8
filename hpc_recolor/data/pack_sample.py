"""One photograph -> a sample as shards hold it, or the reason why it is left out."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpc_recolor.data.entries import Entry
from hpc_recolor.data.photo import SquareFit, UnfitPhotoError, colorfulness, to_square
from hpc_recolor.data.shards import PrepareOptions

JPEG_QUALITY = 95  # with full chroma: color is the training target


@dataclass(frozen=True)
class PackedSample:
    """A prepared photograph. content: raw pixels or a JPEG file. digest: SHA-256 of the pixels before compression."""

    content: bytes
    digest: str


def pack_sample(entry: Entry, options: PrepareOptions) -> PackedSample | str:
    """The photograph as a sample, or "kind: detail" of why it is left out. Thread-safe."""
    if entry.problem:
        return entry.problem
    try:
        pixels = to_square(entry.read(), SquareFit(size=options.size, fit=options.fit), options.min_side)
    except UnfitPhotoError as error:
        return str(error)
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    except MemoryError:
        return "too large: does not fit into memory"
    if colorfulness(pixels) < options.min_colorfulness:
        return f"near-gray: colorfulness below {options.min_colorfulness:g}"
    content = pixels.tobytes() if options.format == "raw" else _to_jpeg(pixels)
    return PackedSample(content=content, digest=hashlib.sha256(pixels.tobytes()).hexdigest())


def _to_jpeg(rgb_u8_HWC: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(rgb_u8_HWC).save(content, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    return content.getvalue()
