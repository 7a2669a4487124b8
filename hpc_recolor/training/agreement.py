"""What all ranks agree on after a step, in one small all-reduce."""

from typing import NamedTuple

from torch import Tensor

from hpc_recolor.runtime.distributed import World, highest


class Agreement(NamedTuple):
    """Facts that hold on all ranks, each true if it is true on any.

    stop: the run is asked to stop. save: checkpoint.every_s are over. writing: a checkpoint is still being written.
    discriminator_skipped, generator_skipped: the step was not finite, and changed nothing in that network.
    """

    stop: bool
    save: bool
    writing: bool
    discriminator_skipped: bool
    generator_skipped: bool


def agree(
    world: World, *, stop: bool, save: bool, writing: bool, discriminator_skipped: Tensor, generator_skipped: Tensor
) -> Agreement:
    """Combine what each rank knows; the tensors are Engine.skipped. All ranks call it together.

    Waits for the device, once.
    """
    numbers = highest(world, (stop, save, writing), (discriminator_skipped, generator_skipped))
    return Agreement(**dict(zip(Agreement._fields, map(bool, numbers), strict=True)))


def agree_on_any(world: World, here: bool) -> bool:
    """Whether `here` is true on any rank. All ranks call it together."""
    return bool(highest(world, [here])[0])
