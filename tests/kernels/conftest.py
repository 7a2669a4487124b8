"""Uninitialized memory holds NaN, and impl="auto" is the op."""

from collections.abc import Iterator

import pytest
import torch

from recolor_kernels import launch


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Uninitialized memory holds NaN, so that a value that a kernel does not write is detected."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _auto_is_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU impl="auto" would be the reference itself; these tests run the op, as torch.compile does."""
    monkeypatch.setattr(launch, "_uses_op", lambda tensor: True)
