"""Kernels run on memory that shows what they leave unwritten."""

from collections.abc import Iterator

import pytest
import torch

from recolor_kernels import launch


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Memory that is handed out uninitialized holds NaN, so that a value left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _auto_is_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU impl="auto" would be the reference itself; tests are to run what torch.compile runs, the op."""
    monkeypatch.setattr(launch, "_uses_op", lambda tensor: True)
