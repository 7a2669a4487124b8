"""Tests that need a GPU: CUDA graphs, no host synchronization, the right device, more than 2^31 elements."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from recolor_kernels import (
    ciede2000_loss,
    color_metrics,
    discriminator_loss,
    gather,
    gather_gray,
    gather_lab,
    generator_loss,
    l1_lab_loss,
    l1_loss,
    lab_to_rgb,
    lab_to_rgb_u8,
    norm_act,
    patch_loss,
    rgb_to_gray,
    rgb_to_lab,
)
from tests.support import tolerances
from tests.support.color_samples import numbers, random_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

LARGE_BYTES = 40 * 2**30
Inputs = list[Tensor]
Outputs = list[Tensor]


def graded(loss: Callable[..., Tensor]) -> Callable[..., Outputs]:
    """The loss and 3 times its gradients in the floating ones of the first two inputs."""

    def step(*inputs: Tensor) -> Outputs:
        leaves = [value.detach().requires_grad_() for value in inputs[:2] if value.is_floating_point()]
        value = loss(*leaves, *inputs[len(leaves) :])
        return [value.detach(), *torch.autograd.grad(value * 3, leaves)]

    return step


def lab(seed: int) -> Inputs:
    return [numbers(2, 1, 33, 20, seed=seed) / 4, numbers(2, 2, 33, 20, seed=seed + 1) / 8]


def images_and_picks(seed: int) -> Inputs:
    images = random_images(2, 33, 20, seed)
    return [images, torch.tensor([[seed % 2, 1, 0], [1, 0, 1]], device=images.device)]


def features(seed: int) -> Inputs:
    x, weight, bias = (numbers(*shape, seed=seed + place) for place, shape in enumerate([(2, 70, 9, 8), (70,), (70,)]))
    return [x, weight, bias, torch.tensor(seed, device=x.device)]


# Per op: a function of its inputs, and inputs by seed; leaves come first.
STEPS: dict[str, tuple[Callable[..., Outputs], Callable[[int], Inputs]]] = {
    "rgb_to_lab": (lambda rgb: list(rgb_to_lab(rgb)), lambda seed: [random_images(2, 33, 20, seed)]),
    "rgb_to_gray": (lambda rgb: list(rgb_to_gray(rgb)), lambda seed: [random_images(2, 33, 20, seed)]),
    "lab_to_rgb_u8": (lambda *lab: [lab_to_rgb_u8(*lab)], lab),
    "lab_to_rgb": (graded(lambda *lab: lab_to_rgb(*lab).square().sum()), lab),
    "gather": (lambda *inputs: [gather(*inputs)], images_and_picks),
    "gather_lab": (lambda *inputs: list(gather_lab(*inputs)), images_and_picks),
    "gather_gray": (lambda *inputs: list(gather_gray(*inputs)), images_and_picks),
    "l1_loss": (
        graded(lambda prediction, like, target: l1_loss(prediction, target) + like.sum()),
        lambda seed: [numbers(5, 700, seed=seed), numbers(3, seed=seed), numbers(5, 700, seed=seed + 1)],
    ),
    "l1_lab_loss": (
        graded(lambda prediction, rgb: l1_lab_loss(prediction, rgb)),
        lambda seed: [numbers(2, 2, 33, 20, seed=seed), random_images(2, 33, 20, seed)],
    ),
    "ciede2000_loss": (
        graded(lambda prediction, like, target: ciede2000_loss(prediction, target) + like.sum()),
        lambda seed: [lab(seed)[1], numbers(3, seed=seed), lab(seed + 1)[1]],
    ),
    "patch_loss": (graded(lambda logits: patch_loss(logits, True)), lambda seed: [numbers(5, 700, seed=seed)]),
    "discriminator_loss": (
        graded(lambda *logits: discriminator_loss(*logits)),
        lambda seed: [numbers(5, 700, seed=seed), numbers(3, 90, seed=seed + 1)],
    ),
    "generator_loss": (
        graded(lambda prediction, logits, target: generator_loss(prediction, target, logits, 10.0).total),
        lambda seed: [numbers(5, 700, seed=seed), numbers(3, 90, seed=seed + 1), numbers(5, 700, seed=seed + 2)],
    ),
    "norm_act": (
        graded(lambda x, weight, bias, seed: norm_act(x, weight, bias, 0.2, dropout=0.5, seed=seed).square().sum()),
        features,
    ),
    "color_metrics": (
        lambda *pair: list(color_metrics(*pair)),
        lambda seed: [random_images(2, 33, 20, seed), random_images(2, 33, 20, seed + 1)],
    ),
}
each_op = pytest.mark.parametrize("name", STEPS)


def assert_same(found: Outputs, expected: Outputs) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.device == other.device
        assert torch.equal(one, other)


@each_op
def test_a_captured_op_replays_with_new_inputs(name: str) -> None:
    step, inputs = STEPS[name]
    held = inputs(0)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*held)
    for seed in (0, 10, 20):
        for tensor, new in zip(held, inputs(seed), strict=True):
            tensor.copy_(new)
        graph.replay()
        assert_same(results, step(*inputs(seed)))


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """Call it to make every host synchronization an error until the end of the test."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@each_op
def test_the_host_never_waits(name: str, no_waiting: Callable[[], None]) -> None:
    step, inputs = STEPS[name]
    held = inputs(0)
    step(*held)  # compiles
    torch.cuda.synchronize()
    no_waiting()
    step(*held)


@each_op
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_gpu_than_the_current_one_are_computed_there(name: str) -> None:
    step, inputs = STEPS[name]
    assert torch.cuda.current_device() == 0
    expected = step(*inputs(0))
    found = step(*[value.to("cuda:1") for value in inputs(0)])
    assert {value.device for value in found} == {torch.device("cuda", 1)}
    assert_same([value.to("cuda:0") for value in found], [value.to("cuda:0") for value in expected])


def _needs_memory() -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < LARGE_BYTES:
        pytest.skip(f"needs {LARGE_BYTES / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")


def test_images_of_more_than_two_to_the_31_bytes_are_converted_to_the_last() -> None:
    _needs_memory()
    generator = torch.Generator("cuda").manual_seed(0)
    few = torch.randint(0, 256, (11, 256, 256, 3), dtype=torch.uint8, device="cuda", generator=generator)
    rgb = few.repeat(1000, 1, 1, 1)
    assert rgb.numel() > 2**31
    for memory_format in (torch.contiguous_format, torch.channels_last):
        whole = rgb_to_lab(rgb, torch.bfloat16, memory_format)
        for number in (0, 10922, 10923, -2, -1):  # byte 2^31 lies in image 10922
            alone = rgb_to_lab(rgb[number][None].contiguous(), torch.bfloat16, memory_format)
            for found, expected in zip(whole, alone, strict=True):
                assert torch.equal(found[number][None], expected)
        del whole
    picks = torch.tensor([[10923, 1, 0], [0, 0, 0], [10999, 0, 1]], device="cuda")
    for gathered, converted in zip(gather_lab(rgb, picks), rgb_to_lab(gather(rgb, picks)), strict=True):
        assert torch.equal(gathered, converted)


def test_means_over_more_than_two_to_the_31_elements_reach_the_last() -> None:
    _needs_memory()
    count = 2**31 + 5
    target = torch.ones(count, dtype=torch.bfloat16, device="cuda")
    target[-5:] = -3  # the last five, beyond what 32 bits count
    prediction = torch.zeros(count, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    value = l1_loss(prediction, target)
    (gradient,) = torch.autograd.grad(value * 1024, prediction)
    expected = torch.tensor(1024 / count, dtype=torch.bfloat16, device="cuda")
    assert torch.equal(gradient[-5:], expected.expand(5))
    assert torch.equal(gradient[:-5].amax(), -expected)
    assert torch.equal(gradient[:-5].amin(), -expected)
    assert float(value.detach()) == pytest.approx(1, rel=tolerances.LOSS_RELATIVE)


def test_a_batch_with_a_stride_beyond_two_to_the_31_is_read_where_it_lies() -> None:
    _needs_memory()
    far: Any = torch.zeros(2**31 + 2 * 16, dtype=torch.bfloat16, device="cuda")
    logits = far.as_strided((2, 16), (2**31 + 16, 1))
    logits[1] = 3
    expected = patch_loss(logits.contiguous(), True)
    assert torch.equal(patch_loss(logits, True), expected)
