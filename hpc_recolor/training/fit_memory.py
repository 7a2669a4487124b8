"""Steps that fit into memory: tried before the first image; and where one does not fit later, what to change."""

import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from hpc_recolor.config import Config, DeepSpeedConfig, with_accumulate
from hpc_recolor.data.sets import SampleSets
from hpc_recolor.evaluation.validation_scores import BATCH_SIZE, score
from hpc_recolor.run_folder.checkpoints import committed
from hpc_recolor.run_folder.folder import RunFolder, record_accumulate
from hpc_recolor.runtime.distributed import World, gather, on_main
from hpc_recolor.runtime.errors import RankError, UserError
from hpc_recolor.training.agreement import Flags
from hpc_recolor.training.device_step import DeviceStep
from hpc_recolor.training.engine.deepspeed_config import deepspeed_config, with_bucket
from hpc_recolor.training.engine.engine import Engines
from hpc_recolor.training.run_state import RunState
from hpc_recolor.training.schedule import Phase
from hpc_recolor.training.validation import evaluated_networks
from hpc_recolor.training.watchdog.watchdog import EnterPhase

# Share of a GPU's memory that a trial leaves free: for what the loader decodes in, and for memory in pieces that are
# too small.
LEFT_FREE = 0.03

# What torch's OutOfMemoryError says, and the errors of the driver, Triton, cuBLAS and cuDNN, which are RuntimeErrors.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED")


def fit_memory(config: Config, world: World, run: RunFolder, photos: SampleSets, enter_phase: EnterPhase) -> Config:
    """The config with the smallest train.accumulate, from its own on, at which a step fits into memory on all ranks.

    All ranks call it together, before their networks are made; each tries steps alone, on networks that it throws away,
    and after each a batch of validation. What they found is printed, and recorded if the run folder has a config.yaml.
    Without train.fit_memory, on CPUs, and where a run resumes from a checkpoint, nothing is tried. Raises UserError if
    not even one image at a time fits, unless deepspeed.zero_stage divides what networks need, which is not tried.
    """
    if not config.train.fit_memory or not _raises_out_of_memory(world.device):
        return config
    if on_main(world, lambda: bool(committed(run))):
        return config
    first_without = ""
    for candidate in _candidates(config, world):
        enter_phase("trying a step", 0)
        here = "" if _fits(candidate, world, photos) else _name(world)
        without = [rank for rank in gather(world, here) if rank]
        if not without:
            break
        first_without = first_without or without[0]
    else:
        if config.deepspeed.zero_stage:
            return config
        raise UserError(
            f"train.batch_size={config.train.batch_size}",
            f"not even one image at a time fits into the memory of {first_without}, with a validation between steps",
            "use a smaller data.size or model.width, train.precision=bf16 or data.cache=none",
        )
    if not first_without:
        return config
    on_main(world, lambda: _record(candidate, config, run, first_without, world))
    return candidate


@contextmanager
def out_of_memory_as_rank_error(
    config: Config, world: World, run: RunFolder, where: Callable[[], str]
) -> Iterator[None]:
    """Raises RankError, with the settings that need less memory, where an error says that a GPU has none left.

    where: returns phase and step, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        # How much was asked for; then come hints for developers.
        what = ". ".join(str(error).partition("\n")[0].split(". ")[:2]).rstrip(".")
        raise RankError(
            f"train.batch_size={config.train.batch_size}",
            f"{_name(world)} ran out of memory {where()} ({what})",
            _needs_less(config, has_checkpoint=bool(committed(run))),
        ) from None


def _needs_less(config: Config, has_checkpoint: bool) -> str:
    smaller = "a larger train.accumulate or a smaller train.batch_size"
    if not has_checkpoint:
        return f"use {'' if config.train.fit_memory else 'train.fit_memory=true, '}{smaller}"
    parts = config.train.accumulate
    ranks = "more ranks" + (f" (each with a multiple of {parts} images, train.accumulate)" if parts > 1 else "")
    return f"resume it on {ranks}, with deepspeed.zero_stage=1 or data.cache=none, or start a new run with {smaller}"


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _raises_out_of_memory(device: torch.device) -> bool:
    """On CPUs the kernel kills the process instead."""
    return device.type == "cuda"


def _candidates(config: Config, world: World) -> Iterator[Config]:
    """The config with its own train.accumulate and all larger ones that divide a rank's share of a batch."""
    share = config.train.batch_size // world.size
    for accumulate in range(config.train.accumulate, share + 1):
        if share % accumulate == 0:
            yield with_accumulate(config, accumulate)


def _name(world: World) -> str:
    return f"rank {world.rank} on host {socket.gethostname()}"


def _fits(config: Config, world: World, photos: SampleSets) -> bool:
    """Whether this rank can compute its share of a step. Leaves memory and random states as they were."""
    try:
        with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
            _try_step(config, world, photos)
        fits = True
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        fits = False
    if config.train.compile:
        torch.compiler.reset()  # or the next networks are compiled for shapes that vary, as theirs differ from these
    gc.collect()  # after the exception, which holds the tensors of the step
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def _try_step(config: Config, world: World, photos: SampleSets) -> None:
    """A step of both networks as a single rank makes it, whatever the ZeRO stage, and a batch of validation: nothing is
    sent to other ranks."""
    share, size = config.train.batch_size // world.size, config.data.size
    model = config.model.model_copy(update={"norm": "batch"}) if config.model.norm == "sync_batch" else config.model
    alone = replace(world, rank=0, size=1)
    as_alone = config.model_copy(update={"model": model, "deepspeed": DeepSpeedConfig()})
    state = RunState.initial(as_alone, world, alone=True)
    with _less_memory(world.device, _bytes_beside(config, world, photos, state.engines)):
        step = DeviceStep(as_alone, alone, state.engines, state.average, state.counters.losses_sum)
        step.set_inputs(Flags(), average_share=0.0)
        images = torch.zeros((share, size, size, 3), dtype=torch.uint8, device=world.device)
        step.body(images, Phase.GENERATOR if config.loss.adversarial == "none" else Phase.BOTH)
        generator, discriminator = evaluated_networks(as_alone, world.device)
        images = images.new_zeros((min(BATCH_SIZE, -(-len(photos.held_out) // world.size)), size, size, 3))
        score(generator, discriminator, images, config.model.color, config.loss, alone)


@contextmanager
def _less_memory(device: torch.device, left_free: int) -> Iterator[None]:
    """Within it, torch allocates on a GPU only what is free there beyond `left_free` [bytes], which stays free for
    what others allocate."""
    if device.type != "cuda":
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    before = torch.cuda.get_per_process_memory_fraction(device)
    allowed = max(0, torch.cuda.memory_reserved(device) + free - left_free)
    torch.cuda.set_per_process_memory_fraction(min(before, allowed / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def _bytes_beside(config: Config, world: World, photos: SampleSets, engines: Engines) -> int:
    """What a step must leave free on a GPU [bytes]: LEFT_FREE, images that stay there, and DeepSpeed's buffers."""
    if world.device.type != "cuda":
        return 0
    images = -(-len(photos.held_out) // world.size) + min(config.tracking.samples, len(photos.held_out))
    if config.data.cache == "device":
        images += len(photos.train)
    buffers = 0
    if config.deepspeed.zero_stage:
        settings = [with_bucket(deepspeed_config(config, world.size), engine.module) for engine in engines]
        buffers = sum(one["zero_optimization"]["reduce_bucket_size"] for one in settings)
    total = torch.cuda.mem_get_info(world.device)[1]
    return images * config.data.size**2 * 3 + 4 * buffers + int(LEFT_FREE * total)


def _record(fitting: Config, config: Config, run: RunFolder, without: str, world: World) -> None:
    record_accumulate(run, fitting.train.accumulate)
    share = config.train.batch_size // world.size
    before, after = (share // one.train.accumulate for one in (config, fitting))
    line = (
        f"train.batch_size={config.train.batch_size} does not fit into the memory of {without}: steps are made with "
        f"train.accumulate={fitting.train.accumulate}, as {run.config} says from here on"
    )
    if config.model.norm != "instance":
        line += f"; BatchNorm sees {after} images of a rank at a time, and not {before}"
    print(line)
