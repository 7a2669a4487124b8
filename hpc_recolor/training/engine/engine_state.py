"""What an engine's training changes, by parameter name: the same names at every ZeRO stage and number of ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpc_recolor.runtime.distributed import World, average_
from hpc_recolor.training.engine.deepspeed_engine import Engine

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")

# (kind, name, start, numel) -> that part of a flattened tensor
Read = Callable[[str, str, int, int], Tensor]


@dataclass(frozen=True)
class Fragment:
    """A part of a parameter that lives on this rank: its elements from `start` on, as live tensors by kind."""

    name: str
    start: int
    tensors: dict[str, Tensor]

    @property
    def numel(self) -> int:
        return self.tensors[WEIGHT].numel()


def shapes(engine: Engine) -> dict[str, list[int]]:
    """The whole shape of every parameter."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}


def fragments(engine: Engine) -> list[Fragment]:
    """All that lives on this rank: whole parameters at ZeRO 0, its share of them above."""
    find = {0: _whole, 1: _from_flat_groups, 2: _from_flat_groups, 3: _from_partitioned}[engine.zero_stage]
    return list(find(engine))


def owned(engine: Engine, world: World) -> list[Fragment]:
    """What this rank saves: every element of the network is owned by exactly one rank."""
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


def load(engine: Engine, steps: int, read: Read) -> None:
    """Set weights, moments and the number of Adam's steps; all ranks together. read: gives part of a saved tensor."""
    with torch.no_grad():
        for fragment in fragments(engine):
            for kind, tensor in fragment.tensors.items():
                tensor.copy_(read(kind, fragment.name, fragment.start, fragment.numel).view_as(tensor))
        for share in engine.flat_shares():
            engine.adam.state[share]["step"].fill_(steps)
        engine.spread_weights()


def steps(engine: Engine) -> int:
    """How many updates Adam has made."""
    return int(engine.adam.state[engine.flat_shares()[0]]["step"])


def whole(engine: Engine, parts: list[tuple[Fragment, Tensor]], world: World) -> dict[str, Tensor]:
    """A full network on every rank, from what each rank owns of it (fragment, its values) and BatchNorm's statistics
    averaged over ranks. All ranks call it together."""
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


def _whole(engine: Engine) -> Iterator[Fragment]:
    for name, parameter in engine.module.named_parameters():
        state = engine.adam.state[parameter]
        yield Fragment(name, 0, {WEIGHT: parameter.data, **{key: state[key] for key in MOMENTS}})


def _from_flat_groups(engine: Engine) -> Iterator[Fragment]:
    """ZeRO 1 and 2: all parameters in one flat tensor, cut into as many pieces as ranks, anywhere."""
    flats = engine.flat_shares()
    for name, parameter in engine.module.named_parameters():
        mapping = parameter._hp_mapping
        if mapping is not None:
            flat, place = flats[mapping.param_group_index], mapping.hp_fragment_address
            yield Fragment(name, mapping.lp_fragment_address.start, _cut(engine, flat, place.start, place.numel))


def _from_partitioned(engine: Engine) -> Iterator[Fragment]:
    """ZeRO 3: every parameter cut into as many equal pieces as ranks, the last ones filled up with zeros."""
    optimizer, flats = engine.deepspeed.optimizer, engine.flat_shares()
    for name, parameter in engine.module.named_parameters():
        group, place, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = optimizer._get_param_partition_rank(parameter) * numel
        real = min(int(numel), parameter.ds_numel - start)
        if real > 0:
            yield Fragment(name, int(start), _cut(engine, flats[group], int(place), real))


def _cut(engine: Engine, flat: Tensor, start: int, numel: int) -> dict[str, Tensor]:
    state = engine.adam.state[flat]
    whole_tensors = {WEIGHT: flat.data, **{key: state[key] for key in MOMENTS}}
    return {kind: tensor.narrow(0, start, numel) for kind, tensor in whole_tensors.items()}


def _running_sums(numbers: Any) -> Iterator[int]:
    total = 0
    for number in numbers:
        yield total
        total += number
