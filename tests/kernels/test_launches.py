"""Which kernels are launched, and with which arguments, for every branch of the launchers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

import recolor_kernels as ops
from recolor_kernels import launch, sums
from tests.support.color_samples import assert_gradients_are_close, assert_value_is_close, numbers, random_images

Launches = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Names and arguments of all launched kernels, in order; they run as usual."""
    seen: Launches = []
    real = launch.launch

    def noted(kernel: Any, programs: int, /, **arguments: Any) -> None:
        seen.append((kernel.__name__, arguments | {"programs in all": programs}))
        real(kernel, programs, **arguments)

    monkeypatch.setattr(launch, "launch", noted)
    return seen


def names(launches: Launches) -> list[str]:
    return [name for name, _ in launches]


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return numbers(*shape, dtype=dtype).requires_grad_()


def losses(prediction: Tensor, logits: Tensor) -> dict[str, tuple[Callable[[], Tensor], str]]:
    """Each loss of these tensors, and the kernel of its first stage."""
    n, _, height, width = prediction.shape
    target, rgb = numbers(*prediction.shape, seed=1), random_images(n, height, width)
    return {
        "l1": (lambda: ops.l1_loss(prediction, target, impl="triton"), "_l1_kernel"),
        "l1 lab": (lambda: ops.l1_lab_loss(prediction, rgb, impl="triton"), "_l1_lab_kernel"),
        "ciede2000": (lambda: ops.ciede2000_loss(prediction, target, impl="triton"), "_ciede2000_kernel"),
        "patch": (lambda: ops.patch_loss(logits, True, impl="triton"), "_patch_kernel"),
        "pair": (lambda: ops.discriminator_loss(logits, logits * 2, impl="triton"), "_patch_kernel"),
        "generator": (
            lambda: ops.generator_loss(prediction, target, logits, 2.0, impl="triton").total,
            "_generator_kernel",
        ),
    }


LOSSES = ("l1", "l1 lab", "ciede2000", "patch", "pair", "generator")


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_launch_and_one_to_add_up_and_its_gradient_one_to_scale(name: str, launches: Launches) -> None:
    loss, kernel = losses(leaf(2, 2, 4, 4), leaf(2, 1, 3, 3))[name]
    value = loss()
    assert names(launches) == [kernel, "_total_kernel"]
    assert launches[0][1]["GRADIENT"]
    value.backward()  # type: ignore[no-untyped-call]
    gradients = 2 if name in ("pair", "generator") else 1
    assert names(launches[2:]) == ["_scale_kernel"] * gradients


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_gradient_none_is_made(name: str, launches: Launches) -> None:
    with torch.no_grad():
        losses(leaf(2, 2, 4, 4), leaf(2, 1, 3, 3))[name][0]()
    assert not launches[0][1]["GRADIENT"]


@pytest.mark.parametrize("name", LOSSES)
def test_of_nothing_only_the_sum_is_launched(name: str, launches: Launches) -> None:
    loss = losses(leaf(0, 2, 4, 4), leaf(0, 1, 3, 3))[name][0]()
    assert loss.isnan()
    assert names(launches) == ["_total_kernel"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert names(launches) == ["_total_kernel"]


@pytest.mark.parametrize("convert", [ops.rgb_to_lab, ops.rgb_to_gray])
def test_no_images_launch_nothing(convert: Callable[..., Any], launches: Launches) -> None:
    convert(random_images(0, 3, 3), impl="triton")
    convert(random_images(2, 0, 3), impl="triton")
    ops.lab_to_rgb_u8(numbers(0, 1, 2, 2), numbers(0, 2, 2, 2), impl="triton")
    ops.lab_to_rgb(numbers(0, 1, 2, 2), numbers(0, 2, 2, 2), impl="triton")
    ops.color_metrics(random_images(2, 0, 3), random_images(2, 0, 3), impl="triton")
    assert launches == []


@pytest.mark.parametrize("name", LOSSES)
def test_programs_with_several_blocks_sum_them_all(
    name: str, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "MAX_PROGRAMS", 2)
    prediction, logits = leaf(3, 2, 37, 31), leaf(5, 1, 31, 17)
    loss = losses(prediction, logits)[name][0]()
    assert loss.isfinite()
    first = launches[0][1]
    blocks = next(first[key] for key in ("all_blocks", "prediction_blocks", "first_blocks") if key in first)
    assert blocks > 2
    assert first["programs in all"] == (4 if name in ("pair", "generator") else 2)
    leaves = {"generator": [prediction, logits], "patch": [logits], "pair": [logits]}.get(name, [prediction])
    gradients = torch.autograd.grad(3 * loss, leaves)
    monkeypatch.undo()
    expected = losses(prediction, logits)[name][0]()
    assert_value_is_close(loss, expected)
    assert_gradients_are_close(gradients, torch.autograd.grad(3 * expected, leaves))


@pytest.mark.parametrize(("channels", "together"), [(2, 8), (3, 8)])
def test_l1_lab_takes_two_channels_and_three_and_groups_of_pixels(
    channels: int, together: int, launches: Launches
) -> None:
    for dtype, side, expected in ((torch.float16, 4, together), (torch.float32, 4, 4), (torch.float16, 3, 1)):
        ops.l1_lab_loss(numbers(2, channels, side, side, dtype=dtype), random_images(2, side, side), impl="triton")
        arguments = launches[-2][1]
        assert (arguments["CHANNELS"], arguments["GROUP"]) == (channels, expected)
        assert arguments["EXACT"] == (dtype == torch.float32)


@pytest.mark.parametrize(("side", "together"), [(4, 4), (3, 1)])
def test_metrics_take_groups_of_pixels(side: int, together: int, launches: Launches) -> None:
    ops.color_metrics(random_images(2, side, side), random_images(2, side, side, seed=1), impl="triton")
    assert launches[0][1]["GROUP"] == together


def test_l1_reads_memory_in_its_own_order_where_both_have_the_same(launches: Launches) -> None:
    prediction, target = numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, seed=1)
    last = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (prediction, target)]
    pairs: list[tuple[Tensor, Tensor, bool]] = [
        (prediction, target, False),
        (last[0], last[1], False),
        (last[0], target, True),
        (prediction.transpose(2, 3), target.transpose(2, 3), True),
    ]
    for one, other, copied in pairs:
        ops.l1_loss(one, other, impl="triton")
        taken = launches[-2][1]["prediction_ptr"]
        assert (taken.data_ptr() != one.data_ptr()) == copied


def test_a_scaled_gradient_is_never_scaled_again() -> None:
    prediction = leaf(40, dtype=torch.float16)
    loss = ops.l1_loss(prediction, torch.zeros_like(prediction), impl="triton")
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="a second backward pass"):
        torch.autograd.grad(loss, prediction, create_graph=True)


def test_a_gradient_with_a_graph_spends_nothing() -> None:
    prediction = leaf(40)
    loss = ops.l1_loss(prediction, torch.zeros_like(prediction), impl="triton")
    (first,) = torch.autograd.grad(3 * loss, prediction, create_graph=True)
    (second,) = torch.autograd.grad(3 * loss, prediction)
    assert torch.equal(first, second)
    assert torch.equal(second, prediction.sign() * (3 / 40))


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_losses_pass_through_checkpointing(impl: ops.Impl) -> None:
    logits, fake = leaf(2, 1, 3, 3), leaf(2, 1, 3, 3)

    def loss(one: Tensor, other: Tensor) -> Tensor:
        return ops.discriminator_loss(one, other * 2, impl=impl)

    recomputed = torch.utils.checkpoint.checkpoint(loss, logits, fake, use_reentrant=False)
    found = torch.autograd.grad(recomputed, (logits, fake))
    assert_gradients_are_close(found, torch.autograd.grad(loss(logits, fake), (logits, fake)))
