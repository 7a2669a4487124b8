"""Ranks: start-up, identity and collectives. The only reader of RANK and the like."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hpc_recolor.runtime.errors import RankError, UserError
from hpc_recolor.runtime.launcher_environment import ADOPTED_JOB, clear_launcher, processes_of_mpi, tasks_of_step
from hpc_recolor.runtime.rendezvous import Meeting, candidate_ports, meet

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

_releases: list[Callable[[], None]] = []


@dataclass(frozen=True)
class World:
    """The rank of this process, the number of ranks, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    device: "torch.device"

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def is_main_process() -> bool:
    """True on rank 0, and without a launcher. Needs no process group."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Number of ranks that the launcher started; 1 without a launcher. Needs no process group."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def ranks_here() -> int:
    """Number of ranks that the launcher started on this machine; 1 without a launcher."""
    return _number("LOCAL_WORLD_SIZE", 1)


def adopt(rank: int, size: int, local_rank: int, local_size: int, address: str, job: str) -> None:
    """Set the environment that torchrun would set, for ranks that another launcher started.

    address: of rank 0. job: its name, the same on all ranks and at no other time, from which they derive a port. Leaves
    CUDA_VISIBLE_DEVICES as it is.
    """
    clear_launcher()
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size}
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(candidate_ports(job)[0]), ADOPTED_JOB: job}


def use_network(interface: str | None) -> None:
    """Let NCCL and gloo use this network interface, such as ib0; None leaves the choice to them."""
    if interface:
        os.environ |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}


def start(device: str, threads: int | None, check_stop: Callable[[], None] = lambda: None) -> World:
    """Join the process group that torchrun's environment describes, or one of a single rank: NCCL on GPUs, else gloo.

    device: "auto", "cpu" or "cuda". threads: CPU threads of this rank; None divides the machine's cores evenly.
    check_stop: called while other ranks are waited for; what it raises ends the wait. Raises RankError if CUDA is
    requested but not available, or if other ranks do not come; UserError if the environment is incomplete.
    """
    import torch
    import torch.distributed as dist

    if device == "cuda" and not torch.cuda.is_available():
        raise RankError("train.device=cuda", "torch finds no GPU here", "use train.device=cpu, or check nvidia-smi")
    kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    rank, size = _number("RANK", 0), world_size()
    local_rank = _number("LOCAL_RANK", 0)
    os.environ["LOCAL_RANK"] = str(local_rank)  # DeepSpeed requires it
    local_size = ranks_here()
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    # Set explicitly: OMP_NUM_THREADS is 1 under torchrun and unset elsewhere, and results depend on it bit by bit.
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local_size))
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise RankError(
                f"rank {rank}",
                f"has no GPU of its own: {local_size} ranks here, {torch.cuda.device_count()} GPUs",
                "start one rank per GPU, or use train.device=cpu",
            )
        torch.cuda.set_device(local_rank)
        allow_tf32(False)  # torch would allow it in convolutions
    if not dist.is_initialized():
        backend = "nccl" if kind == "cuda" else "gloo"
        check_environment()
        # One rank needs no address and no port.
        store = meet(_meeting(rank, size), check_stop) if size > 1 else dist.HashStore()  # type: ignore[attr-defined]
        # NCCL then need not guess the device, and connects here.
        device_id = place if kind == "cuda" else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=device_id)
        if backend == "gloo":  # a rank that leaves at once, as after bad input, would break the others' connecting
            dist.barrier()
    return World(rank, size, local_rank, place)


def allow_tf32(allowed: bool) -> None:
    """Whether GPUs may round the factors of float32 convolutions and matrix products to 10 bits."""
    import torch

    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def check_environment() -> None:
    """Raises UserError, on a rank RankError, if this process is one of several, but not told which."""
    if "RANK" in os.environ:
        missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            problem = f"is set, but not {', '.join(missing)}"
            raise RankError("RANK", problem, "start ranks with torchrun, or unset RANK")
        rank, size, *_ = (_number(name, 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
        if rank >= size:
            problem = f"is not below WORLD_SIZE={size}"
            raise RankError(f"RANK={rank}", problem, "start ranks with torchrun, or unset RANK")
    elif tasks_of_step() > 1:
        raise UserError(
            f"srun with {tasks_of_step()} tasks",
            "each would be a run of its own",
            "use python -m hpc_recolor.submit, or start torchrun with srun, one task a node",
        )
    elif processes_of_mpi() > 1:
        raise UserError(
            f"mpirun with {processes_of_mpi()} processes",
            "each would be a run of its own",
            "use torchrun, or python -m hpc_recolor.submit",
        )


def _number(name: str, default: int) -> int:
    """A launcher's variable. Raises RankError if it is not a number of 0 or more."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal()):
        raise RankError(f"{name}={text}", "is not a number", "start ranks with torchrun, or unset RANK")
    return int(text)


def _meeting(rank: int, size: int) -> Meeting:
    address, port, job = os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0), os.environ.get(ADOPTED_JOB)
    if job is not None:
        return Meeting(rank, size, address, candidate_ports(job), job)
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Meeting(rank, size, address, (port,), attempt, by_agent)


def before_stop(release: Callable[[], None]) -> None:
    """Have `release` called by the next `stop`, before the process group is left, and forgotten."""
    _releases.append(release)


def stop() -> None:
    """Leave the process group; this process may join another."""
    import torch.distributed as dist

    while _releases:
        _releases.pop()()
    if not dist.is_initialized():
        return
    # DeepSpeed, if it was used, keeps groups of its own, and would use them again after a new start.
    deepspeed = sys.modules.get("deepspeed.comm")
    (deepspeed if deepspeed and deepspeed.is_initialized() else dist).destroy_process_group()


def on_main(world: World, action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 and broadcast its result to all ranks.

    If it fails, it fails on all ranks, so that none waits for a rank that has exited: with the same UserError, or with
    the error itself on rank 0 and RuntimeError on the others.
    """
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if world.is_main:
        try:
            outcome[0] = action()
        except Exception as error:
            failure = error
            outcome[1] = error if isinstance(error, UserError) else RuntimeError(f"rank 0 failed: {error!r}")
    if world.size > 1:
        dist.broadcast_object_list(outcome, src=0)
    if failure or outcome[1]:
        raise failure or outcome[1]
    result: Result = outcome[0]
    return result


def gather(world: World, mine: Result) -> list[Result]:
    """Every rank's `mine`, in rank order, on every rank. Values are pickled."""
    import torch.distributed as dist

    if world.size == 1:
        return [mine]
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, mine)
    return everyone


def highest(world: World, here: Sequence[float]) -> list[float]:
    """The maximum over all ranks of each number, on every rank: one small all-reduce, and one wait for the device."""
    import torch
    import torch.distributed as dist

    numbers = torch.tensor([float(number) for number in here], device=world.device)
    if world.size > 1:
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return [float(value) for value in numbers.tolist()]


def average_(world: World, tensors: Iterable["torch.Tensor"]) -> None:
    """Replace each floating-point tensor by its mean over all ranks."""
    import torch.distributed as dist

    for tensor in tensors:
        if world.size > 1 and tensor.is_floating_point():
            dist.all_reduce(tensor)
            tensor.div_(world.size)
