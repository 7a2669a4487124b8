"""Color one photograph of any size with a trained generator."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hpc_recolor.config import Config
from hpc_recolor.data.color_profiles import srgb_profile
from hpc_recolor.data.entries import read_file
from hpc_recolor.data.photo import MAX_PIXELS, UnfitPhotoError, decode, decode_whole, to_rgb
from hpc_recolor.data.sources import find_photos
from hpc_recolor.evaluation.results import chosen_vividness
from hpc_recolor.models.build import Generator, build_generator, load_weights
from hpc_recolor.models.color_space import make_pair, predicted_ab
from hpc_recolor.models.guided_upsampling import GuidedUpsampling
from hpc_recolor.models.vividness import make_vivid
from hpc_recolor.models.weights_package import COLORIZER
from hpc_recolor.run_folder.export import TrainedGenerator, read_generator
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import show_progress
from recolor_kernels import lab_to_rgb_u8, rgb_to_lab

STRIP_PIXELS = 2**19  # converted at a time, which bounds memory
PNG_LEVEL = 1  # zlib's; the default of 6 takes 3 times as long, more than coloring, for files 9 % smaller
LONGEST_ASPECT = 8  # the network's input is no longer than this many of its short sides


class Colorizer:
    """A generator in eval mode that colors photographs and keeps their luminance.

        colorize = Colorizer.load()
        colorize("photo.jpg").save("colored.png")

    vividness: of the predicted colors [0 or more, 1: as predicted], within the gamut; see `make_vivid`.
    """

    def __init__(self, generator: Generator, config: Config, vividness: float = 1.0) -> None:
        self.generator = generator.eval()
        self.vividness = vividness
        self.color = config.model.color
        self.size = config.data.size

    @classmethod
    def load(cls, run: str | PathLike[str] = COLORIZER, vividness: float | None = None) -> "Colorizer":
        """The generator of a run folder's newest checkpoint, or of a file that `checkpoint export` wrote, on the CPU.

        run: by default the colorizer that comes with this package. vividness: None for the one chosen on validation;
        see `results.chosen_vividness`. Raises UserError if the generator is missing or does not fit.
        """
        run = Path(run)
        trained = read_generator(run)
        if vividness is None:
            vividness = chosen_vividness(run) if trained.vividness is None else trained.vividness
        return cls.of(trained, vividness)

    @classmethod
    def of(cls, trained: TrainedGenerator, vividness: float) -> "Colorizer":
        """A generator that was read from a file. Raises UserError if its weights do not fit its config."""
        generator = build_generator(trained.config.model, trained.config.data.size)
        load_weights(generator, trained.weights, trained.path)
        return cls(generator, trained.config, vividness)

    @overload
    def __call__(self, photo: NDArray[np.uint8]) -> NDArray[np.uint8]: ...

    @overload
    def __call__(self, photo: Image.Image | str | PathLike[str]) -> Image.Image: ...

    @overload
    def __call__(self, photo: list[Image.Image] | list[str] | list[Path]) -> list[Image.Image]: ...

    @overload
    def __call__(self, photo: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]: ...

    def __call__(self, photo: Any) -> Any:
        """A colored copy: same size, upright, with the photo's own L* at full resolution and the predicted a*, b*.

        photo: a Pillow image of any mode and size, or the path of a photograph: a Pillow image in RGB comes back; or
        uint8 (H,W), (H,W,3) or (N,H,W,3): an array (..., H,W,3); or a list of these: a list. Of a color photograph only
        the luminance is used. Raises UserError for a file that cannot be read and for other arrays.
        """
        if isinstance(photo, np.ndarray):
            return self._color_array(photo)
        if isinstance(photo, Image.Image):
            return self._color(photo)
        if isinstance(photo, str | PathLike):
            return self._color(_read(Path(photo)))
        return [self(one) for one in photo]

    def _color_array(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        has_pixels = pixels.ndim == 2 or (pixels.ndim in (3, 4) and pixels.shape[-1] == 3)
        if not has_pixels or not pixels.size or pixels.dtype != np.uint8:
            raise UserError(
                f"photo: array of {pixels.dtype}, {pixels.shape}",
                "not the pixels of photographs",
                "give uint8 of (height, width), (height, width, 3) or (number, height, width, 3)",
            )
        if pixels.ndim > 3:
            return np.stack([self._color_array(one) for one in pixels])
        return np.array(self._color(Image.fromarray(pixels)))

    def _color(self, photo: Image.Image) -> Image.Image:
        colored = to_rgb(photo)
        self.color_in_place(colored)
        return colored

    @torch.no_grad()
    def color_in_place(self, rgb: Image.Image, vividness: float | None = None) -> None:
        """The same to an upright sRGB photograph itself, which takes no memory for a second one.

        vividness: None for the colorizer's own.
        """
        upsampling = GuidedUpsampling(*self._predict_lab(rgb, self.vividness if vividness is None else vividness))
        rows = max(1, STRIP_PIXELS // rgb.width)
        for top in range(0, rgb.height, rows):
            box = (0, top, rgb.width, min(top + rows, rgb.height))
            lightness, _ = rgb_to_lab(_as_tensor(rgb.crop(box)))
            colored = lab_to_rgb_u8(lightness, upsampling.rows(lightness, top, rgb.height))
            rgb.paste(Image.fromarray(colored[0].numpy()), box)

    def _predict_lab(self, photo: Image.Image, vividness: float) -> tuple[Tensor, Tensor]:
        """L (1,1,h,w) and predicted ab (1,2,h,w), in the ranges of rgb_to_lab, at the size that the network sees."""
        scale = self.size / min(photo.size)
        width, height = (min(LONGEST_ASPECT * self.size, max(self.size, round(side * scale))) for side in photo.size)
        small = _as_tensor(photo.resize((width, height), Image.Resampling.BILINEAR))
        condition, _ = make_pair(small, self.color)
        padding = (0, -width % self.generator.multiple, 0, -height % self.generator.multiple)
        output = self.generator(F.pad(condition, padding, mode="replicate"))[:, :, :height, :width]
        lightness = condition if self.color == "lab" else rgb_to_lab(small)[0]
        return lightness, make_vivid(lightness, predicted_ab(condition, output, self.color), vividness)


def _read(file: Path) -> Image.Image:
    """A photograph's file, as sRGB. Raises UserError if it cannot be read."""
    try:
        return decode(read_file(file))
    except (UnfitPhotoError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"photo={file}", f"cannot be read ({reason})", "name a photograph, such as a JPEG") from None


def _as_tensor(photo: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8).view(1, photo.height, photo.width, 3)


def colorize_files(
    photos: list[Path], run: Path, out: Path, on_written: Callable[[Path], None], vividness: float | None = None
) -> list[str]:
    """Color photographs, or all of a folder, into out/NAME.png.

    run: as for `Colorizer.load`; on_written: called with each result once it is written; vividness: see
    `Colorizer`, None for the one chosen on validation. Returns a line for each photograph that cannot be read. Raises
    UserError before anything is written if a path does not exist or a result would replace one of the photographs.
    """
    targets = result_paths(photos, out)
    colorizer = Colorizer.load(run, vividness)
    skipped, deep = [], 0
    with show_progress("colorizing", shown=len(targets) > 1) as progress:
        for done, (file, target) in enumerate(targets.items(), 1):
            try:
                colored = color_file(colorizer, read_file(file))
            except (UnfitPhotoError, OSError) as error:
                skipped.append(f"{file} ({error})")
                continue
            _write(target, colored.png)
            deep += colored.is_deep
            on_written(target)
            progress(done, len(targets))
    if deep:
        print(f"{deep} of the photographs have more than 8 bits a channel; colored copies have 8", file=sys.stderr)
    return skipped


@dataclass(frozen=True)
class ColoredFile:
    """A colored copy. png: its file; pixels: how many; is_deep: whether the photograph has more than 8 bits a channel,
    as the copy has: Pillow writes no color of 16 bits."""

    png: memoryview
    pixels: int
    is_deep: bool


def color_file(
    colorizer: Colorizer, content: bytes, vividness: float | None = None, max_pixels: int = MAX_PIXELS
) -> ColoredFile:
    """A photograph's file to a PNG of its colored copy, with its transparency, EXIF and resolution, in sRGB of 8 bits.

    vividness: as for `Colorizer.color_in_place`. Raises UnfitPhotoError if it cannot be decoded, or has more pixels.
    """
    whole = decode_whole(content, max_pixels=max_pixels)
    colored = whole.rgb
    colorizer.color_in_place(colored, vividness)
    if whole.alpha:
        colored.putalpha(whole.alpha)
    written = BytesIO()
    colored.save(written, "PNG", compress_level=PNG_LEVEL, icc_profile=srgb_profile(), **whole.metadata)
    return ColoredFile(written.getbuffer(), colored.width * colored.height, whole.is_deep)


def result_paths(photos: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where the colored copy of each photograph goes, by photograph.

    out/NAME.png; of a folder's photographs out/SUBFOLDER/NAME.png, as they lie in it. Where two would have one name,
    these lie below `out` as below the folder that all photographs have in common, and keep their suffix if that does
    not suffice. Raises UserError as `colorize_files` does.
    """
    inside: dict[Path, Path] = {}  # photograph -> its path in the folder that was given
    for path in photos:
        if path.is_dir():
            inside |= {file: file.relative_to(path) for file in find_photos(path, "PHOTO", without=out)}
        elif path.is_file():
            inside[path] = Path(path.name)
        else:
            raise UserError(f"PHOTO={path}", "no such file", "name a photograph or a folder of photographs")
    common = Path(os.path.commonpath([file.absolute().parent for file in inside]))
    below = {file: file.absolute().relative_to(common) for file in inside}
    names = {file: name.with_suffix(".png") for file, name in inside.items()}
    as_png = {file: name.with_suffix(".png") for file, name in below.items()}
    with_suffix_kept = {file: name.with_name(f"{name.name}.png") for file, name in below.items()}
    for longer in (as_png, with_suffix_kept):
        counts = Counter(names.values())
        names |= {file: longer[file] for file, name in names.items() if counts[name] > 1}
    originals = {file.resolve() for file in inside}
    for name, count in Counter(names.values()).items():
        if count > 1:
            raise UserError(f"PHOTO={name.stem}", f"two results would be {out / name}", "color these in two calls")
        if (out / name).resolve() in originals:
            raise UserError(
                f"out={out}", f"{out / name} is one of the photographs and would be replaced", "name another folder"
            )
    return {file: out / name for file, name in names.items()}


def _write(target: Path, content: memoryview) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    except OSError as error:
        raise UserError(
            f"out={target.parent}", f"cannot write {target} ({error.strerror})", "name a folder that you can write to"
        ) from None
