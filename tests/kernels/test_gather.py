"""Batches out of images on the device: the right ones, mirrored as asked, in one launch."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpc_recolor.data.batch import flipped
from recolor_kernels import gather, launch
from recolor_kernels.launch import Impl
from tests.support.color_samples import random_images

IMPLS: tuple[Impl, ...] = ("reference", "triton", "auto")


def picks(*rows: tuple[int, int, int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=25)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    chosen=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 1)), max_size=6),
)
def test_images_come_in_order_and_mirrored_as_the_loaders_do(
    impl: Impl, height: int, width: int, chosen: list[tuple[int, int, int]]
) -> None:
    images = random_images(5, height, width)
    batch = gather(images, picks(*chosen), impl=impl)
    assert batch.shape == (len(chosen), height, width, 3)
    for found, (number, *flips) in zip(batch, chosen, strict=True):
        expected = flipped(images[number].numpy(), *map(bool, flips))
        assert torch.equal(found, torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("impl", IMPLS)
def test_images_may_have_any_strides(impl: Impl) -> None:
    images = random_images(6, 16, 24)
    views = images[::2].transpose(1, 2)
    chosen = picks((2, 1, 0), (0, 0, 1))
    assert torch.equal(gather(views, chosen, impl=impl), gather(views.contiguous(), chosen, impl="reference"))


@pytest.mark.parametrize("width", [1024, 1030, 2052])
def test_rows_may_be_longer_than_what_is_moved_together(width: int) -> None:
    images, chosen = random_images(2, 2, width), picks((1, 1, 1), (0, 0, 0))
    assert torch.equal(gather(images, chosen, impl="triton"), gather(images, chosen, impl="reference"))


def test_a_batch_is_one_launch_and_none_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(launch, "launch", lambda kernel, programs, **arguments: seen.append(arguments))
    gather(random_images(3, 48, 48), picks((0, 0, 0), (2, 1, 1)), impl="triton")
    assert [arguments["GROUP"] for arguments in seen] == [4]
    gather(random_images(3, 48, 48), picks(), impl="triton")
    assert len(seen) == 1


def test_the_op_passes_opcheck() -> None:
    torch.library.opcheck(torch.ops.recolor_kernels.gather.default, (random_images(3, 8, 8), picks((1, 0, 1))))


@pytest.mark.parametrize(
    ("images", "chosen", "problem"),
    [
        (torch.zeros(2, 4, 4, 3), picks((0, 0, 0)), "expected RGB as uint8"),
        (random_images(2, 4, 4), torch.zeros(1, 3), r"expected picks as int64 \(N,3\)"),
        (random_images(2, 4, 4), torch.zeros(3, dtype=torch.int64), r"expected picks as int64 \(N,3\)"),
        (random_images(2, 4, 4), torch.zeros(1, 3, dtype=torch.int64, device="meta"), "on one device"),
    ],
)
def test_other_tensors_are_refused(images: Tensor, chosen: Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        gather(images, chosen)
