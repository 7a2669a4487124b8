"""One photograph: odd tags and turns, HEIC, and what cameras call raw."""

import io
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from hpc_recolor.data.entries import PHOTO_BEGINNING
from hpc_recolor.data.photo import UnfitPhotoError, decode, decode_whole, for_dali
from tests.conftest import paint_photo
from tests.support import tolerances
from tests.support.icc import rgb_profile


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


def saved_heic(**options: object) -> bytes:
    """What a telephone writes; skips the test where pillow-heif is not installed."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    paint_photo(1, 60, 40).save(file := io.BytesIO(), "HEIF", quality=95, chroma="444", **options)
    return file.getvalue()


def test_heic_is_a_photograph_upright_and_near_its_pixels() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Model] = "a telephone"
    content = saved_heic(exif=exif.tobytes())
    assert PHOTO_BEGINNING.match(content)
    whole = decode_whole(content)
    expected = np.asarray(paint_photo(1, 60, 40).transpose(Image.Transpose.ROTATE_270))
    assert np.abs(np.asarray(whole.rgb).astype(int) - expected).mean() < tolerances.LOSSY_CODEC
    assert b"a telephone" in whole.metadata["exif"]
    with Image.open(io.BytesIO(for_dali(content))) as copy:  # which DALI reads
        np.testing.assert_array_equal(np.asarray(copy), np.asarray(whole.rgb))


def test_the_color_profile_of_a_heic_is_obeyed() -> None:
    content = saved_heic(icc_profile=rgb_profile())
    plain = np.asarray(decode(saved_heic())).astype(int)
    assert np.abs(np.asarray(decode(content)) - plain).mean() > 2


def test_a_damaged_heic_is_unfit() -> None:
    content = saved_heic()
    with pytest.raises(UnfitPhotoError, match="unreadable"):
        decode(content[: len(content) // 2])


def test_without_its_package_a_heic_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = b"\0\0\0\x18ftypheic" + bytes(100)
    with pytest.raises(UnfitPhotoError, match=r"pip install 'hpc-recolor\[heic\]'"):
        decode(content)
    assert for_dali(content) == content


RAW_TAGS: dict[str, dict[int, Any]] = {"DNG": {50706: b"\1\4\0\0"}, "NEF, ARW": {254: 1, 330: 8}}


@pytest.mark.parametrize("kind", RAW_TAGS)
def test_the_preview_in_a_raw_image_is_not_taken_for_the_photograph(kind: str) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in RAW_TAGS[kind].items():
        tags[tag] = value
    paint_photo(1).save(file := io.BytesIO(), "TIFF", tiffinfo=tags)
    with pytest.raises(UnfitPhotoError, match="raw image"):
        decode(file.getvalue())


def test_a_small_image_beside_others_in_a_tiff_is_a_photograph() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    paint_photo(1).save(file := io.BytesIO(), "TIFF", tiffinfo=tags)
    assert decode(file.getvalue()).size == paint_photo(1).size
