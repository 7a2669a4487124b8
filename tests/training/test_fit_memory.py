"""A batch that does not fit into memory is computed in parts, on which all ranks agree before the first image."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_recolor.config import Config, DeepSpeedConfig
from hpc_recolor.config_file import load_config
from hpc_recolor.data.sets import collect
from hpc_recolor.run_folder.folder import RunFolder, claim, record_accumulate
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import RankError, UserError
from hpc_recolor.training import device_step, fit_memory, preflight
from hpc_recolor.training.engine import deepspeed_engine
from hpc_recolor.training.engine.deepspeed_engine import build_engines
from hpc_recolor.training.step import gan_step
from tests.conftest import contents
from tests.support.training_runs import make, run_config, train
from tests.support.workers import fitted_runs
from tests.training.conftest import Worker


class Memory:
    """A device on which a step of more than `images` at a time raises an error."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.tried: list[int] = []
        self.error: RuntimeError = torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less."
        )

    def gan_step(self, *arguments: Any) -> Any:
        together = len(arguments[1]) // arguments[4]
        self.tried.append(together)
        losses = gan_step(*arguments)
        if together > self.images:
            raise self.error
        return losses


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Of four images; tried as on a GPU."""
    planted = Memory(4)
    monkeypatch.setattr(device_step, "gan_step", planted.gan_step)
    monkeypatch.setattr(fit_memory, "_raises_out_of_memory", lambda device: True)
    return planted


def fitted(config: Config, world: World) -> Config:
    run = RunFolder(config.run.folder / config.run.name)
    return fit_memory.fit_memory(config, world, run, collect(config, world), lambda *_: None)


def batch_of(size: int, photos: Path, folder: Path, **train: Any) -> Config:
    return run_config(photos, folder, train={"batch_size": size, "device": "cpu", "threads": 1, "epochs": 3} | train)


@pytest.mark.parametrize("stage", [0, 2])
def test_two_ranks_agree_on_what_fits_on_both_and_keep_it_when_the_run_is_resumed(
    stage: int, on_ranks: Worker, photos: Path, tmp_path: Path
) -> None:
    for rank in on_ranks(2, fitted_runs, str(photos), str(tmp_path), stage):
        assert rank == {"tried": [1, 2, 4], "equal": [True, True]}
    config = load_config(tmp_path / "fitted" / "config.yaml", {})
    assert config.train.accumulate == 4


def test_the_smallest_number_of_parts_that_fits_is_found_and_told(
    memory: Memory, photos: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fitted(batch_of(12, photos, tmp_path), world).train.accumulate == 3
    assert memory.tried == [12, 6, 4]
    assert "train.batch_size=12 does not fit into the memory of rank 0 on host" in (told := capsys.readouterr().out)
    assert "train.accumulate=3" in told and "BatchNorm sees 4 images of a rank at a time, and not 12" in told


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_libraries_that_find_no_memory_count_as_torch_does(
    message: str, memory: Memory, photos: Path, tmp_path: Path, world: World
) -> None:
    memory.error = RuntimeError(message)
    config = batch_of(12, photos, tmp_path)
    assert fitted(config, world).train.accumulate == 3
    with (
        pytest.raises(RankError, match=re.escape(message.split("\n")[0])) as caught,
        fit_memory.out_of_memory_as_rank_error(config, world, RunFolder(tmp_path / "run"), lambda: "while training"),
    ):
        raise memory.error
    assert "\n" not in str(caught.value)


def test_other_errors_of_a_step_end_the_trial(memory: Memory, photos: Path, tmp_path: Path, world: World) -> None:
    memory.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        fitted(batch_of(12, photos, tmp_path), world)


def test_a_validation_is_tried_as_well(
    memory: Memory, photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def refuse(*arguments: Any) -> None:
        measured.append(len(arguments[2]))
        raise memory.error

    monkeypatch.setattr(fit_memory, "score", refuse)
    with pytest.raises(UserError, match=r"not even one image at a time fits .* with a validation between steps"):
        fitted(batch_of(2, photos, tmp_path), world)
    assert measured == [3, 3]


class Gpu:
    """torch.cuda of a GPU with 1000 MB, of which torch has reserved 100 MB and others have 300 MB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fraction = 1.0
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600_000_000, 1_000_000_000))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100_000_000)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: self.fraction)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self._set)

    def _set(self, fraction: float, device: torch.device) -> None:
        self.fraction = fraction


def test_within_a_trial_torch_may_take_what_is_free_but_for_what_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, device = Gpu(monkeypatch), torch.device("cuda")
    for left_free, fraction in ((200_000_000, 0.5), (900_000_000, 0.0)):
        with fit_memory._less_memory(device, left_free):
            assert gpu.fraction == pytest.approx(fraction)
        assert gpu.fraction == 1.0


@pytest.mark.parametrize("cache", ["none", "device"])
def test_images_and_buffers_that_stay_on_a_gpu_are_left_free(
    cache: str, photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three held-out photographs, two are one rank's share, and all are drawn."""
    Gpu(monkeypatch)
    data = {"photos": str(photos), "size": 32, "held_out_count": 3, "cache": cache}
    config, partitioned = (run_config(photos, tmp_path, data=data, deepspeed={"zero_stage": stage}) for stage in (0, 2))
    found, engines = collect(config, world), build_engines(config, world)
    images = 2 + 3 + (len(found.train) if cache == "device" else 0)
    expected = 30_000_000 + images * 32 * 32 * 3
    numel = sum(parameter.numel() for engine in engines for parameter in engine.module.parameters())
    gpus = World(0, 2, 0, torch.device("cuda"))
    assert fit_memory._bytes_beside(config, gpus, found, engines) == expected
    assert fit_memory._bytes_beside(partitioned, gpus, found, engines) == expected + 4 * numel


def test_a_trial_compiles_the_parts_that_the_run_does_and_forgets_them(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks: list[int] = []
    forgotten: list[int] = []

    def noted_parts(network: torch.nn.Module, size: int) -> list[torch.nn.Module]:
        ranks.append(size)
        return []

    monkeypatch.setattr(deepspeed_engine, "compiled_parts", noted_parts)
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(len(ranks)))
    config = batch_of(8, photos, tmp_path, compile=True)
    assert fit_memory._fits(config, World(1, 2, 1, world.device), collect(config, world))
    assert (ranks, forgotten) == ([2, 2], [2])


def test_a_trial_changes_no_random_state_and_leaves_nothing(
    memory: Memory, photos: Path, tmp_path: Path, world: World
) -> None:
    before = torch.get_rng_state()
    fitted(batch_of(12, photos, tmp_path), world)
    assert torch.equal(torch.get_rng_state(), before)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("model", [{"norm": "sync_batch"}, {"norm": "instance"}])
def test_a_step_that_fits_changes_nothing(
    model: dict[str, Any], memory: Memory, photos: Path, tmp_path: Path, world: World
) -> None:
    config = run_config(photos, tmp_path, model={"width": 4} | model, loss={"adversarial": "none"})
    assert fitted(config, world) is config
    assert memory.tried == [4]


def test_a_run_that_was_submitted_records_it_before_its_first_image(
    memory: Memory, photos: Path, tmp_path: Path, world: World
) -> None:
    config = batch_of(12, photos, tmp_path)
    run = RunFolder(tmp_path / config.run.name)
    claim(run, config)
    found = fitted(config, world)
    assert load_config(run.config, {}).train.accumulate == 3
    train(found, world)
    assert preflight.check(config, 1)[0].train.accumulate == 3
    assert fitted(found, world) is found
    assert memory.tried.count(12) == 1


def test_a_run_goes_on_with_ranks_whose_images_the_recorded_number_divides(photos: Path, tmp_path: Path) -> None:
    config = batch_of(12, photos, tmp_path)
    run = RunFolder(tmp_path / config.run.name)
    claim(run, config)
    record_accumulate(run, 3)
    found, _ = preflight.check(config, 4)
    assert found.train.accumulate == 3
    with pytest.raises(UserError, match=r"accumulate=3: does not divide the 2 images of a rank; use fewer ranks"):
        preflight.check(config, 6)
    advice = fit_memory._needs_less(found, has_checkpoint=True)
    assert advice.startswith("resume it on more ranks (each with a multiple of 3 images, train.accumulate)")


def test_without_memory_for_one_image_a_run_is_refused(
    memory: Memory, photos: Path, tmp_path: Path, world: World
) -> None:
    memory.images = 0
    with pytest.raises(
        UserError, match=r"train\.batch_size=4: not even one image at a time fits into the memory of rank 0"
    ):
        fitted(batch_of(4, photos, tmp_path), world)
    assert contents(tmp_path) == {}


def test_a_run_whose_ranks_share_networks_is_not_refused_for_what_one_alone_has_no_memory_for(
    memory: Memory, photos: Path, tmp_path: Path, world: World
) -> None:
    memory.images = 0
    config = batch_of(4, photos, tmp_path)
    sharing = config.model_copy(update={"deepspeed": DeepSpeedConfig(zero_stage=1)})
    assert fitted(sharing, world) == sharing


@pytest.mark.parametrize("is_gpu", [True, False])
def test_nothing_is_tried_on_cpus_and_where_that_is_off(
    is_gpu: bool, memory: Memory, photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_memory, "_raises_out_of_memory", lambda device: is_gpu)
    config = batch_of(12, photos, tmp_path, fit_memory=not is_gpu)
    assert fitted(config, world) is config
    assert memory.tried == []


def test_a_step_that_does_not_fit_later_names_what_needs_less(
    memory: Memory, photos: Path, tmp_path: Path, world: World
) -> None:
    def fail(images: int, epochs: int) -> RankError:
        memory.images = images
        trainer = make(batch_of(12, photos, tmp_path, fit_memory=False, epochs=epochs), world)
        place = fit_memory.out_of_memory_as_rank_error(
            trainer.config, world, trainer.run, lambda: "while training, step 0"
        )
        with pytest.raises(RankError) as caught, place:
            trainer.run_loop()
        return caught.value

    error = fail(images=4, epochs=1)
    assert error.subject == "train.batch_size=12"
    assert error.problem.startswith("rank 0 on host ")
    assert error.problem.endswith(
        " ran out of memory while training, step 0 (CUDA out of memory. Tried to allocate 2.00 GiB)"
    )
    assert error.fix.startswith("use train.fit_memory=true, a larger train.accumulate")
    memory.images = 12
    train(batch_of(12, photos, tmp_path, epochs=1), world)
    assert fail(images=4, epochs=2).fix.startswith("resume it on more ranks, with deepspeed.zero_stage=1")
