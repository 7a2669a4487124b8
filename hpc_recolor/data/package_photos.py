"""The color photographs that come inside scikit-image, scikit-learn and matplotlib, cut into tiles."""

import shutil
from itertools import product
from pathlib import Path

from PIL import Image

from hpc_recolor.runtime.errors import UserError

SIDE = 128
# Every HOLD_OUT_EVERY-th square of a SIDE-sized grid over each photograph is held out.
HOLD_OUT_EVERY = 8
TRAIN_SIDES = (96, 128, 192, 256)
HELD_OUT_PHOTO = "grace_hopper.png"

Box = tuple[int, int, int, int]


def write_tiles(folder: Path) -> None:
    """Write train/*.png, held_out/*.png, and one whole photograph that no tile is cut from. Safe to repeat.

    Raises UserError if one of the packages is missing.
    """
    done, rules = folder / ".complete", f"{SIDE} {HOLD_OUT_EVERY} {TRAIN_SIDES} {HELD_OUT_PHOTO}"
    if done.exists() and done.read_text() == rules:
        return
    shutil.rmtree(folder, ignore_errors=True)
    for name, photo in _load().items():
        train, held_out = tile_boxes(*photo.size)
        for split, boxes in (("train", train), ("held_out", held_out)):
            (folder / split).mkdir(parents=True, exist_ok=True)
            for box in boxes:
                tile = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
                tile.save(folder / split / f"{name}-{'-'.join(map(str, box))}.png")
    _held_out_photo().save(folder / HELD_OUT_PHOTO)
    done.write_text(rules)


def count_tiles() -> int:
    """Number of tiles to train on. Raises UserError if one of the packages is missing."""
    return sum(len(tile_boxes(*photo.size)[0]) for photo in _load().values())


def write_photographs(folder: Path) -> list[Path]:
    """Write every photograph whole, *.png, and return the files. Safe to repeat.

    Raises UserError if one of the packages is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, photo in _load_all().items():
        written.append(folder / f"{name}.png")
        photo.save(written[-1])
    return written


def write_scenes(folder: Path) -> None:
    """Write every photograph whole, and two squares of half its short side: *.png. Safe to repeat.

    Raises UserError if one of the packages is missing.
    """
    done, rules = folder / ".complete", "whole and two squares"
    if done.exists() and done.read_text() == rules:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, photo in _load_all().items():
        half = min(photo.size) // 2
        photo.save(folder / f"{name}.png")
        squares = _squares(*photo.size, half, half)
        for box in (squares[0], squares[-1]):
            photo.crop(box).save(folder / f"{name}-{'-'.join(map(str, box))}.png")
    done.write_text(rules)


def tile_boxes(width: int, height: int) -> tuple[list[Box], list[Box]]:
    """Boxes (left, top, right, bottom) [pixels] to train on and to hold out. No pixel is in boxes of both."""
    grid = _squares(width, height, SIDE, SIDE)
    held_out = grid[HOLD_OUT_EVERY // 2 :: HOLD_OUT_EVERY]
    train = [
        box
        for side in TRAIN_SIDES
        for box in _squares(width, height, side, side // 2)
        if not any(_overlap(box, other) for other in held_out)
    ]
    return train, held_out


def _squares(width: int, height: int, side: int, step: int) -> list[Box]:
    places = product(range(0, height - side + 1, step), range(0, width - side + 1, step))
    return [(left, top, left + side, top + side) for top, left in places]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _load() -> dict[str, Image.Image]:
    try:
        import skimage.data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise UserError("the demo's photographs", f"are missing ({error})", "pip install 'hpc-recolor[demo]'") from None
    photos = {name: getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    photos["motorcycle"] = skimage.data.stereo_motorcycle()[0]
    photos |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: Image.fromarray(pixels) for name, pixels in photos.items()}


def _load_all() -> dict[str, Image.Image]:
    return _load() | {Path(HELD_OUT_PHOTO).stem: _held_out_photo()}


def _held_out_photo() -> Image.Image:
    import matplotlib.cbook

    with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        return photo.convert("RGB")
