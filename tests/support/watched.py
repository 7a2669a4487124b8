"""A run without networks and with a planted fault: `python -m tests.support.watched --fault killed ...`."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpc_recolor import cli
from hpc_recolor.runtime.distributed import World, on_main, start, stop
from hpc_recolor.runtime.errors import EarlyEndError, RankError, UserError
from hpc_recolor.runtime.exit_codes import STOPPED
from hpc_recolor.runtime.signals import StopRequest
from hpc_recolor.training.watchdog.watchdog import Watchdog

STEPS, FAULTY_STEP, LATE_S = 5, 3, 3.0

app = cli.command("watched", distributed=True)


def hang() -> None:
    while True:
        pass


def be_late() -> None:
    time.sleep(LATE_S)


def fail(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


# Phase in which the faulty rank calls the function.
FAULTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "none": ("training", lambda: None),
    "killed": ("training", lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "stopped": ("training", lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "raises": ("training", fail(ValueError("no such color\nin this photograph"))),
    "save raises": ("saving", fail(OSError(28, "No space left on device", "shard-00001"))),
    "out of memory": ("training", lambda: bytearray(1 << 60)),
    "hangs": ("loading photographs", hang),
    "leaves": ("training", fail(UserError("run.name=x", "taken", "use another"))),
    "own error": ("training", fail(RankError("data.photos=x", "vanished", "restore it"))),
    "late": ("leaving", be_late),
}


class Run:
    """Steps of three phases, with an all-reduce in two of them; one rank has the fault."""

    def __init__(self, world: World, fault: str, rank: int, watchdog: Watchdog) -> None:
        self.world, self.watchdog = world, watchdog
        self.phase, self.fail = FAULTS[fault]
        self.faulty = world.rank == rank
        self.dies = fault in ("killed", "stopped")
        self.asked_to_stop = torch.zeros(1)

    def at(self, phase: str, step: int) -> None:
        self.watchdog.enter_phase(phase, step)
        if self.faulty and phase == self.phase and step == FAULTY_STEP:
            if self.dies:
                self.wait_until_known()
            self.fail()

    def wait_until_known(self) -> None:
        """The others know what a dead rank did a second before: stay in the phase until all know it."""
        counts = self.counts()
        while any(now < before + 2 for now, before in zip(self.counts(), counts, strict=True)):
            time.sleep(0.05)

    def counts(self) -> list[int]:
        """Heartbeats that this rank has received from each rank that it reads."""
        return [peer.heartbeat.count if peer.heartbeat else 0 for peer in self.watchdog._peers.values()]

    def run_steps(self, request: StopRequest, endless: bool) -> None:
        step = 0
        while endless or step < STEPS:
            self.at("loading photographs", step)
            self.at("training", step)
            self.asked_to_stop.fill_(request.requested)
            dist.all_reduce(self.asked_to_stop, dist.ReduceOp.MAX)
            if self.asked_to_stop.item():
                raise EarlyEndError(f"stopped by {request.signal}", STOPPED)
            self.at("saving", step)
            on_main(self.world, lambda: None)
            step += 1
        self.at("leaving", FAULTY_STEP)


@app.default
def watched(*, fault: str, rank: int, pids: Path, hang_s: float, silence_s: float, endless: bool = False) -> None:
    """Run on every rank; `rank` has the fault. Writes the ranks' process IDs into a folder."""
    with StopRequest() as request:
        world = start("cpu", threads=1)
        try:
            with Watchdog(world, hang_s, silence_s) as watchdog:
                (pids / str(world.rank)).write_text(str(os.getpid()))
                Run(world, fault, rank, watchdog).run_steps(request, endless)
        finally:
            stop()


if __name__ == "__main__":
    sys.exit(cli.run(app))
