"""A run's checkpoints measured on photographs: exactly the same numbers on any number of ranks."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_recolor import __version__
from hpc_recolor.config import Config
from hpc_recolor.data.batch import Batch
from hpc_recolor.evaluation import image_metrics, results
from hpc_recolor.evaluation.checkpoint_choice import Choice, choose
from hpc_recolor.evaluation.perceptual import Perceptual
from hpc_recolor.evaluation.photographs import Photographs, find_photographs
from hpc_recolor.evaluation.rows import Gallery, Made, Rows, in_order, measure_rows, to_show
from hpc_recolor.evaluation.validation_scores import network_losses
from hpc_recolor.models.build import build_discriminator, build_generator, load_weights, place
from hpc_recolor.models.color_space import gray_copy, make_pair, to_pictures
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.files import record_of
from hpc_recolor.run_folder.folder import RunFolder, open_run
from hpc_recolor.runtime.code_version import code_commit
from hpc_recolor.runtime.distributed import World, on_main, start, stop
from hpc_recolor.runtime.errors import UserError

LOSSES = ("l1", "adversarial", "discriminator")


@dataclass(frozen=True)
class Wishes:
    """What the user may choose. epochs: of checkpoints, none for the newest; data: other photographs than the run's;
    pictures: so many of the first are kept."""

    epochs: Sequence[int] = ()
    data: Path | None = None
    raw: bool = False
    pictures: int = 32
    lpips_weights: Path | None = None
    fid_weights: Path | None = None


@dataclass(frozen=True)
class Survey:
    """What is known of photographs before any is colored. fingerprint: SHA-256 of their pixels, uint8 NHWC in order;
    mean_ab: over all their pixels [Lab units]."""

    fingerprint: str
    mean_ab: tuple[float, float]


def evaluate(folder: Path, wishes: Wishes, device: str = "auto", threads: int = 1) -> None:
    """Measure a run's checkpoints, write what comes out into its folder, and print a table of it. Every rank calls it.

    device: "auto", "cpu" or "cuda"; threads: CPU threads of each rank, which decide the last bits of convolutions.
    Raises UserError, with nothing written, if run, checkpoints, photographs or weights do not fit.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU here; use --device cpu, or check nvidia-smi")
    world = start(device, threads)
    try:
        run, config = on_main(world, lambda: open_run(folder))
        chosen = on_main(world, lambda: choose(run, wishes.epochs, wishes.raw))
        perceptual = Perceptual.load(wishes.lpips_weights, wishes.fid_weights, world.device)
        photographs = find_photographs(config, wishes.data, chosen[-1].manifest.photos, world)
        Evaluation(run, config, wishes, world, perceptual, photographs).run_all(chosen)
    finally:
        stop()


class Evaluation:
    """A run's photographs, and what the rows to compare with measure on them."""

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        wishes: Wishes,
        world: World,
        perceptual: Perceptual,
        photographs: Photographs,
    ) -> None:
        self.run, self.config, self.wishes, self.world = run, config, wishes, world
        self.perceptual, self.photographs = perceptual, photographs
        self.color = config.model.color
        self.folder = results.folder_of(run, photographs.name)
        self.survey = survey(photographs)
        self._baselines: Rows | None = None

    def run_all(self, chosen: Sequence[Choice]) -> None:
        """Measure each of these checkpoints that is not measured already."""
        self.check()
        for choice in chosen:
            there, content = self.run_one(choice)
            if self.world.is_main:
                with suppress(BrokenPipeError):
                    print(f"{self.folder / choice.stem}.json{' is there already' * there}")
                    print(results.table(content["rows"]), flush=True)

    def check(self) -> None:
        """Raise UserError if what the folder holds already is of other photographs."""
        on_main(self.world, lambda: results.check_same_photographs(self.folder, self.survey.fingerprint))

    def run_one(self, choice: Choice) -> tuple[bool, dict[str, Any]]:
        """Whether a checkpoint was measured already, and what came out."""
        protocol, first = self.protocol(choice), self.wishes.pictures
        found = on_main(self.world, lambda: results.find_finished(self.folder, choice.stem, protocol, first))
        return found is not None, found or self.measure(choice, protocol)

    def measure(self, choice: Choice, protocol: dict[str, Any]) -> dict[str, Any]:
        """Measure a checkpoint, and write and return what comes out."""
        generator, judge = self._networks(choice)
        gallery = Gallery(self.wishes.pictures)

        @torch.no_grad()
        def make(batch: Batch) -> Made:
            condition, target = make_pair(batch.rgb_u8_NHWC, self.color)
            output = generator(condition)
            losses = network_losses(output, condition, target, judge, self.config.loss)
            pictures = {"model": to_pictures(condition, output, self.color)}
            if self.color == "rgb":
                pictures["model_own_l"] = image_metrics.with_lightness_of(batch.rgb_u8_NHWC, pictures["model"])
            return Made(pictures, {"losses": dict(zip(LOSSES, losses.unbind(1), strict=True))})

        colored = measure_rows(self.photographs, make, self.perceptual, f"measuring {choice.stem}", gallery)
        self.baselines()  # all ranks together
        content: dict[str, Any] = {
            "format": results.FORMAT,
            "run": self.config.run.name,
            "protocol": protocol,
            "losses": colored.means("losses"),
            "rows": on_main(self.world, lambda: self._rows(colored)),
            "images": self._images(colored),
        }
        results.write_results(self.folder, choice.stem, content, gallery.kept, self.color, self.world)
        return content

    def baselines(self) -> Rows:
        """The gray copy and the mean color, and the originals' colorfulness; measured once."""
        if self._baselines is None:

            def make(batch: Batch) -> Made:
                originals = batch.rgb_u8_NHWC
                gray = gray_copy(make_pair(originals, self.color)[0], self.color)
                one_color = image_metrics.with_one_color(originals, *self.survey.mean_ab)
                return Made(
                    {"gray": gray, "mean_color": one_color}, {"original": image_metrics.colorfulness(originals)}
                )

            self._baselines = measure_rows(self.photographs, make, self.perceptual, "measuring gray and mean color")
        return self._baselines

    def protocol(self, choice: Choice) -> dict[str, Any]:
        """What is measured, and how."""
        wishes, data = self.wishes, self.config.data
        more = {"lpips": image_metrics.LPIPS_FORMULA} if wishes.lpips_weights else {}
        more |= {"fid": image_metrics.FID_FORMULA} if wishes.fid_weights else {}
        return {
            "data": self.photographs.name,
            "images": len(self.photographs),
            "fingerprint": self.survey.fingerprint,
            "size": data.size,
            "fit": data.fit,
            "color": self.color,
            "checkpoint": choice.path.name,
            "checkpoint_sha256": choice.sha256,
            "images_seen": choice.manifest.images_seen,
            **({} if choice.epoch is None else {"epoch": choice.epoch}),
            "weights": "raw" if choice.raw else "ema",
            "round_trip": image_metrics.ROUND_TRIPS[self.color],
            "mean_color_ab": list(self.survey.mean_ab),
            "formulas": image_metrics.FORMULAS | more,
            "versions": {"hpc_recolor": code_commit() or __version__}
            | {package: version(package) for package in ("torch", "torchmetrics", "torchvision")},
            "device": self.world.device.type,
            "lpips_weights": _stamp(wishes.lpips_weights),
            "fid_weights": _stamp(wishes.fid_weights),
        }

    def _networks(self, choice: Choice) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator of a checkpoint, in eval mode, on the device."""
        path, manifest, model = choice.path, choice.manifest, self.config.model
        generator, judge = build_generator(model, self.config.data.size), build_discriminator(model)
        load_weights(
            generator,
            checkpoints.trained_weights(path, manifest, "generator")
            if choice.raw
            else checkpoints.evaluation_weights(path, manifest),
            path,
        )
        load_weights(judge, checkpoints.trained_weights(path, manifest, "discriminator"), path)
        device = self.world.device
        return place(generator, model, device).eval(), place(judge, model, device).eval()

    def _rows(self, colored: Rows) -> dict[str, dict[str, float]]:
        """Means of all rows; on rank 0."""
        baselines = self.baselines()
        truth, rows = baselines.means("original"), {}
        for name in results.ROWS:
            source = colored if name in colored.values else baselines
            if name in source.values:
                means = source.means(name)
                differences = {f"{metric}_difference": means[metric] - truth[metric] for metric in truth}
                rows[name] = means | differences | source.fid(name)
        return rows

    def _images(self, colored: Rows) -> list[dict[str, Any]]:
        """What is told of each photograph."""
        others = self.baselines().values
        model, gray, one_color = colored.values["model"], others["gray"], others["mean_color"]
        columns: dict[str, list[float]] = {"ciede2000": model["ciede2000"]}
        if "model_own_l" in colored.values:
            columns["own_l_ciede2000"] = colored.values["model_own_l"]["ciede2000"]
        for metric in ("ciede2000", "ab_error"):
            columns |= {
                metric: model[metric],
                f"gray_{metric}": gray[metric],
                f"mean_color_{metric}": one_color[metric],
            }
        columns |= {metric: model[metric] for metric in ("colorfulness", "psnr", "ssim")}
        columns["original_colorfulness"] = others["original"]["colorfulness"]
        shown = to_show(dict(enumerate(model["ciede2000"])), self.wishes.pictures)
        return [
            {"number": number, "name": self.photographs.label(number)}
            | {key: column[number] for key, column in columns.items()}
            | {"picture": number in shown}
            for number in range(len(self.photographs))
        ]


def survey(photographs: Photographs) -> Survey:
    """Look at all photographs once; all ranks together."""

    def look(batch: Batch) -> tuple[bytes, list[list[float]]]:
        rgb_u8_NHWC: Tensor = batch.rgb_u8_NHWC
        return rgb_u8_NHWC.cpu().numpy().tobytes(), image_metrics.mean_ab(rgb_u8_NHWC).tolist()

    digest, means = hashlib.sha256(), []
    for pixels, some in in_order(photographs, look, "reading photographs"):
        digest.update(pixels)
        means += some
    a, b = (sum(column) / len(means) for column in zip(*means, strict=True))
    return Survey(digest.hexdigest(), (a, b))


def _stamp(weights: Path | None) -> dict[str, str] | None:
    return {"file": weights.name, "sha256": record_of(weights).sha256} if weights else None
