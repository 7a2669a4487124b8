"""Checkpoints measured on photographs: the rows, the losses, which checkpoint, which images, and what is written."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab

from hpc_recolor.config_file import load_config
from hpc_recolor.evaluation.checkpoint_choice import choose
from hpc_recolor.evaluation.evaluation import EvaluationOptions
from hpc_recolor.evaluation.evaluation import evaluate as evaluate_runs
from hpc_recolor.evaluation.measurements import BEST_AND_WORST, Measurements, measure_all
from hpc_recolor.evaluation.metric_registry import LOSSES
from hpc_recolor.evaluation.perceptual import Perceptual
from hpc_recolor.evaluation.photographs import Photographs
from hpc_recolor.evaluation.result_writer import front_table, summary_table
from hpc_recolor.evaluation.results import chosen_vividness
from hpc_recolor.models.color_space import make_pair
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.terminal_tables import print_lines
from recolor_kernels import discriminator_loss, generator_loss
from tests.conftest import contents, paint_photo
from tests.support import tolerances
from tests.support.small_runs import add_checkpoint, evaluate, make_run, networks, read_json, without_color, write_front

COUNT = 11  # more than a batch


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs that no resize changes."""
    folder = tmp_path_factory.mktemp("squares")
    for number in range(COUNT):
        paint_photo(number, 32, 32).save(folder / f"{number:02d}.png")
    return folder


def pixels(photos: Path) -> "np.typing.NDArray[np.uint8]":
    return np.stack([np.asarray(Image.open(photo)) for photo in sorted(photos.iterdir())])


@pytest.fixture(scope="module", params=["rgb", "lab"])
def measured(request: pytest.FixtureRequest, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one measured checkpoint, after 3 epochs."""
    run = make_run(tmp_path_factory.mktemp("runs") / "mine", squares, request.param)
    add_checkpoint(run, 30, snapshot_epoch=3)
    evaluate(run, images_kept=2)
    return run


def test_the_front_leads_from_the_gray_copy_through_the_model_to_more_color(measured: Path, tmp_path: Path) -> None:
    run = shutil.copytree(measured, tmp_path / "run")
    ((again, content),) = evaluate(run, images_kept=2, vividness=(0, 1, 2))
    assert not again, "without a front it was another measurement"
    model = content.rows["model_own_l" if "model_own_l" in content.rows else "model"]
    gray, own, _ = content.front
    assert [point.vividness for point in content.front] == [0, 1, 2]
    assert own.ciede2000 == pytest.approx(model["ciede2000"])
    assert own.colorfulness == pytest.approx(model["colorfulness"])
    colorfulness = [point.colorfulness or 0.0 for point in content.front]
    assert colorfulness[0] < colorfulness[1] < colorfulness[2]
    if content.protocol.color == "lab":
        assert gray.ciede2000 == pytest.approx(content.rows["gray"]["ciede2000"])
    assert [line[0] for line in front_table(content)] == ["vividness", "0", "1", "2"]
    assert read_json(run, "held-out", "epoch-0003")["front"][2]["vividness"] == 2
    ((again, _),) = evaluate(run, images_kept=2, vividness=(0, 1, 2))
    assert again


@pytest.mark.parametrize(
    ("fronts", "expected"),
    [
        ({}, 1.0),
        ({"one": {1.0: 8.0, 1.5: 8.2, 2.0: 8.3}}, 1.5),
        ({"one": {1.0: 8.2, 1.5: 8.0, 2.0: 8.2, 2.5: 9.0}}, 2.0),
        ({"one": {1.0: 8.0, 2.0: 8.3}, "other": {1.0: 8.0, 2.0: 8.05}}, 2.0),
        ({"one": {1.0: 8.0, 2.0: 8.4}, "other": {1.0: 8.0, 2.0: 8.1}}, 1.0),
    ],
)
def test_the_most_vivid_setting_that_costs_little_is_chosen(
    tmp_path: Path, fronts: dict[str, dict[float, float]], expected: float
) -> None:
    for data, front in fronts.items():
        write_front(tmp_path, data, 20, front)
    write_front(tmp_path, "one", 10, {3.0: 1.0} if fronts else {})  # of an earlier checkpoint
    assert chosen_vividness(tmp_path) == expected


def test_rows_are_the_means_of_the_values_of_each_photograph(measured: Path) -> None:
    content = read_json(measured, "held-out", "epoch-0003")
    rows, images = content["rows"], content["images"]
    is_rgb = content["protocol"]["color"] == "rgb"
    assert list(rows) == ["model", *(["model_own_l"] if is_rgb else []), "gray", "mean_color"]
    assert [image["name"] for image in images] == [f"{number:02d}.png" for number in range(COUNT)]

    def mean(key: str) -> float:
        return float(np.mean([image[key] for image in images]))

    for row, prefix in (("model", ""), ("gray", "gray_"), ("mean_color", "mean_color_")):
        for metric in ("ciede2000", "ab_error"):
            assert rows[row][metric] == pytest.approx(mean(prefix + metric))
    for metric in ("psnr", "ssim", "colorfulness"):
        assert rows["model"][metric] == pytest.approx(mean(metric))
    difference = mean("colorfulness") - mean("original_colorfulness")
    assert rows["model"]["colorfulness_difference"] == pytest.approx(difference)
    if is_rgb:
        assert rows["model_own_l"]["ciede2000"] == pytest.approx(mean("own_l_ciede2000"))


def test_the_mean_color_is_that_of_all_pixels_on_each_photographs_lightness(measured: Path, squares: Path) -> None:
    content = read_json(measured, "held-out", "epoch-0003")
    labs = rgb2lab(pixels(squares))
    mean_ab = labs[..., 1:].mean((0, 1, 2))
    assert content["protocol"]["mean_color_ab"] == pytest.approx(mean_ab.tolist(), abs=tolerances.INDEPENDENT)
    one_color = labs.copy()
    one_color[..., 1:] = mean_ab
    colored = np.round(lab2rgb(one_color) * 255).astype(np.uint8)
    expected = deltaE_ciede2000(rgb2lab(colored), labs).mean()
    assert content["rows"]["mean_color"]["ciede2000"] == pytest.approx(expected, abs=tolerances.ROUNDED_MEAN)


def test_losses_are_those_of_training_with_both_networks_in_eval_mode(measured: Path, squares: Path) -> None:
    config = load_config(measured / "config.yaml", {})
    both = networks(config)
    generator, discriminator = both["generator"].eval(), both["discriminator"].eval()
    condition, target = make_pair(torch.from_numpy(pixels(squares)), config.model.color)
    with torch.no_grad():
        output = generator(condition)
        fake, real = discriminator(condition, output), discriminator(condition, target)
    of_generator = generator_loss(output, target, fake, 100.0, "bce")
    expected = (of_generator.l1, of_generator.adversarial, discriminator_loss(real, fake, "bce"))
    found = read_json(measured, "held-out", "epoch-0003")["losses"]
    for name, value in zip(LOSSES, expected, strict=True):
        assert found[name] == pytest.approx(float(value), rel=tolerances.LOSS_RELATIVE * 10), name


def test_images_are_those_of_the_photographs_by_number(measured: Path, squares: Path) -> None:
    folder = measured / "evaluations" / "held-out"
    assert set(contents(folder)) >= {"epoch-0003/000000.png", "original/000010.png", "gray/000010.png"}
    for number, original in enumerate(pixels(squares)):
        with Image.open(folder / "original" / f"{number:06d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), original)
        with Image.open(folder / "epoch-0003" / f"{number:06d}.png") as image:
            difference = deltaE_ciede2000(rgb2lab(np.asarray(image)), rgb2lab(original)).mean()
        written = read_json(measured, "held-out", "epoch-0003")["images"][number]["ciede2000"]
        assert written == pytest.approx(difference, abs=tolerances.INDEPENDENT)


def test_a_model_without_color_scores_exactly_as_the_gray_copy(squares: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "gray", squares)
    add_checkpoint(run, 30, change=without_color)
    (_, content), *_ = evaluate(run)
    assert content.rows["model"] == content.rows["gray"]
    assert (content.rows["model"]["ciede2000"] or 0) > 5


def test_a_model_that_makes_the_originals_has_no_error(tmp_path: Path) -> None:
    """Of gray photographs, a model without color does."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        paint_photo(number, 32, 32).convert("L").save(tmp_path / "photos" / f"{number}.png")
    run = make_run(tmp_path / "perfect", tmp_path / "photos")
    add_checkpoint(run, 30, change=without_color)
    evaluate(run)
    content = read_json(run, "held-out", "epoch-0003")
    model = content["rows"]["model"]
    assert model["mae"] == model["ciede2000"] == model["ab_error"] == 0
    assert model["ssim"] == pytest.approx(1)
    assert [model["psnr"], content["images"][0]["psnr"]] == pytest.approx([58.92, 58.92], abs=0.01)
    assert "58.9 dB" in content["protocol"]["formulas"]["psnr"]


# --- Which checkpoint


def test_the_average_is_measured_unless_raw_weights_are_asked_for_or_all_there_is(
    squares: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", squares)
    add_checkpoint(run, 10)
    add_checkpoint(run, 20, ema=False)
    found = [evaluate(run, epochs=(1,)), evaluate(run, epochs=(1,), raw=True), evaluate(run, epochs=(2,))]
    weights = [one[0][1].protocol.weights for one in found]
    assert weights == ["ema", "raw", "raw"]
    names = {path.name for path in (run / "evaluations" / "held-out").glob("*.json")}
    assert names == {"epoch-0001.json", "epoch-0001-raw.json", "epoch-0002-raw.json"}
    average, raw, same_as_average = (one[0][1].rows["model"] for one in found)
    assert average == same_as_average != raw


def test_a_checkpoint_is_found_by_its_milestone_or_by_the_images_that_it_has_seen(
    squares: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", squares)
    for images, milestone in ((19, None), (21, 2), (27, None), (32, None), (44, None)):
        add_checkpoint(run, images, milestone)

    def found(*epochs: int) -> list[tuple[int, float | None, str]]:
        chosen = choose(RunFolder(run), epochs, raw=False)
        return [(choice.manifest.images_seen, choice.epoch, choice.stem) for choice in chosen]

    assert found() == [(44, 4.4, "epoch-0004")]
    assert found(2, 3, 2) == [(21, 2.0, "epoch-0002"), (32, 3.2, "epoch-0003")]
    with pytest.raises(UserError, match=r"checkpoint=7: .* has none of that epoch, only of 1\.9, 2, 2\.7, 3\.2, 4\.4;"):
        found(2, 7)
    (run / "metrics.jsonl").unlink()
    assert found() == [(44, None, "images-000000000044")]
    assert found(2) == [(21, 2.0, "epoch-0002")]
    with pytest.raises(UserError, match=r"checkpoint=3: .* only of 2;"):
        found(3)


def test_a_damaged_checkpoint_is_named_and_never_measured(squares: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", squares)
    add_checkpoint(run, 10)
    path = add_checkpoint(run, 20)
    (path / checkpoints.shard_file(0, 1)).write_bytes(b"")
    assert evaluate(run)[0][1].protocol.images_seen == 10
    with pytest.raises(UserError, match="images-000000000020: damaged"):
        evaluate(run, epochs=(2,))


# --- What is written


def test_the_first_images_and_the_best_and_worst_are_kept(tmp_path: Path) -> None:
    count = 2 * BEST_AND_WORST + 14
    (tmp_path / "photos").mkdir()
    for number in range(count):
        paint_photo(number, 32, 32).save(tmp_path / "photos" / f"{number:02d}.png")
    run = make_run(tmp_path / "run", tmp_path / "photos")
    add_checkpoint(run, 10)
    ((_, content),) = evaluate(run, images_kept=5)
    errors = [image.value("ciede2000") for image in content.images]
    ranked = sorted(range(count), key=lambda number: errors[number] or 0.0)
    expected = {*range(5), *ranked[:BEST_AND_WORST], *ranked[-BEST_AND_WORST:]}
    assert expected < set(range(count))
    assert {image.number for image in content.images if image.picture} == expected
    for kind in ("epoch-0001", "original", "gray"):
        files = {int(file.stem) for file in (run / "evaluations" / "held-out" / kind).iterdir()}
        assert files == expected


def test_what_is_measured_already_is_not_measured_again(squares: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", squares)
    add_checkpoint(run, 10)
    ((was_there, first),) = evaluate(run)
    assert not was_there
    file = run / "evaluations" / "held-out" / "epoch-0001.json"
    before = file.stat().st_mtime_ns
    ((was_there, second),) = evaluate(run)
    assert was_there and file.stat().st_mtime_ns == before
    assert second == first


@pytest.mark.parametrize("lost", ["numbers", "image", "checkpoint", "format"])
def test_what_is_not_whole_or_of_another_checkpoint_is_measured_again(squares: Path, tmp_path: Path, lost: str) -> None:
    run = make_run(tmp_path / "run", squares)
    checkpoint = add_checkpoint(run, 10)
    evaluate(run)
    folder = run / "evaluations" / "held-out"
    expected = contents(folder)
    numbers = folder / "epoch-0001.json"
    if lost == "numbers":
        numbers.unlink()
    elif lost == "image":
        (folder / "epoch-0001" / "000003.png").unlink()
    elif lost == "format":
        numbers.write_text(numbers.read_text().replace('"format": 1', '"format": 0'))
    else:
        shutil.rmtree(checkpoint)
        add_checkpoint(run, 10, change=without_color)
    ((was_there, _),) = evaluate(run)
    assert not was_there
    assert (contents(folder) == expected) == (lost != "checkpoint")


def test_a_kill_between_images_and_numbers_leaves_no_evaluation(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", squares)
    add_checkpoint(run, 10)
    evaluate(run)
    (run / "evaluations" / "held-out" / "epoch-0001" / "000003.png").unlink()  # so it is measured again
    written: list[Path] = []

    def interrupted(file: Path, content: bytes) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(file)
        write_atomically(file, content)

    monkeypatch.setattr("hpc_recolor.evaluation.result_writer.write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run)
    assert list((run / "evaluations").rglob("*.json")) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_results_of_other_photographs_are_not_mixed_in(squares: Path, tmp_path: Path, damaged: bool) -> None:
    run = make_run(tmp_path / "run", squares)
    add_checkpoint(run, 10)
    others = Path(shutil.copytree(squares, tmp_path / "others"))
    evaluate(run, data=others)
    if damaged:
        (file,) = run.glob("evaluations/*/*.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"rows": "lost"}))
    paint_photo(99, 32, 32).save(others / "00.png")
    before = contents(run)
    evaluate(run, data=others)
    first, second = sorted(path.name for path in (run / "evaluations").iterdir())
    assert first == "others" and re.fullmatch(r"others-[0-9a-f]{8}", second)
    assert before.items() <= contents(run).items()


def test_folders_of_one_name_and_names_outside_ascii_have_results_of_their_own(squares: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", squares)
    add_checkpoint(run, 10)
    for number, place in enumerate(("a/test", "b/test", "写真", "Bücher")):
        photographs = Path(shutil.copytree(squares, tmp_path / place))
        paint_photo(90 + number, 32, 32).save(photographs / "00.png")
        evaluate(run, data=photographs)
    names = sorted(re.sub("-[0-9a-f]{8}$", "-", path.name) for path in (run / "evaluations").iterdir())
    assert names == ["Bücher", "test", "test-", "写真"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device=cuda: torch finds no GPU"):
        evaluate_runs([tmp_path], EvaluationOptions(), device="cuda")


def test_the_gray_copy_of_equal_photographs_is_measured_once_for_all_runs(
    tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path / name, squares, color) for name, color in (("a", "lab"), ("b", "lab"), ("c", "rgb"))]
    for run in runs:
        add_checkpoint(run, 10)
    ((_, alone),) = evaluate(shutil.copytree(runs[1], tmp_path / "alone"))
    labels = []

    def recording(photographs: Photographs, make: Any, perceptual: Perceptual, label: str, *rest: Any) -> Measurements:
        labels.append(label)
        return measure_all(photographs, make, perceptual, label, *rest)

    monkeypatch.setattr("hpc_recolor.evaluation.evaluation.measure_all", recording)
    _, together, _ = evaluate_runs(runs, EvaluationOptions(), "cpu", printed=False)
    model, gray = "measuring epoch-0001", "measuring gray and mean color"
    assert labels == [model, gray, model, model, gray], "a gray copy by way of Lab differs from one of RGB"
    assert (together.rows, together.images) == (alone.rows, alone.images)


def test_one_folder_for_the_results_of_several_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one folder for 2 runs"):
        evaluate_runs([tmp_path, tmp_path], EvaluationOptions(out=tmp_path / "results"), "cpu")
    assert not list(tmp_path.iterdir())


def test_the_table_is_aligned_and_has_a_dash_where_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    numbers: dict[str, Any] = {"ciede2000": 8.123, "ab_error": 7.0, "ssim": 0.91, "colorfulness": 20.0}
    print_lines(summary_table({"model": numbers | {"psnr": 21.0}, "gray": numbers | {"psnr": None}}))
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["model", "8.12", "7.00", "21.00", "0.9100", "20.0"]
    assert lines[2].split() == ["gray", "copy", "8.12", "7.00", "-", "0.9100", "20.0"]
