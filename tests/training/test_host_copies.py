"""A checkpoint's copy on its way from a GPU, on stubs of its streams: nothing of it waits in the training thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_recolor.run_folder.checkpoints import committed, rank_file, read_manifest, shard_file
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training import host_copies
from hpc_recolor.training.background_writer import BackgroundWriter
from hpc_recolor.training.host_copies import HostCopies
from tests.support.training_runs import run_config, train

Notes = list[tuple[str, int]]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    """What was asked of a GPU, and in which thread; CPU tensors pass for its own."""
    noted: Notes = []

    def note(what: str) -> None:
        noted.append((what, threading.get_ident()))

    class Stream:
        def wait_stream(self, other: object) -> None:
            note("wait for the steps so far")

    class Event:
        def record(self) -> None:
            note("record")

        def synchronize(self) -> None:
            note("synchronize")

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        note("enter")
        yield

    monkeypatch.setattr(host_copies, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(host_copies, "_pinned_memory", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: note("keep"))
    return noted


class NoWait(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses reads by the host; counts copies that the host does not wait for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_way = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func)
        self.on_way += "aten.copy_." in str(func) and bool((kwargs or {}).get("non_blocking") or args[2:] == (True,))
        return func(*args, **(kwargs or {}))


def some_tensors() -> dict[str, Tensor]:
    return {
        "weight": torch.randn(3, 5, 2),
        "count": torch.tensor(7),
        "random": torch.randint(0, 256, (13,), dtype=torch.uint8),
        "step": torch.tensor(2.5),
        "empty": torch.zeros(0),
    }


def test_tensors_arrive_as_they_were_though_training_goes_on(notes: Notes) -> None:
    tensors = some_tensors()
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    with NoWait() as watched:
        copies = HostCopies().start(tensors)
    assert watched.on_way == 1
    assert [what for what, _ in notes] == ["wait for the steps so far", "enter", "record", "keep"]
    for tensor in tensors.values():
        tensor.zero_()
    arrived = copies.wait()
    assert notes[-1][0] == "synchronize"
    assert {key: (value.dtype, value.tolist()) for key, value in arrived.items()} == {
        key: (value.dtype, value.tolist()) for key, value in before.items()
    }


def test_pinned_memory_is_used_again(notes: Notes) -> None:
    copies = HostCopies()
    first, second = (copies.start(some_tensors()).tensors for _ in range(2))
    assert [tensor.data_ptr() for tensor in first.values()] == [tensor.data_ptr() for tensor in second.values()]


def test_on_a_cpu_tensors_are_copied_at_once() -> None:
    tensors = some_tensors()
    copies = HostCopies().start(tensors)
    assert copies.arrival is None
    for key, value in copies.wait().items():
        assert torch.equal(value, tensors[key])
        assert not value.numel() or value.data_ptr() != tensors[key].data_ptr()


@pytest.mark.slow
def test_a_checkpoint_is_the_same_by_way_of_the_gpu_and_only_its_writer_waits(
    photos: Path, tmp_path: Path, world: World, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = BackgroundWriter.start

    def watched_start(*arguments: Any) -> None:
        with NoWait():
            start(*arguments)

    monkeypatch.setattr(BackgroundWriter, "start", watched_start)
    saving: dict[str, Any] = {"every_images": 8, "keep": 10}
    by_gpu = train(run_config(photos, tmp_path / "gpu", checkpoint=saving), world).run
    first = next(thread for what, thread in notes if what == "synchronize")
    assert first != threading.get_ident()
    monkeypatch.undo()
    by_cpu = train(run_config(photos, tmp_path / "cpu", checkpoint=saving), world).run
    for one, other in zip(committed(by_gpu), committed(by_cpu), strict=True):
        assert read_manifest(one).progress == read_manifest(other).progress
        for name in (shard_file(0, 1), rank_file(0, 1)):
            found, expected = load_file(one / name), load_file(other / name)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in found)


def test_without_memory_for_a_copy_the_state_is_taken_at_once(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(host_copies, "_pinned_memory", refuse)
    weights = torch.arange(6.0)
    taken = HostCopies().start({"weights": weights})
    weights.zero_()
    assert taken.wait()["weights"].tolist() == [0, 1, 2, 3, 4, 5]
    assert not notes
