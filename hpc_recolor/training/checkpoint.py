"""Commit, restore and prune checkpoints: one folder, one manifest, one rename for both networks."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hpc_recolor
from hpc_recolor.distributed import World, average_, gather, on_main
from hpc_recolor.errors import UserError
from hpc_recolor.models.build import load_weights
from hpc_recolor.run_folder import (
    GENERATOR_WEIGHTS,
    MANIFEST,
    Manifest,
    RunFolder,
    checkpoints,
    describe,
    fsync,
    newest_checkpoint,
    read_manifest,
    write_atomically,
)
from hpc_recolor.training.engine import Engines

TRAINING_STATE = "training_state.pt"


def save(run: RunFolder, engines: Engines, images_seen: int, photos: str, keep: int, world: World) -> None:
    """Commit the whole state of training under the images seen, then remove all but the `keep` newest.

    photos: fingerprint of the training set. All ranks call it together. Until the folder is renamed at the end the
    checkpoint does not exist; a killed save leaves a folder that the next one removes.
    """
    final = run.checkpoints / f"images-{images_seen:012d}"
    beside = run.checkpoints / ".writing"
    on_main(world, lambda: _start_over(run, beside))
    averaged = [_averaged_state(engine.module, world) for engine in engines]  # a collective: on all ranks
    mine = [_write_rank_state(beside, engines, world)]
    if world.is_main:
        mine += _write_shared_state(beside, engines, averaged)
    shares = gather(world, {file.name: describe(file) for file in mine})
    files = {name: record for share in shares for name, record in share.items()}
    manifest = Manifest(
        images_seen=images_seen,
        world_size=world.size,
        photos=photos,
        versions={"hpc_recolor": hpc_recolor.__version__, "torch": torch.__version__},
        files=files,
    )
    on_main(world, lambda: _commit(beside, final, manifest))
    on_main(world, lambda: _prune(run, keep))


def restore(run: RunFolder, engines: Engines, photos: str, world: World) -> int:
    """Bring both engines to the newest checkpoint, if there is one. Returns the images seen by then, else 0.

    On as many ranks as it was saved on, with as many threads, a run on CPUs goes on to the bit; on others BatchNorm's
    statistics are the mean over the old ranks and dropout draws anew. Raises UserError if the checkpoint is damaged, or
    of other photographs or networks.
    """
    if not on_main(world, lambda: bool(checkpoints(run))):
        return 0
    path = on_main(world, lambda: newest_checkpoint(run))
    manifest = read_manifest(path)
    if manifest.photos != photos:
        raise UserError(
            f"checkpoint {path} was trained on other photographs: restore the folder, or give a new run.name"
        )
    state = torch.load(path / TRAINING_STATE, map_location=world.device, weights_only=True)
    for name, engine in zip(("generator", "discriminator"), engines, strict=True):
        load_weights(engine.module, state[name], path)
        engine.optimizer.load_state_dict(state[f"{name}_optimizer"])
    if manifest.world_size == world.size:
        _restore_rank_state(path, engines, world)
    else:
        torch.manual_seed(manifest.images_seen * 2**16 + world.rank)
    return manifest.images_seen


def _start_over(run: RunFolder, beside: Path) -> None:
    """An empty folder to write into, and none left of savings and prunings that were killed."""
    remnants = [folder for folder in run.checkpoints.glob("images-*") if not (folder / MANIFEST).exists()]
    for folder in (beside, *remnants):
        shutil.rmtree(folder, ignore_errors=True)
    beside.mkdir(parents=True)


def _averaged_state(network: nn.Module, world: World) -> dict[str, Tensor]:
    """Weights, and BatchNorm's statistics averaged over ranks, on CPU."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    average_(world, buffers.values())
    return {name: value.detach().cpu().contiguous() for name, value in (network.state_dict() | buffers).items()}


def _write_shared_state(folder: Path, engines: Engines, averaged: list[dict[str, Tensor]]) -> list[Path]:
    save_file(averaged[0], folder / GENERATOR_WEIGHTS)
    state = {
        "generator": averaged[0],
        "discriminator": averaged[1],
        "generator_optimizer": engines.generator.optimizer.state_dict(),
        "discriminator_optimizer": engines.discriminator.optimizer.state_dict(),
    }
    torch.save(state, folder / TRAINING_STATE)
    return [folder / GENERATOR_WEIGHTS, folder / TRAINING_STATE]


def _write_rank_state(folder: Path, engines: Engines, world: World) -> Path:
    state: dict[str, Any] = {
        "generator": dict(engines.generator.module.named_buffers()),
        "discriminator": dict(engines.discriminator.module.named_buffers()),
        "random": torch.get_rng_state(),
    }
    if world.device.type == "cuda":
        state["random_cuda"] = torch.cuda.get_rng_state(world.device)
    torch.save(state, _rank_file(folder, world))
    return _rank_file(folder, world)


def _restore_rank_state(folder: Path, engines: Engines, world: World) -> None:
    state = torch.load(_rank_file(folder, world), map_location="cpu", weights_only=True)
    for name, engine in zip(("generator", "discriminator"), engines, strict=True):
        engine.module.load_state_dict(state[name], strict=False)
    torch.set_rng_state(state["random"])
    if "random_cuda" in state and world.device.type == "cuda":
        torch.cuda.set_rng_state(state["random_cuda"], world.device)


def _rank_file(folder: Path, world: World) -> Path:
    return folder / f"rank_{world.rank:05d}.pt"


def _commit(beside: Path, final: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        fsync(beside / name)
    write_atomically(beside / MANIFEST, manifest.model_dump_json(indent=2).encode())
    fsync(beside)
    beside.rename(final)
    fsync(final.parent)


def _prune(run: RunFolder, keep: int) -> None:
    for old in checkpoints(run)[:-keep]:
        (old / MANIFEST).unlink()  # first: a half-removed folder is no checkpoint
        shutil.rmtree(old)
