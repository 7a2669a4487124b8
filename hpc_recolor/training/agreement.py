"""What all ranks agree on in a step, in one small all-reduce, and when the host reads it."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from hpc_recolor.runtime.distributed import World, highest

# Steps that the host runs ahead of what it has read. Fixed, so that all ranks act on a verdict in the same step.
LAG = 2


class Flags(NamedTuple):
    """What a rank tells the others in a step.

    stop: it is asked to stop. save: checkpoint.every_s are over. writing: it still writes a checkpoint. validate: a
    validation is due by time.
    """

    stop: bool = False
    save: bool = False
    writing: bool = False
    validate: bool = False


class Verdict(NamedTuple):
    """Facts about a step that hold on all ranks, each true if it is true on any: Flags, and whether the step counts.

    discriminator_skipped, generator_skipped: the step was not finite, and changed nothing in that network.
    """

    stop: bool
    save: bool
    writing: bool
    validate: bool
    discriminator_skipped: bool
    generator_skipped: bool


class Agreement(NamedTuple):
    """What the verdicts that were read after a step ask for. stop, save, validate: as of any; writing: as of the
    last, and true if there is none."""

    stop: bool = False
    save: bool = False
    writing: bool = True
    validate: bool = False

    @property
    def asks_to_act(self) -> bool:
        """Whether all ranks are to do something beside the next step."""
        return self.stop or self.save or self.validate

    def and_then(self, verdicts: Sequence[Verdict]) -> Self:
        """With further verdicts."""
        return self._replace(
            stop=self.stop or any(verdict.stop for verdict in verdicts),
            save=self.save or any(verdict.save for verdict in verdicts),
            writing=verdicts[-1].writing if verdicts else self.writing,
            validate=self.validate or any(verdict.validate for verdict in verdicts),
        )


class Verdicts:
    """Verdicts on their way from the device to the host."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def send(self, step: int, verdict: Tensor) -> None:
        """Start to copy a verdict, (6,) in the order of its fields, to the host, without waiting. step: its number."""
        copy = torch.empty(verdict.shape, dtype=verdict.dtype, pin_memory=verdict.is_cuda)
        copy.copy_(verdict, non_blocking=True)
        event = torch.cuda.Event() if verdict.is_cuda else None  # type: ignore[no-untyped-call]
        if event:
            event.record()
        self._pending.append((step, copy, event))

    def receive(self, lag: int = LAG) -> list[tuple[int, Verdict]]:
        """Read all verdicts but the newest `lag`, with the numbers of their steps; waits for them."""
        received = []
        while len(self._pending) > lag:
            step, copy, event = self._pending.popleft()
            if event:
                event.synchronize()
            received.append((step, Verdict(*map(bool, copy.tolist()))))
        return received


def agree_on_any(world: World, here: bool) -> bool:
    """Whether `here` is true on any rank. All ranks call it together."""
    return bool(highest(world, [here])[0])
