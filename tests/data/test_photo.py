"""One photograph: odd tags and turns."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from hpc_recolor.data.photo import decode
from tests.conftest import paint_photo


def saved(exif: bytes) -> bytes:
    content = io.BytesIO()
    paint_photo(1, 40, 24).save(content, "JPEG", exif=exif)
    return content.getvalue()


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_brought_upright_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = saved(exif.tobytes())
    with Image.open(io.BytesIO(content)) as photo:
        expected = np.asarray(ImageOps.exif_transpose(photo))
    upright = decode(content)
    np.testing.assert_array_equal(np.asarray(upright), expected)
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(upright)), expected)


def test_tags_of_a_wrong_type_do_not_cost_the_photograph() -> None:
    short, text = 3, 2
    orientation = struct.pack("<HHIHH", ExifTags.Base.Orientation, short, 1, 6, 0)
    resolution = struct.pack("<HHI4s", ExifTags.Base.XResolution, text, 4, b"odd")  # should be a rational number
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + orientation + resolution + bytes(4)
    assert decode(saved(exif)).size == (24, 40)


LARGE_AND_ODD = """
import io
from PIL import Image
from hpc_recolor.data import photo
for image, options in (
    (Image.new("1", (9999, 9600)), {"format": "PNG"}),
    (Image.new("RGB", (8, 8)), {"format": "JPEG", "exif": b"Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x05\\0"}),
):
    file = io.BytesIO()
    image.save(file, **options)
    assert photo.decode_whole(file.getvalue()).rgb.size == image.size
"""


@pytest.mark.slow
def test_what_pillow_warns_of_is_not_printed() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE_AND_ODD], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
