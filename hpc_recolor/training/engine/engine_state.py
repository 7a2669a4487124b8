"""State of an engine by parameter name: the same names at every ZeRO stage and number of ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpc_recolor.runtime.distributed import World, average_
from hpc_recolor.training.engine.engine import Engine

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")

# (kind, name, start, numel) -> those elements of the flattened tensor
ReadRange = Callable[[str, str, int, int], Tensor]


@dataclass(frozen=True)
class Fragment:
    """A range of a flattened parameter that this rank holds: its elements from `start` on, as live tensors by kind.

    The kinds are WEIGHT and MOMENTS, all of one shape.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.tensors[WEIGHT].numel()


def shapes(engine: Engine) -> dict[str, list[int]]:
    """The full shape of every parameter, by name."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}


def fragments(engine: Engine) -> list[Fragment]:
    """All fragments that this rank holds: whole parameters at ZeRO 0, its partition of them above."""
    find = {0: _unpartitioned, 1: _from_flat_groups, 2: _from_flat_groups, 3: _from_partitioned}[engine.zero_stage]
    return list(find(engine))


def owned(engine: Engine, world: World) -> list[Fragment]:
    """Fragments that this rank saves: every element of the network is owned by exactly one rank."""
    mine = fragments(engine)
    if engine.zero_stage:
        return mine
    loads = [0] * world.size
    chosen = []
    for fragment in sorted(mine, key=lambda fragment: -fragment.numel):
        rank = loads.index(min(loads))
        loads[rank] += fragment.numel
        if rank == world.rank:
            chosen.append(fragment)
    return chosen


def load(engine: Engine, steps: int, read: ReadRange) -> None:
    """Set weights, moments and the number of Adam's steps. All ranks call it together."""
    with torch.no_grad():
        for fragment in fragments(engine):
            for kind, tensor in fragment.tensors.items():
                tensor.copy_(read(kind, fragment.name, fragment.start, fragment.numel).view_as(tensor))
        for parameter in engine.adam_parameters():
            engine.adam.state[parameter]["step"].fill_(steps)
        engine.publish_weights()


def adam_step(engine: Engine) -> Tensor:
    """Number of updates that Adam has made, float32 tensor () on the device."""
    step: Tensor = engine.adam.state[engine.adam_parameters()[0]]["step"]
    return step


def adam_steps(engine: Engine) -> int:
    """Number of updates that Adam has made. Waits for the device."""
    return int(adam_step(engine))


def full_state(engine: Engine, parts: list[tuple[Fragment, Tensor]], world: World) -> dict[str, Tensor]:
    """A state dict of the full network on every rank. All ranks call it together.

    parts: the fragments that this rank owns, each with its values. Buffers are BatchNorm's statistics averaged over
    ranks.
    """
    named = shapes(engine)
    sizes = {name: torch.Size(shape).numel() for name, shape in named.items()}
    places = dict(zip(named, _running_sums(sizes.values()), strict=True))
    flat = torch.zeros(sum(sizes.values()), device=engine.device)
    for fragment, values in parts:
        start = places[fragment.name] + fragment.start
        flat[start : start + fragment.numel] = values.reshape(-1)
    if world.size > 1:
        torch.distributed.all_reduce(flat)
    state = {name: flat[places[name] : places[name] + sizes[name]].view(named[name]) for name in named}
    return state | averaged_buffers(engine, world)


def averaged_buffers(engine: Engine, world: World) -> dict[str, Tensor]:
    """BatchNorm's statistics as means over the ranks. All ranks call it together."""
    buffers = {name: buffer.clone() for name, buffer in engine.module.named_buffers()}
    average_(world, buffers.values())
    return buffers


def _unpartitioned(engine: Engine) -> Iterator[Fragment]:
    for name, parameter in engine.module.named_parameters():
        state = engine.adam.state[parameter]
        yield Fragment(name, 0, {WEIGHT: parameter.data, **{key: state[key] for key in MOMENTS}})


def _from_flat_groups(engine: Any) -> Iterator[Fragment]:
    """ZeRO 1 and 2: all parameters in one flat tensor, cut into one partition per rank, anywhere."""
    flats = engine.adam_parameters()
    for name, parameter in engine.module.named_parameters():
        mapping = parameter._hp_mapping
        if mapping is not None:
            flat, place = flats[mapping.param_group_index], mapping.hp_fragment_address
            yield Fragment(name, mapping.lp_fragment_address.start, _cut(engine, flat, place.start, place.numel))


def _from_partitioned(engine: Any) -> Iterator[Fragment]:
    """ZeRO 3: every parameter cut into one equal partition per rank, the last ones padded with zeros."""
    optimizer, flats = engine.deepspeed.optimizer, engine.adam_parameters()
    for name, parameter in engine.module.named_parameters():
        group, place, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = optimizer._get_param_partition_rank(parameter) * numel
        real = min(int(numel), parameter.ds_numel - start)
        if real > 0:
            yield Fragment(name, int(start), _cut(engine, flats[group], int(place), real))


def _cut(engine: Engine, flat: Tensor, start: int, numel: int) -> dict[str, Tensor]:
    state = engine.adam.state[flat]
    tensors = {WEIGHT: flat.data, **{key: state[key] for key in MOMENTS}}
    return {kind: tensor.narrow(0, start, numel) for kind, tensor in tensors.items()}


def _running_sums(numbers: Any) -> Iterator[int]:
    total = 0
    for number in numbers:
        yield total
        total += number
