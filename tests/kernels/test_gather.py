"""Batches out of images on the device: the right ones, mirrored as asked, in one launch, as images or colors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpc_recolor.data.batch import flipped
from recolor_kernels import Impl, gather, gather_gray, gather_lab, launch, rgb_to_gray, rgb_to_lab
from tests.support import tolerances
from tests.support.color_samples import DEVICE, DTYPES, IMPLS, image_laid_out, image_layouts, random_images

Colors = Callable[..., tuple[Tensor, Tensor]]
PAIRS: tuple[tuple[Colors, Colors], ...] = ((gather_lab, rgb_to_lab), (gather_gray, rgb_to_gray))
each_pair = pytest.mark.parametrize(("gather_colors", "convert"), PAIRS, ids=["lab", "gray"])
chosen_images = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 1)), max_size=6)


def picks(*rows: tuple[int, int, int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=DEVICE).reshape(-1, 3)


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=25)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    chosen=chosen_images,
)
def test_images_come_in_order_and_mirrored_as_the_loaders_do(
    impl: Impl, height: int, width: int, chosen: list[tuple[int, int, int]]
) -> None:
    images = random_images(5, height, width)
    batch = gather(images, picks(*chosen), impl=impl)
    assert batch.shape == (len(chosen), height, width, 3)
    for found, (number, *flips) in zip(batch, chosen, strict=True):
        expected = flipped(images[number].cpu().numpy(), *map(bool, flips))
        assert torch.equal(found.cpu(), torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("impl", IMPLS)
def test_images_may_have_any_strides(impl: Impl) -> None:
    images = random_images(6, 16, 24)
    views = images[::2].transpose(1, 2)
    chosen = picks((2, 1, 0), (0, 0, 1))
    assert torch.equal(gather(views, chosen, impl=impl), gather(views.contiguous(), chosen, impl="reference"))


@each_pair
@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=25)
@given(
    height=st.integers(0, 40),
    width=st.integers(0, 40),
    chosen=chosen_images,
    dtype=st.sampled_from(DTYPES),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    strides=image_layouts,
)
def test_colors_are_those_of_gathered_images_to_the_bit(
    gather_colors: Colors,
    convert: Colors,
    impl: Impl,
    height: int,
    width: int,
    chosen: list[tuple[int, int, int]],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    strides: str,
) -> None:
    images = image_laid_out(random_images(5, height, width), strides)
    found = gather_colors(images, picks(*chosen), dtype, memory_format, impl)
    batch = gather(images, picks(*chosen), impl="reference")
    for one, other in zip(found, convert(batch, dtype, memory_format, impl), strict=True):
        assert one.dtype == dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


@pytest.mark.parametrize("width", [1024, 1030, 2052])
def test_rows_may_be_longer_than_what_is_moved_together(width: int) -> None:
    images, chosen = random_images(2, 2, width), picks((1, 1, 1), (0, 0, 0))
    assert torch.equal(gather(images, chosen, impl="triton"), gather(images, chosen, impl="reference"))
    for gather_colors, convert in PAIRS:
        expected = convert(gather(images, chosen, impl="reference"), impl="triton")
        for one, other in zip(gather_colors(images, chosen, impl="triton"), expected, strict=True):
            assert torch.equal(one, other)


def test_a_batch_is_one_launch_and_none_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(launch, "launch", lambda kernel, programs, **arguments: seen.append(arguments))
    functions: tuple[Callable[..., Any], ...] = (gather, gather_lab, gather_gray)
    for number, function in enumerate(functions):
        function(random_images(3, 48, 48), picks((0, 0, 0), (2, 1, 1)), impl="triton")
        assert [arguments["GROUP"] for arguments in seen] == [4] * (number + 1)
        function(random_images(3, 48, 48), picks(), impl="triton")
        function(random_images(3, 0, 48), picks((0, 0, 0)), impl="triton")
        assert len(seen) == number + 1


@pytest.mark.parametrize(("side", "together"), [(64, 4), (62, 1), (6, 1)])
def test_pixels_of_two_rows_are_not_moved_together(side: int, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(launch, "launch", lambda kernel, programs, **arguments: seen.append(arguments["GROUP"]))
    gather_lab(random_images(2, side, side), picks((0, 1, 0)), impl="triton")
    assert seen == [together]


@pytest.mark.parametrize("name", ["gather", "gather_lab", "gather_gray"])
def test_the_ops_pass_opcheck(name: str) -> None:
    arguments = (random_images(3, 8, 8), picks((1, 0, 1)))
    options = () if name == "gather" else (torch.bfloat16, True)
    torch.library.opcheck(getattr(torch.ops.recolor_kernels, name).default, (*arguments, *options))


@each_pair
def test_colors_compile_without_a_graph_break(gather_colors: Colors, convert: Colors) -> None:
    compiled = torch.compile(gather_colors, fullgraph=True, backend="aot_eager")
    arguments = (random_images(3, 8, 8), picks((1, 0, 1), (2, 1, 0)))
    found = compiled(*arguments, memory_format=torch.channels_last)
    expected = gather_colors(*arguments, memory_format=torch.channels_last, impl="reference")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerances.KERNEL_FLOAT32)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("function", [gather, gather_lab, gather_gray])
@pytest.mark.parametrize(
    ("images", "chosen", "problem"),
    [
        (torch.zeros(2, 4, 4, 3), picks((0, 0, 0)), "expected RGB as uint8"),
        (random_images(2, 4, 4), torch.zeros(1, 3), r"expected picks as int64 \(N,3\)"),
        (random_images(2, 4, 4), torch.zeros(3, dtype=torch.int64), r"expected picks as int64 \(N,3\)"),
        (random_images(2, 4, 4), torch.zeros(1, 3, dtype=torch.int64, device="meta"), "on one device"),
    ],
)
def test_other_tensors_are_refused(function: Callable[..., Any], images: Tensor, chosen: Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        function(images, chosen)


@each_pair
def test_other_types_and_formats_are_named(gather_colors: Colors, convert: Colors) -> None:
    with pytest.raises(ValueError, match=r"expected float32, bfloat16 or float16 for Triton, got torch\.int32"):
        gather_colors(random_images(2, 4, 4), picks((0, 0, 0)), torch.int32, impl="triton")
    with pytest.raises(ValueError, match=r"expected.*channels_last.*got torch\.channels_last_3d"):
        gather_colors(random_images(2, 4, 4), picks((0, 0, 0)), memory_format=torch.channels_last_3d)
