"""A run's checkpoints measured on photographs: exactly the same numbers on any number of ranks."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from hpc_recolor.config import ColorName, Config
from hpc_recolor.data.adoption import with_set_options
from hpc_recolor.data.batch import Batch
from hpc_recolor.data.shards import MANIFEST
from hpc_recolor.evaluation import image_metrics, result_writer
from hpc_recolor.evaluation.checkpoint_choice import Choice, ExportChoice, choose, choose_export
from hpc_recolor.evaluation.measurements import Gallery, MadeBatch, Measurements, in_order, measure_all, to_show
from hpc_recolor.evaluation.metric_registry import LOSSES, METHODS, METRICS, formulas, image_key
from hpc_recolor.evaluation.perceptual import Perceptual
from hpc_recolor.evaluation.photographs import Photographs, find_photographs
from hpc_recolor.evaluation.results import (
    FORMAT,
    Evaluation,
    FrontPoint,
    ImageScores,
    Protocol,
    WeightsFile,
    evaluation_file,
)
from hpc_recolor.evaluation.validation_scores import network_losses
from hpc_recolor.models.build import build_discriminator, build_generator, load_weights, place
from hpc_recolor.models.color_space import gray_copy, make_pair, predicted_ab, to_images
from hpc_recolor.models.vividness import FORMULA as VIVIDNESS
from hpc_recolor.run_folder.files import sha256_of
from hpc_recolor.run_folder.folder import open_run
from hpc_recolor.runtime.code_version import PACKAGE_VERSION, code_commit
from hpc_recolor.runtime.distributed import World, on_main, start, stop
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.terminal_tables import print_lines

# Pixels, by their fingerprint, and the color space that a gray copy went through: equal for runs on equal photographs.
BaselineKey = tuple[str, ColorName]


@dataclass(frozen=True)
class EvaluationOptions:
    """What the user may choose. epochs: of the checkpoints, empty for the newest; data: photographs other than the
    run's own; raw: weights of the last step, not their average; images_kept: how many of the first are stored;
    vividness: of the colors, each measured beside the model's own; out: folder for the results, by default the run's,
    or runs/NAME for an export."""

    epochs: Sequence[int] = ()
    data: Path | None = None
    raw: bool = False
    images_kept: int = 32
    lpips_weights: Path | None = None
    fid_weights: Path | None = None
    recognition: bool = False
    vividness: Sequence[float] = ()
    out: Path | None = None


@dataclass(frozen=True)
class Survey:
    """What is known of photographs before any is colored. fingerprint: SHA-256 of their pixels, uint8 NHWC in order;
    mean_ab: over all their pixels [Lab units]."""

    fingerprint: str
    mean_ab: tuple[float, float]


def evaluate(
    runs: Sequence[Path], options: EvaluationOptions, device: str = "auto", threads: int = 1, printed: bool = True
) -> list[Evaluation]:
    """Measure the checkpoints of runs, or exports, and write the results. All ranks call it.

    device: "auto", "cpu" or "cuda"; threads: CPU threads of each rank, which decide the last bits of convolutions;
    printed: the table of each, too. Returns what was measured, in the order of runs and their checkpoints.
    Raises UserError, with nothing written, if runs, checkpoints, photographs or weights do not fit.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda", "torch finds no GPU here", "use --device cpu, or check nvidia-smi")
    if options.out and len(runs) > 1:
        raise UserError(f"out={options.out}", f"one folder for {len(runs)} runs", "leave it out, or name one run")
    world = start(device, threads)
    try:
        found = on_main(world, lambda: [_chosen(run, options) for run in runs])
        perceptual = Perceptual.load(
            options.lpips_weights, options.fid_weights, world.device, recognition=options.recognition
        )
        photographs = [find_photographs(config, options.data, chosen[-1].photos, world) for _, config, chosen in found]
        baselines: dict[BaselineKey, Measurements] = {}
        evaluations = []
        for (results, config, chosen), of_run in zip(found, photographs, strict=True):
            evaluator = Evaluator(results, config, options, world, perceptual, of_run, baselines)
            evaluations += [evaluator.run_and_print(choice, printed) for choice in chosen]
        return evaluations
    finally:
        stop()


class Evaluator:
    """Measures checkpoints of a run on its photographs, and the baselines once for all of them.

    results: folder that the evaluations are written into; known: baselines of these and other photographs, added to.
    """

    def __init__(
        self,
        results: Path,
        config: Config,
        options: EvaluationOptions,
        world: World,
        perceptual: Perceptual,
        photographs: Photographs,
        known: dict[BaselineKey, Measurements],
    ) -> None:
        self.results, self.config, self.options, self.world = results, config, options, world
        self.perceptual, self.photographs, self.known = perceptual, photographs, known
        self.color = config.model.color
        self.survey = survey(photographs)
        fingerprint = self.survey.fingerprint
        self.name = on_main(world, lambda: result_writer.name_for(results, photographs.name, fingerprint))

    def run_and_print(self, choice: Choice | ExportChoice, printed: bool = True) -> Evaluation:
        """Measure a checkpoint that is not measured already; rank 0 prints its table, if `printed`."""
        was_there, evaluation = self.run_one(choice)
        if self.world.is_main and printed:
            with suppress(BrokenPipeError):
                print(f"{self.file(choice)} is there already" if was_there else self.file(choice))
                print_lines(result_writer.summary_table(evaluation.rows))
                if evaluation.front:
                    print_lines(result_writer.front_table(evaluation))
        return evaluation

    def run_one(self, choice: Choice | ExportChoice) -> tuple[bool, Evaluation]:
        """Whether a checkpoint was measured already, and its evaluation."""
        file, protocol, first = self.file(choice), self.protocol(choice), self.options.images_kept
        found = on_main(self.world, lambda: result_writer.find_finished(file, protocol, first))
        return found is not None, found or self.measure(choice, protocol)

    def file(self, choice: Choice | ExportChoice) -> Path:
        """The JSON of a checkpoint's evaluation."""
        return evaluation_file(self.results, self.name, choice.stem)

    def measure(self, choice: Choice | ExportChoice, protocol: Protocol) -> Evaluation:
        """Measure a checkpoint, write its evaluation, and return it."""
        generator, discriminator = self._networks(choice)
        gallery = Gallery(self.options.images_kept)

        @torch.no_grad()
        def make(batch: Batch) -> MadeBatch:
            condition, target = make_pair(batch.rgb_u8_NHWC, self.color)
            output = generator(condition)
            losses = network_losses(output, condition, target, discriminator, self.config.loss)
            images = {"model": to_images(condition, output, self.color)}
            if self.color == "rgb":
                images["model_own_l"] = image_metrics.with_lightness_of(batch.rgb_u8_NHWC, images["model"])
            values = {"losses": dict(zip(LOSSES, losses.unbind(1), strict=True))}
            if self.options.vividness:
                ab_N2HW = predicted_ab(condition, output, self.color)
                values |= image_metrics.front(batch.rgb_u8_NHWC, ab_N2HW, self.options.vividness)
            return MadeBatch(images, values)

        colored = measure_all(self.photographs, make, self.perceptual, f"measuring {choice.stem}", gallery)
        self.baselines()  # all ranks together
        evaluation = Evaluation(
            format=FORMAT,
            run=self.config.run.name,
            protocol=protocol,
            losses=colored.means("losses"),
            rows=on_main(self.world, lambda: self._rows(colored)),
            front=tuple(
                FrontPoint(vividness=vividness, **colored.means(image_metrics.front_key(vividness)))
                for vividness in self.options.vividness
            ),
            images=self._images(colored),
        )
        result_writer.write_results(self.file(choice), evaluation, gallery.kept, self.color, self.world)
        return evaluation

    def baselines(self) -> Measurements:
        """The gray copy and the mean color, and `original`: the colorfulness of the originals; measured once."""
        key = (self.survey.fingerprint, self.color)
        if key not in self.known:

            def make(batch: Batch) -> MadeBatch:
                originals = batch.rgb_u8_NHWC
                gray = gray_copy(make_pair(originals, self.color)[0], self.color)
                mean_color = image_metrics.with_one_color(originals, *self.survey.mean_ab)
                of_originals = {"original": image_metrics.colorfulness(originals)}
                return MadeBatch({"gray": gray, "mean_color": mean_color}, of_originals)

            self.known[key] = measure_all(self.photographs, make, self.perceptual, "measuring gray and mean color")
        return self.known[key]

    def protocol(self, choice: Choice | ExportChoice) -> Protocol:
        """What is measured, and how."""
        options, data = self.options, self.config.data
        given = {
            "lpips_weights": options.lpips_weights,
            "fid_weights": options.fid_weights,
            "recognition": options.recognition,
        }
        return Protocol(
            data=self.name,
            images=len(self.photographs),
            fingerprint=self.survey.fingerprint,
            size=data.size,
            fit=data.fit,
            color=self.color,
            checkpoint=choice.path.name,
            checkpoint_sha256=choice.sha256,
            images_seen=choice.images_seen,
            epoch=choice.epoch,
            weights="raw" if choice.raw else "ema",
            round_trip=image_metrics.ROUND_TRIPS[self.color],
            mean_color_ab=self.survey.mean_ab,
            formulas=formulas([option for option, value in given.items() if value])
            | ({"vividness": VIVIDNESS} if options.vividness else {}),
            versions={"hpc_recolor": code_commit() or PACKAGE_VERSION}
            | {package: version(package) for package in ("torch", "torchmetrics", "torchvision")},
            device=self.world.device.type,
            lpips_weights=_weights_file(options.lpips_weights),
            fid_weights=_weights_file(options.fid_weights),
            vividness=tuple(options.vividness),
        )

    def _networks(self, choice: Choice | ExportChoice) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator of a checkpoint, in eval mode, on the device; the latter untrained where there is
        no adversarial loss."""
        model, device = self.config.model, self.world.device
        generator, discriminator = build_generator(model, self.config.data.size), build_discriminator(model)
        load_weights(generator, choice.generator_weights(), choice.path)
        if self.config.loss.adversarial != "none":
            load_weights(discriminator, choice.discriminator_weights(), choice.path)
        return place(generator, model, device).eval(), place(discriminator, model, device).eval()

    def _rows(self, colored: Measurements) -> dict[str, dict[str, float]]:
        """Means of all methods, by method and metric; on rank 0."""
        baselines = self.baselines()
        originals = baselines.means("original")
        rows: dict[str, dict[str, float]] = {}
        for method in METHODS:
            source = baselines if method.baseline else colored
            if method.key in source.values:
                means = source.means(method.key)
                differences = {f"{metric}_difference": means[metric] - originals[metric] for metric in originals}
                rows[method.key] = means | differences | source.frechet_distances(method.key)
        return rows

    def _images(self, colored: Measurements) -> tuple[ImageScores, ...]:
        """The record of each photograph: the values that the registry lists as `per_image`."""
        values = colored.values | self.baselines().values
        columns = {
            image_key(metric.key, method): values[method][metric.key]
            for metric in METRICS
            for method in metric.per_image
            if metric.key in values.get(method, {})
        }
        shown = to_show(dict(enumerate(columns["ciede2000"])), self.options.images_kept)
        return tuple(
            ImageScores(
                number=number,
                name=self.photographs.label(number),
                picture=number in shown,
                **{key: column[number] for key, column in columns.items()},
            )
            for number in range(len(self.photographs))
        )


def _chosen(run: Path, options: EvaluationOptions) -> tuple[Path, Config, Sequence[Choice | ExportChoice]]:
    """Where results go, the config, and what is measured."""
    if run.is_file():
        choice = choose_export(run)
        return options.out or Path("runs", choice.stem), choice.exported.config, [choice]
    folder, stored = open_run(run)
    shards = stored.data.shards
    config = with_set_options(stored) if shards and (shards / MANIFEST).exists() else stored
    return options.out or folder.path, config, choose(folder, options.epochs, options.raw)


def survey(photographs: Photographs) -> Survey:
    """Read all photographs once; all ranks together."""

    def pixels_and_means(batch: Batch) -> tuple[bytes, list[list[float]]]:
        rgb_u8_NHWC: Tensor = batch.rgb_u8_NHWC
        return rgb_u8_NHWC.cpu().numpy().tobytes(), image_metrics.mean_ab(rgb_u8_NHWC).tolist()

    digest, means = hashlib.sha256(), []
    for pixels, means_of_batch in in_order(photographs, pixels_and_means, "reading photographs"):
        digest.update(pixels)
        means += means_of_batch
    a, b = (sum(column) / len(means) for column in zip(*means, strict=True))
    return Survey(digest.hexdigest(), (a, b))


def _weights_file(weights: Path | None) -> WeightsFile | None:
    return WeightsFile(file=weights.name, sha256=sha256_of(weights)) if weights else None
