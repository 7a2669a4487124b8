"""The whole step: nothing of it is read by the host, nothing moves in memory, and what is bad changes nothing."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.data.batches import picked, stacked
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.agreement import Flags
from hpc_recolor.training.averaging import MovingAverage
from hpc_recolor.training.device_step import DeviceStep
from hpc_recolor.training.engine.engine import Engine, Engines
from hpc_recolor.training.engine.engine_state import MOMENTS, owned
from hpc_recolor.training.schedule import Phase
from hpc_recolor.training.step_runner import StepGraphs, is_capturable
from hpc_recolor.training.trainer import Trainer
from tests.support import tolerances, workers
from tests.support.small_runs import ALONE
from tests.support.training_runs import differences, make, run_config, state
from tests.support.workers import small_config
from tests.training.conftest import Worker

META = torch.device("meta")
TWO_ON_META = World(rank=0, size=2, local_rank=0, device=META)


def bare_step(config: Config, world: World) -> DeviceStep:
    """A step on networks that DeepSpeed has not initialized, on any device."""

    def engine(network: nn.Module) -> Engine:
        adam = torch.optim.Adam(network.to(world.device).parameters(), lr=config.train.lr, betas=config.train.betas)
        adam.param_groups[0]["fused"] = True  # torch builds no fused Adam without data, but runs it
        return Engine(network, adam, config, world)

    generator = engine(build_generator(config.model, config.data.size))
    engines = Engines(generator, engine(build_discriminator(config.model)))
    average = MovingAverage(owned(generator, world), half_life_images=1000)
    return DeviceStep(config, world, engines, average, torch.zeros(4, device=world.device))


@pytest.fixture(autouse=True, scope="module")
def adam_without_data() -> Iterator[None]:
    """Fused optimizers change their arguments and return nothing; torch knows it only if learning rates are numbers."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in ("_fused_adam_", "_fused_sgd_"):
            library.impl(f"{name}.tensor_lr", lambda *_, **__: None, "Meta")
        yield


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Tensors that all ranks reduce; the call itself does nothing, as there are no others."""
    seen: list[Tensor] = []

    class Done:
        def wait(self) -> None:
            pass

    def note(tensor: Tensor, *_: Any, async_op: bool = False) -> Done | None:
        seen.append(tensor)
        return Done() if async_op else None

    monkeypatch.setattr(dist, "all_reduce", note)
    return seen


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"color": "rgb", "width": 8, "dropout": 0.5}},
        {"train": {"batch_size": 8, "accumulate": 2}},
        {"train": {"batch_size": 8, "precision": "fp16", "clip_norm": 1.0}},
        {"train": {"batch_size": 8, "channels_last": True}, "loss": {"reconstruction": "huber"}},
        workers.BINS,
    ],
)
def test_the_host_reads_nothing_of_a_step(
    phase: Phase, sections: dict[str, Any], reduced: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without data, where a read raises; a tensor made from numbers of the host would wait for its copy."""
    step = bare_step(small_config(**sections), TWO_ON_META)
    batch = torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device=META)
    step.body(batch, phase)
    assert reduced[-1] is step.verdict
    assert all(tensor.is_meta for tensor in reduced)
    picks = torch.zeros(4, 3, dtype=torch.int64, device=META)
    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refuse)
    step.body(batch, phase)
    step.body(torch.zeros(9, 32, 32, 3, dtype=torch.uint8, device=META), phase, picks)


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("a tensor is made on the host")


def test_a_read_would_be_noticed(reduced: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    step = bare_step(small_config(), TWO_ON_META)
    settle = step._settle
    monkeypatch.setattr(step, "_settle", lambda losses: settle(losses) if losses.isfinite().all() else None)
    with pytest.raises(RuntimeError, match="meta"):
        step.body(torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device=META), Phase.BOTH)


def outliving(trainer: Trainer) -> Iterator[Tensor]:
    """Every tensor that a step hands to the next."""
    step = trainer.device_step
    yield from (step.flags, step.average_share, step.verdict, step.losses_sum)
    if trainer.state.average:
        yield from trainer.state.average.averages
    for engine in trainer.state.engines:
        yield from (engine.skipped, engine.gate, engine.loss_scale, engine.good_steps)
        yield from (group["lr"] for group in engine.adam.param_groups)
        yield from engine.module.buffers()
        for parameter in engine.module.parameters():
            yield parameter
            yield from (engine.adam.state[parameter][key] for key in (*MOMENTS, "step"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_tensor_keeps_its_address(photos: Path, tmp_path: Path, world: World, precision: str) -> None:
    section = {"batch_size": 4, "precision": precision, "device": "cpu", "threads": 1}
    trainer = make(run_config(photos, tmp_path, train=section), world)
    before = [tensor.data_ptr() for tensor in outliving(trainer)]
    for batch in islice(trainer._batches(), 3):
        trainer.run_step(batch)
        assert [tensor.data_ptr() for tensor in outliving(trainer)] == before


def test_what_is_logged_measured_or_saved_has_all_verdicts(photos: Path, tmp_path: Path, world: World) -> None:
    """Whatever comes first, it finds no verdict that is still on its way."""
    config = run_config(photos, tmp_path, tracking={"log_every_steps": 4, "samples_every_images": 20})
    trainer = make(config, world)
    lags: list[int] = []

    def noting(action: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            lags.append(len(trainer.verdicts))
            return action(*arguments, **named)

        return noted

    for part, name in (
        (trainer.tracker, "log_step"),
        (trainer.validation, "measure"),
        (trainer.checkpointer.writer, "start"),
    ):
        setattr(part, name, noting(getattr(part, name)))
    trainer.run_loop()
    assert lags == [0] * 6  # steps 4, 8 and 9; steps 5 and 9; step 9
    assert trainer.state.counters.unlogged_steps == 0


def test_a_nan_on_one_of_two_ranks_changes_nothing_on_either(on_ranks: Worker) -> None:
    """Of weights, moments, statistics, average, loss scale and losses, in any precision; the next step learns again."""
    for rank in on_ranks(2, workers.bad_device_steps):
        assert rank == {precision: {"changed": [], "resumes": True} for precision in ("fp32", "bf16", "fp16")}


def test_a_signal_to_one_of_three_ranks_stops_all_two_steps_later_and_they_go_on_to_the_bit(
    photos: Path, tmp_path: Path, on_ranks: Worker
) -> None:
    for rank in on_ranks(3, workers.late_stop, str(photos), str(tmp_path)):
        assert rank == {"stopped_after_steps": 3 + 2, "different": []}


def test_a_step_that_is_skipped_whatever_it_computes_changes_nothing(
    photos: Path, tmp_path: Path, world: World
) -> None:
    section = {"batch_size": 4, "precision": "fp16", "device": "cpu", "threads": 1}
    trainer = make(run_config(photos, tmp_path, train=section), world)
    first, second = islice(trainer._batches(), 2)
    trainer.run_step(first)
    before = everything(trainer)
    for phase in Phase:
        with trainer.device_step.without_effect():
            trainer.device_step.body(second.rgb_u8_NHWC, phase)
        assert differences(before, everything(trainer)) == []
    trainer.run_step(second)
    assert differences(before, everything(trainer)) != []


def test_the_first_step_says_which_type_it_computed_in(
    photos: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for precision, name in (("fp32", "float32"), ("bf16", "bfloat16")):
        section = {"batch_size": 4, "precision": precision, "device": "cpu", "threads": 1}
        trainer = make(run_config(photos, tmp_path / precision, train=section), world)
        for batch in islice(trainer._batches(), 2):
            trainer.run_step(batch)
        assert capsys.readouterr().out == f"computing in {name}\n"


@pytest.mark.parametrize("color", ["rgb", "lab"])
def test_a_batch_that_the_step_gathers_is_trained_on_as_one_that_was(color: str) -> None:
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (9, 32, 32, 3), np.uint8))
    drawn, flips = draw.integers(0, 9, 4), draw.integers(0, 2, (4, 2)).astype(bool)
    ends = []
    for inputs in ((stacked(images, drawn, flips), None), picked(images, True, drawn, flips, torch.clone)):
        torch.manual_seed(0)
        step = bare_step(small_config(model={"color": color}), ALONE)
        step.set_inputs(Flags(), 0.1)
        step.body(inputs[0], Phase.BOTH, inputs[1])
        ends.append([*step.losses_sum, *step.engines.generator.module.state_dict().values()])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize(
    ("captured", "sections"),
    [
        (True, {}),
        (True, {"train": {"compile": True, "precision": "bf16"}}),
        (False, {"train": {"graph": "off"}}),
        (False, {"train": {"accumulate": 2}}),
        (False, {"deepspeed": {"zero_stage": 1}}),
        (False, {"model": {"norm": "sync_batch"}}),
    ],
)
def test_steps_are_captured_on_gpus_where_the_host_is_not_needed(captured: bool, sections: dict[str, Any]) -> None:
    config = load_config(None, sections)
    assert is_capturable(config, World(0, 1, 0, torch.device("cuda", 0))) == captured
    assert not is_capturable(config, World(0, 1, 0, torch.device("cpu")))


def test_torch_lets_a_step_be_captured(reduced: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose optimizers refuse it unless they were told; on a device without data, in a stream that says it captures."""
    step = bare_step(small_config(), TWO_ON_META)
    capturing = SimpleNamespace(is_capturing=lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: META)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: capturing)
    step.body(torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device=META), Phase.BOTH)


@pytest.mark.filterwarnings("default")  # torch's compiler inspects deprecated attributes
@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="torch cannot trace a backward pass"
)
@pytest.mark.parametrize("phase", [Phase.GENERATOR, Phase.DISCRIMINATOR])
def test_what_a_network_does_in_a_step_is_one_graph(phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a branch on data, from colors to counters, in the phases of one network; in that of both, the freezing of
    the discriminator is not traced. Nor is Adam, in which torch itself ends a graph."""
    monkeypatch.setattr(Engine, "_update_weights", lambda engine: None)
    model = {"generator": "autoencoder", "width": 4, "dropout": 0.0}
    torch.manual_seed(0)
    step = bare_step(small_config(model=model), ALONE)
    step.set_inputs(Flags(), 0.1)
    batch = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.compile(lambda images: step.body(images, phase), fullgraph=True, backend="aot_eager")(batch)
    compiled = step.losses_sum.clone()
    step.losses_sum.zero_()
    step.body(batch, phase)
    torch.testing.assert_close(compiled, step.losses_sum)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("gathers", [False, True])
def test_a_gpu_is_not_waited_for_and_a_graph_computes_what_the_operations_do(gathers: bool) -> None:
    """Neither a step nor its replay may wait; both from the same start end near each other."""
    gpu = World(0, 1, 0, torch.device("cuda", 0))
    config = small_config(train={"batch_size": 8, "device": "cuda"})
    batch = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, device=gpu.device)
    picks = torch.randint(0, 2, (8, 3), device=gpu.device) if gathers else None
    ends = []
    for captured in (False, True):
        torch.manual_seed(0)
        step = bare_step(config, gpu)
        run = StepGraphs(step).run if captured else step.body
        step.set_inputs(Flags(), 0.1)
        run(batch, Phase.BOTH, picks)  # a capture waits
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                step.set_inputs(Flags(), 0.1)
                run(batch, Phase.BOTH, picks)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        ends.append(step.losses_sum.tolist())
    assert ends[1] == pytest.approx(ends[0], rel=tolerances.RANKS_FLOAT32_5_STEPS)


def everything(trainer: Trainer) -> dict[str, Tensor]:
    engines = trainer.state.engines
    scales = {f"{name}.scale": engine.loss_scale.clone() for name, engine in engines.items()}
    counts = {f"{name}.good_steps": engine.good_steps.clone() for name, engine in engines.items()}
    return state(trainer) | scales | counts
