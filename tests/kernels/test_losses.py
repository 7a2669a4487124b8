"""The losses, on a GPU or in Triton's interpreter: values and gradients against the reference and torch's losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skimage.color import rgb2lab
from torch import Tensor

import recolor_kernels
from recolor_kernels import (
    AB_SCALE,
    Criterion,
    Impl,
    ciede2000_loss,
    discriminator_loss,
    generator_loss,
    l1_lab_loss,
    l1_loss,
    patch_loss,
    rgb_to_lab,
)
from tests.support import tolerances
from tests.support.color_samples import (
    DEVICE,
    DTYPES,
    IMPLS,
    OPCHECK_READS_GRAD,
    SECOND_DERIVATIVES,
    assert_gradients_are_close,
    assert_value_is_close,
    image_laid_out,
    image_layouts,
    laid_out,
    layouts,
    numbers,
    random_images,
    value_and_gradients,
)

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
KERNELS: tuple[Impl, ...] = ("auto", "triton")
# Elements for Triton: in float16 1 / 50_003 is 335.52 times the smallest step, 0.14 % from a multiple of it.
UNDERFLOWING = 1_000_000 if DEVICE == "cuda" else 50_003

SIZES = st.sampled_from([0, 1, 2, 3, 7, 31, 1021, 1024, 1025, 2048, 2053, 4099])
SHAPES = st.one_of(
    st.just(()),
    st.tuples(SIZES),
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)),
    st.sampled_from([(1, 1, 37, 41), (2, 2, 32, 32), (3, 2, 29, 31), (1, 2, 1, 1531)]),
)
drawn = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Case:
    """A loss with all arguments bound except the tensors that take a gradient: loss(*leaves, impl=...)."""

    loss: Callable[..., Tensor]
    leaves: Callable[[torch.dtype, str], tuple[Tensor, ...]]  # of a type, on a device


def lab_of(rgb: Tensor, channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.cat(rgb_to_lab(rgb, dtype, impl="reference"), dim=1)[:, 3 - channels :]


def away_from(target: Tensor, seed: int = 0) -> Tensor:
    """Above or below a target by 0.05 to 0.55, so that rounding flips no sign."""
    offset = numbers(*target.shape, dtype=torch.float64, seed=seed, device=str(target.device))
    return target + offset.sign() * (0.05 + offset.abs().clamp(max=2) / 4)


def target_of(prediction: Tensor) -> Tensor:
    """Multiples of 1/8, exact in every type; every third value is the prediction itself: the kink of L1."""
    other = numbers(*prediction.shape, dtype=torch.float64, seed=9, device=str(prediction.device))
    other = ((other * 8).round() / 8).to(prediction.dtype)
    ties = torch.arange(prediction.numel(), device=prediction.device).view(prediction.shape) % 3 == 0
    return torch.where(ties, prediction.detach(), other)


def _l1_lab(channels: int) -> Case:
    rgb = random_images(2, 3, 5)

    def loss(prediction: Tensor, impl: Impl) -> Tensor:
        return l1_lab_loss(prediction, rgb.to(prediction.device), impl=impl)

    return Case(loss, lambda dtype, device: (away_from(lab_of(rgb, channels)).to(device, dtype),))


def _ciede2000() -> Case:
    target = (numbers(2, 2, 3, 5, seed=1, device="cpu") * 8).round() / 64  # exact in every type

    def loss(prediction: Tensor, impl: Impl) -> Tensor:
        return ciede2000_loss(prediction, target.to(prediction), impl=impl)

    return Case(loss, lambda dtype, device: (numbers(2, 2, 3, 5, dtype=dtype, device=device) / 4,))


def _patch(criterion: Criterion, real: bool) -> Case:
    return Case(
        lambda logits, impl: patch_loss(logits, real, criterion, impl=impl),
        lambda dtype, device: (numbers(2, 1, 5, 3, dtype=dtype, device=device) * 2,),
    )


def _discriminator(criterion: Criterion) -> Case:
    return Case(
        lambda on_real, on_fake, impl: discriminator_loss(on_real, on_fake, criterion, impl=impl),
        lambda dtype, device: (
            numbers(2, 1, 5, 3, dtype=dtype, device=device) * 2,
            numbers(3, 1, 2, 4, dtype=dtype, device=device, seed=1) * 2,
        ),
    )


def _generator(criterion: Criterion) -> Case:
    return Case(
        lambda prediction, logits, impl: (
            generator_loss(prediction, target_of(prediction), logits, 7.0, criterion, impl=impl).total
        ),
        lambda dtype, device: (
            numbers(2, 2, 3, 5, dtype=dtype, device=device),
            numbers(2, 1, 2, 3, dtype=dtype, device=device, seed=1) * 2,
        ),
    )


CASES: dict[str, Case] = {
    "l1": Case(
        lambda prediction, impl: l1_loss(prediction, target_of(prediction), impl=impl),
        lambda dtype, device: (numbers(2, 2, 3, 5, dtype=dtype, device=device),),
    ),
    "l1_lab of ab": _l1_lab(2),
    "l1_lab of L,a,b": _l1_lab(3),
    "ciede2000": _ciede2000(),
    **{f"patch {criterion} {real}": _patch(criterion, real) for criterion in CRITERIA for real in (True, False)},
    **{f"discriminator {criterion}": _discriminator(criterion) for criterion in CRITERIA},
    **{f"generator {criterion}": _generator(criterion) for criterion in CRITERIA},
}
each_case = pytest.mark.parametrize("name", CASES)


def near(name: str, found: Tensor, expected: Tensor) -> None:
    """Assert that values agree; those of l1_lab_loss as closely as Lab values do."""
    if "lab" in name and found.dtype == torch.float32:
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerances.LAB_LOSS)
    else:
        assert_value_is_close(found, expected)


def gradients_near(name: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Assert that gradients agree."""
    of_largest = tolerances.CIEDE2000_GRADIENT if name == "ciede2000" else tolerances.GRADIENT_OF_LARGEST
    assert_gradients_are_close(found, expected, of_largest)


@each_case
@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_scaled_gradients_agree_with_the_reference(name: str, impl: Impl, dtype: torch.dtype) -> None:
    case = CASES[name]
    leaves = case.leaves(dtype, DEVICE)
    before = [leaf.clone() for leaf in leaves]
    value, gradients = value_and_gradients(case.loss, leaves, impl, scale=3)
    expected, expected_gradients = value_and_gradients(case.loss, leaves, "reference", scale=3)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [dtype] * len(leaves)
    near(name, value, expected)
    gradients_near(name, gradients, expected_gradients)
    assert all(torch.equal(one, other) for one, other in zip(leaves, before, strict=True))


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reference_computes_in_float32_whatever_comes_in(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    leaves = case.leaves(dtype, DEVICE)
    value, gradients = value_and_gradients(case.loss, leaves, "reference", scale=3)
    exact, exact_gradients = value_and_gradients(case.loss, [leaf.double() for leaf in leaves], "reference", scale=3)
    assert exact.dtype == torch.float64
    near(name, value, exact.float())
    gradients_near(name, gradients, exact_gradients)


@pytest.mark.parametrize("name", [name for name in CASES if name != "ciede2000"])  # some of its weights are constants
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_gradients_pass_gradcheck(name: str, impl: Impl) -> None:
    case = CASES[name]
    leaves = [leaf.requires_grad_() for leaf in case.leaves(torch.float64, "cpu")]
    if name == "l1" or name.startswith("generator"):
        # The target must be constant while gradcheck perturbs the prediction, also at the ties of L1.
        target = target_of(leaves[0])

        def loss(prediction: Tensor, *logits: Tensor) -> Tensor:
            if not logits:
                return l1_loss(prediction, target, impl=impl)
            criterion: Any = name.split()[1]
            return generator_loss(prediction, target, logits[0], 7.0, criterion, impl=impl).total

        assert torch.autograd.gradcheck(loss, leaves)
    else:
        assert torch.autograd.gradcheck(lambda *leaves: case.loss(*leaves, impl=impl), leaves)


@each_case
@pytest.mark.parametrize("impl", IMPLS)
def test_a_zero_from_upstream_gives_zero_gradients(name: str, impl: Impl) -> None:
    case = CASES[name]
    _, gradients = value_and_gradients(case.loss, case.leaves(torch.float32, DEVICE), impl, scale=0)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@each_case
@pytest.mark.parametrize("impl", KERNELS)
def test_same_bits_every_time_and_nothing_unwritten(name: str, impl: Impl) -> None:
    case = CASES[name]
    leaves = case.leaves(torch.float32, DEVICE)
    one, one_gradients = value_and_gradients(case.loss, leaves, impl)
    other, other_gradients = value_and_gradients(case.loss, leaves, impl)
    for first, second in zip([one, *one_gradients], [other, *other_gradients], strict=True):
        assert first.isfinite().all()
        assert torch.equal(first, second)


@each_case
@pytest.mark.parametrize("impl", IMPLS)
def test_values_are_the_same_without_gradients(name: str, impl: Impl) -> None:
    case = CASES[name]
    leaves = case.leaves(torch.float32, DEVICE)
    value, _ = value_and_gradients(case.loss, leaves, impl)
    plain = case.loss(*leaves, impl=impl)
    assert not plain.requires_grad
    with torch.no_grad():
        without = case.loss(*[leaf.detach().requires_grad_() for leaf in leaves], impl=impl)
    assert not without.requires_grad
    with torch.inference_mode():
        inference = case.loss(*leaves, impl=impl)
    for found in (plain, without, inference):
        assert torch.equal(found, value)


@each_case
@pytest.mark.parametrize("impl", IMPLS)
def test_each_leaf_alone_gets_the_gradient_it_gets_among_others(name: str, impl: Impl) -> None:
    case = CASES[name]
    leaves = case.leaves(torch.float32, DEVICE)
    _, expected = value_and_gradients(case.loss, leaves, impl)
    for asks in range(len(leaves)):
        tracked = [leaf.detach().requires_grad_(number == asks) for number, leaf in enumerate(leaves)]
        case.loss(*tracked, impl=impl).backward()  # type: ignore[no-untyped-call]
        for number, leaf in enumerate(tracked):
            assert (leaf.grad is not None) == (number == asks)
        torch.testing.assert_close(tracked[asks].grad, expected[asks], rtol=0, atol=0)


@each_case
@pytest.mark.parametrize("impl", IMPLS)
def test_a_second_backward_never_gives_a_wrong_gradient(name: str, impl: Impl) -> None:
    case = CASES[name]
    leaves = [leaf.requires_grad_() for leaf in case.leaves(torch.float32, DEVICE)]
    total = case.loss(*leaves, impl=impl) * 3
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    if DEVICE == "cuda" and impl != "reference":
        with pytest.raises(RuntimeError):
            torch.autograd.grad(total, leaves)
    else:
        try:
            second = torch.autograd.grad(total, leaves)
        except RuntimeError:
            assert impl == "triton"  # Triton's gradients are returned, not copied
        else:
            assert all(torch.equal(one, other) for one, other in zip(kept, second, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(kept, first, strict=True))


@pytest.mark.parametrize(
    "name", ["l1", "l1_lab of ab", "ciede2000", "patch bce True", "discriminator l1", "generator mse"]
)
@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("way", SECOND_DERIVATIVES)
def test_a_second_derivative_is_refused(name: str, way: str, impl: Impl) -> None:
    case = CASES[name]
    leaves = [leaf.requires_grad_() for leaf in case.leaves(torch.float32, DEVICE)]
    with pytest.raises(RuntimeError, match="second derivative"):
        SECOND_DERIVATIVES[way](case.loss(*leaves, impl=impl), leaves)


@pytest.mark.parametrize("real", [True, False])
def test_the_reference_has_the_second_derivative_of_bce(real: bool) -> None:
    logits = numbers(2, 5, dtype=torch.float64, device="cpu").requires_grad_()
    assert torch.autograd.gradgradcheck(lambda logits: patch_loss(logits, real, impl="reference"), logits)
    (first,) = torch.autograd.grad(patch_loss(logits, real, impl="reference"), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logits)
    probability = logits.detach().sigmoid()
    torch.testing.assert_close(second, probability * (1 - probability) / 10)


@each_case
def test_they_compile_with_their_gradients_without_a_graph_break(name: str) -> None:
    case = CASES[name]
    leaves = case.leaves(torch.float32, DEVICE)
    constants = [target_of(leaves[0])]
    image = random_images(2, 3, 5)

    def step(*leaves: Tensor) -> Tensor:
        if name == "l1":
            return l1_loss(leaves[0], constants[0]) * 3
        if "lab" in name:
            return l1_lab_loss(leaves[0], image) * 3
        if name == "ciede2000":
            return ciede2000_loss(leaves[0], constants[0]) * 3
        kind, *rest = name.split()
        criterion: Any = rest[0]
        if kind == "patch":
            return patch_loss(leaves[0], rest[1] == "True", criterion) * 3
        if kind == "discriminator":
            return discriminator_loss(leaves[0], leaves[1], criterion) * 3
        return generator_loss(leaves[0], constants[0], leaves[1], 7.0, criterion).total * 3

    torch.compiler.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        tracked = [leaf.detach().requires_grad_() for leaf in leaves]
        value = function(*tracked)
        results.append([value.detach(), *torch.autograd.grad(value, tracked)])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_the_parts_of_the_generator_loss_compile() -> None:
    prediction, logits = CASES["generator bce"].leaves(torch.float32, DEVICE)
    target = target_of(prediction)
    torch.compiler.reset()
    compiled = torch.compile(generator_loss, fullgraph=True, backend="aot_eager")
    found, expected = [f(prediction, target, logits, 7.0) for f in (compiled, generator_loss)]
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=0, atol=0)


@OPCHECK_READS_GRAD
@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize(
    "op", ["l1_loss", "l1_lab_loss", "ciede2000_loss", "patch_loss", "discriminator_loss", "generator_loss"]
)
def test_ops_are_registered_correctly(op: str, with_gradient: bool) -> None:
    prediction, target = numbers(2, 2, 3, 4), numbers(2, 2, 3, 4, seed=1)
    logits, other_logits = numbers(2, 1, 2, 3, seed=2), numbers(1, 1, 4, 3, seed=3)
    arguments: dict[str, tuple[Any, ...]] = {
        "l1_loss": (prediction, target),
        "l1_lab_loss": (prediction, random_images(2, 3, 4)),
        "ciede2000_loss": (prediction, target),
        "patch_loss": (logits, True, "bce"),
        "discriminator_loss": (logits, other_logits, "l1"),
        "generator_loss": (prediction, target, logits, 7.0, "mse"),
    }
    torch.library.opcheck(getattr(torch.ops.recolor_kernels, op).default, (*arguments[op], with_gradient))


# L1


@given(
    shape=SHAPES,
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    strides=st.tuples(layouts, layouts),
)
@drawn
def test_l1_of_any_shapes_strides_and_types_agrees_with_the_reference(
    shape: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype], strides: tuple[str, str]
) -> None:
    prediction = laid_out(numbers(*shape, dtype=dtypes[0]), strides[0])
    target = laid_out(target_of(prediction).to(dtypes[1]), strides[1])

    def loss(prediction: Tensor, impl: Impl) -> Tensor:
        return l1_loss(prediction, target, impl=impl)

    value, gradients = value_and_gradients(loss, [prediction], "triton", scale=3)
    expected, expected_gradients = value_and_gradients(loss, [prediction], "reference", scale=3)
    assert value.isnan() == (prediction.numel() == 0)
    assert_value_is_close(value, expected)
    assert gradients[0].dtype == dtypes[0]
    assert_gradients_are_close(gradients, expected_gradients)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_l1_takes_a_target_of_another_type(dtype: torch.dtype, target_dtype: torch.dtype, impl: Impl) -> None:
    prediction, target = numbers(2, 3, 7, dtype=dtype), numbers(2, 3, 7, dtype=target_dtype, seed=1)
    value, gradients = value_and_gradients(
        lambda prediction, impl: l1_loss(prediction, target, impl=impl), [prediction], impl
    )
    assert value.dtype == torch.float32
    assert_value_is_close(value, F.l1_loss(prediction.double(), target.double()))
    assert gradients[0].dtype == dtype
    assert_gradients_are_close(gradients, [(prediction.double() - target.double()).sign() / 42])


@pytest.mark.parametrize("impl", IMPLS)
def test_l1_has_no_gradient_where_prediction_and_target_are_equal(impl: Impl) -> None:
    prediction = torch.tensor([0.0, -0.0, 0.0, 1.5, -2.0, 1e-40, 1.0], device=DEVICE)
    target = torch.tensor([0.0, 0.0, -0.0, 1.5, -2.0, 1e-40, 1.0 - 2**-24], device=DEVICE)
    value, gradients = value_and_gradients(
        lambda prediction, impl: l1_loss(prediction, target, impl=impl), [prediction], impl
    )
    assert_value_is_close(value, torch.tensor(2**-24 / 7, device=DEVICE))
    assert_gradients_are_close(gradients, [torch.tensor([0.0] * 6 + [1 / 7], device=DEVICE)])


@pytest.mark.parametrize("impl", IMPLS)
def test_l1_reads_tensors_without_strides(impl: Impl) -> None:
    row, column = numbers(1, 7).requires_grad_(), numbers(5, 1, seed=1)
    value = l1_loss(row.expand(5, 7), column.expand(5, 7), impl=impl)
    difference = row.detach().double() - column.double()
    assert_value_is_close(value.detach(), difference.abs().mean())
    (found,) = torch.autograd.grad(value, row)
    assert_gradients_are_close([found], [difference.sign().sum(0, keepdim=True) / 35])


@pytest.mark.parametrize("impl", KERNELS)
def test_l1_refuses_a_target_that_requires_a_gradient(impl: Impl) -> None:
    prediction, target = numbers(2, 3).requires_grad_(), numbers(2, 3, seed=1).requires_grad_()
    with pytest.raises(ValueError, match="expected"):
        l1_loss(prediction, target, impl=impl)
    with pytest.raises(ValueError, match="expected"):
        generator_loss(prediction, target, numbers(3), 1.0, impl=impl)


def test_l1_of_the_reference_gives_the_target_its_gradient() -> None:
    prediction, target = numbers(2, 3).requires_grad_(), numbers(2, 3, seed=1).requires_grad_()
    one, other = torch.autograd.grad(l1_loss(prediction, target, impl="reference"), (prediction, target))
    assert torch.equal(one, -other)


@pytest.mark.parametrize("impl", IMPLS)
def test_l1_in_float16_loses_no_gradient_to_underflow(impl: Impl) -> None:
    count = UNDERFLOWING if impl == "triton" else 1_000_000
    prediction, target = numbers(count, dtype=torch.float16), numbers(count, dtype=torch.float16, seed=1)

    def loss(prediction: Tensor, impl: Impl) -> Tensor:
        return l1_loss(prediction, target.to(prediction.dtype), impl=impl)

    _, found = value_and_gradients(loss, [prediction], impl, scale=65536)
    _, expected = value_and_gradients(loss, [prediction.float()], "reference", scale=65536)
    assert_gradients_are_close(found, expected)


# L1 against an image's Lab


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize(
    ("impl", "dtype", "tolerance"),
    [
        ("auto", torch.float32, tolerances.LAB_LOSS),
        ("triton", torch.float32, tolerances.LAB_LOSS),
        ("reference", torch.float32, tolerances.LAB_LOSS),
        ("reference", torch.float64, tolerances.LAB_FLOAT64),
    ],
)
def test_l1_lab_equals_scikit_image(channels: int, impl: Impl, dtype: torch.dtype, tolerance: float) -> None:
    rgb = random_images(2, 17, 13)
    lab = rgb2lab(rgb.cpu().numpy() / 255.0) / [50, AB_SCALE, AB_SCALE] - [1, 0, 0]
    truth = torch.from_numpy(lab).permute(0, 3, 1, 2)[:, 3 - channels :].to(DEVICE)
    prediction = away_from(truth).to(dtype)
    value, gradients = value_and_gradients(
        lambda prediction, impl: l1_lab_loss(prediction, rgb, impl=impl), [prediction], impl
    )
    assert value.dtype == dtype
    difference = prediction.double() - truth
    assert abs(float(value) - float(difference.abs().mean())) <= tolerance
    assert_gradients_are_close(gradients, [difference.sign() / difference.numel()])


@given(
    shape=st.one_of(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 9)),
        st.sampled_from([(1, 1, 1021), (2, 32, 32), (1, 37, 61), (3, 29, 31)]),
    ),
    channels=st.sampled_from([2, 3]),
    dtype=st.sampled_from(DTYPES),
    strides=layouts,
    image_strides=image_layouts,
)
@drawn
def test_l1_lab_of_any_shapes_strides_and_types_agrees_with_the_reference(
    shape: tuple[int, int, int], channels: int, dtype: torch.dtype, strides: str, image_strides: str
) -> None:
    rgb = image_laid_out(random_images(*shape), image_strides)
    prediction = laid_out(away_from(lab_of(rgb, channels)).to(dtype), strides)

    def loss(prediction: Tensor, impl: Impl) -> Tensor:
        return l1_lab_loss(prediction, rgb, impl=impl)

    value, gradients = value_and_gradients(loss, [prediction], "triton", scale=3)
    expected, expected_gradients = value_and_gradients(loss, [prediction], "reference", scale=3)
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerances.LAB_LOSS, equal_nan=True)
    assert_gradients_are_close(gradients, expected_gradients)


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("channels", [2, 3])
def test_l1_lab_equals_the_steps_it_stands_for(channels: int, impl: Impl) -> None:
    rgb = random_images(2, 5, 7)
    target = torch.cat(rgb_to_lab(rgb, impl=impl), dim=1)[:, 3 - channels :]
    prediction = numbers(2, channels, 5, 7)
    found = l1_lab_loss(prediction, rgb, impl=impl)
    torch.testing.assert_close(found, l1_loss(prediction, target, impl=impl), rtol=0, atol=tolerances.LAB_LOSS)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channels", [2, 3])
def test_l1_lab_of_an_images_own_lab_is_zero(channels: int, impl: Impl) -> None:
    rgb = random_images(2, 5, 7)
    prediction = torch.cat(rgb_to_lab(rgb, impl=impl), dim=1)[:, 3 - channels :]
    value, gradients = value_and_gradients(
        lambda prediction, impl: l1_lab_loss(prediction, rgb, impl=impl), [prediction], impl
    )
    assert value <= tolerances.LAB_LOSS
    if DEVICE == "cpu":  # a GPU's compiler may contract another way in another kernel
        assert value == 0
        assert torch.equal(gradients[0], torch.zeros_like(prediction))


# The adversarial losses


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_patch_losses_equal_torchs(real: bool, impl: Impl, dtype: torch.dtype) -> None:
    leaf = numbers(2, 1, 13, 11, dtype=dtype) * 3
    exact = leaf.detach().double().requires_grad_()
    labels = torch.full_like(exact, float(real))
    expected = {
        "bce": F.binary_cross_entropy_with_logits(exact, labels),
        "l1": F.l1_loss(exact.sigmoid(), labels),
        "mse": F.mse_loss(exact, labels),
    }
    for criterion in CRITERIA:

        def loss(logits: Tensor, impl: Impl, criterion: Criterion = criterion) -> Tensor:
            return patch_loss(logits, real, criterion, impl=impl)

        value, gradients = value_and_gradients(loss, [leaf], impl)
        assert_value_is_close(value, expected[criterion].detach())
        assert_gradients_are_close(gradients, torch.autograd.grad(expected[criterion], exact))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_have_finite_values_and_gradients(
    real: bool, criterion: Criterion, impl: Impl, dtype: torch.dtype
) -> None:
    for logit in (-10000.0, -100.0, -20.0, 0.0, 20.0, 100.0, 10000.0):
        leaf = torch.tensor([logit], dtype=dtype, device=DEVICE)

        def loss(logits: Tensor, impl: Impl) -> Tensor:
            return patch_loss(logits, real, criterion, impl=impl)

        value, gradients = value_and_gradients(loss, [leaf], impl)
        exact, exact_gradients = value_and_gradients(loss, [leaf.double()], "reference")
        assert exact.isfinite()
        assert exact_gradients[0].isfinite().all()
        # Absolute: 1 - sigmoid(20) is nothing in float32.
        atol = tolerances.GRADIENT_OF_LARGEST
        torch.testing.assert_close(value, exact.float(), rtol=tolerances.LOSS_RELATIVE, atol=atol)
        torch.testing.assert_close(
            gradients[0].double(), exact_gradients[0], rtol=tolerances.GRADIENT_RELATIVE + _step(dtype), atol=atol
        )


def _step(dtype: torch.dtype) -> float:
    return 0 if dtype == torch.float32 else torch.finfo(dtype).eps


@given(
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    strides=layouts,
    criterion=st.sampled_from(CRITERIA),
    real=st.booleans(),
)
@drawn
def test_patch_loss_of_any_shapes_strides_and_types_agrees_with_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, strides: str, criterion: Criterion, real: bool
) -> None:
    logits = laid_out(numbers(*shape, dtype=dtype) * 2, strides)

    def loss(logits: Tensor, impl: Impl) -> Tensor:
        return patch_loss(logits, real, criterion, impl=impl)

    value, gradients = value_and_gradients(loss, [logits], "triton", scale=3)
    expected, expected_gradients = value_and_gradients(loss, [logits], "reference", scale=3)
    assert value.isnan() == (logits.numel() == 0)
    assert_value_is_close(value, expected)
    assert_gradients_are_close(gradients, expected_gradients)


@given(
    shapes=st.tuples(SHAPES, SHAPES),
    dtype=st.sampled_from(DTYPES),
    strides=st.tuples(layouts, layouts),
    criterion=st.sampled_from(CRITERIA),
)
@drawn
def test_discriminator_loss_of_any_shapes_strides_and_types_agrees_with_the_reference(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    strides: tuple[str, str],
    criterion: Criterion,
) -> None:
    on_real = laid_out(numbers(*shapes[0], dtype=dtype) * 2, strides[0])
    on_fake = laid_out(numbers(*shapes[1], dtype=dtype, seed=1) * 2, strides[1])

    def loss(on_real: Tensor, on_fake: Tensor, impl: Impl) -> Tensor:
        return discriminator_loss(on_real, on_fake, criterion, impl=impl)

    value, gradients = value_and_gradients(loss, [on_real, on_fake], "triton", scale=3)
    expected, expected_gradients = value_and_gradients(loss, [on_real, on_fake], "reference", scale=3)
    assert value.isnan() == (0 in (on_real.numel(), on_fake.numel()))
    assert_value_is_close(value, expected)
    assert_gradients_are_close(gradients, expected_gradients)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_discriminator_loss_is_half_of_both_patch_losses(criterion: Criterion, impl: Impl) -> None:
    on_real, on_fake = numbers(2, 1, 9, 7), numbers(5, 1, 4, 3, seed=1)
    expected = 0.5 * (patch_loss(on_real, True, criterion) + patch_loss(on_fake, False, criterion))
    assert_value_is_close(discriminator_loss(on_real, on_fake, criterion, impl=impl), expected)
    double = discriminator_loss(on_real.double(), on_fake.double(), criterion, impl="reference")
    assert double.dtype == torch.float64


@given(
    shapes=st.tuples(SHAPES, SHAPES),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    strides=st.tuples(layouts, layouts, layouts),
    criterion=st.sampled_from(CRITERIA),
    l1_weight=st.sampled_from([0.0, 0.5, 1.0, 100.0]),
)
@drawn
def test_generator_loss_of_any_shapes_strides_and_types_agrees_with_the_reference(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtypes: tuple[torch.dtype, torch.dtype],
    strides: tuple[str, str, str],
    criterion: Criterion,
    l1_weight: float,
) -> None:
    prediction = laid_out(numbers(*shapes[0], dtype=dtypes[0]), strides[0])
    target = laid_out(target_of(prediction).to(dtypes[1]), strides[1])
    logits = laid_out(numbers(*shapes[1], dtype=dtypes[0], seed=1) * 2, strides[2])

    def loss(prediction: Tensor, logits: Tensor, impl: Impl) -> Tensor:
        return generator_loss(prediction, target, logits, l1_weight, criterion, impl=impl).total

    value, gradients = value_and_gradients(loss, [prediction, logits], "triton", scale=3)
    expected, expected_gradients = value_and_gradients(loss, [prediction, logits], "reference", scale=3)
    assert value.isnan() == (0 in (prediction.numel(), logits.numel()))
    assert_value_is_close(value, expected)
    assert_gradients_are_close(gradients, expected_gradients)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_generator_loss_is_the_weighted_sum_of_its_parts(criterion: Criterion, impl: Impl) -> None:
    prediction, target = numbers(2, 2, 9, 7, dtype=torch.bfloat16), numbers(2, 2, 9, 7, seed=1)
    logits = numbers(2, 1, 3, 5, dtype=torch.bfloat16, seed=2)
    for weight in (0.0, 1.0, 100.0):
        losses = generator_loss(prediction, target, logits, weight, criterion, impl=impl)
        assert losses._fields == ("total", "l1", "adversarial")
        assert [loss.shape for loss in losses] == [()] * 3
        assert [loss.dtype for loss in losses] == [torch.float32] * 3
        assert_value_is_close(losses.l1, F.l1_loss(prediction.double(), target.double()))
        assert_value_is_close(losses.adversarial, patch_loss(logits.double(), True, criterion, impl="reference"))
        assert_value_is_close(losses.total, weight * losses.l1 + losses.adversarial)


@pytest.mark.parametrize("impl", IMPLS)
def test_only_the_total_of_the_generator_loss_carries_a_gradient(impl: Impl) -> None:
    prediction, logits = numbers(2, 2, 3, 5).requires_grad_(), numbers(2, 1, 3, 3, seed=1).requires_grad_()
    losses = generator_loss(prediction, numbers(2, 2, 3, 5, seed=2), logits, 10.0, impl=impl)
    assert [loss.requires_grad for loss in losses] == [True, False, False]


@pytest.mark.parametrize("impl", IMPLS)
def test_a_weight_of_zero_gives_the_prediction_a_gradient_of_zeros(impl: Impl) -> None:
    prediction, logits = numbers(2, 2, 3, 5).requires_grad_(), numbers(2, 1, 3, 3, seed=1)
    generator_loss(prediction, numbers(2, 2, 3, 5, seed=2), logits, 0.0, impl=impl).total.backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_patch_losses_in_float16_lose_no_gradient_to_underflow(criterion: Criterion, impl: Impl) -> None:
    count = UNDERFLOWING if impl == "triton" else 1_000_000
    logits = numbers(count, dtype=torch.float16)

    def loss(logits: Tensor, impl: Impl) -> Tensor:
        return patch_loss(logits, True, criterion, impl=impl)

    _, found = value_and_gradients(loss, [logits], impl, scale=65536)
    _, expected = value_and_gradients(loss, [logits.float()], "reference", scale=65536)
    assert_gradients_are_close(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_generator_loss_in_float16_loses_no_gradient_to_underflow(impl: Impl) -> None:
    count = UNDERFLOWING if impl == "triton" else 1_000_000
    prediction, target = numbers(count, dtype=torch.float16), numbers(count, seed=1)
    logits = numbers(30, dtype=torch.float16, seed=2)

    def loss(prediction: Tensor, logits: Tensor, impl: Impl) -> Tensor:
        return generator_loss(prediction, target, logits, 100.0, impl=impl).total

    _, found = value_and_gradients(loss, [prediction, logits], impl, scale=1024)
    _, expected = value_and_gradients(loss, [prediction.float(), logits.float()], "reference", scale=1024)
    assert_gradients_are_close(found, expected)


# Invalid arguments


def _zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = DEVICE) -> Tensor:
    return torch.zeros(*shape, dtype=dtype, device=device)


def _weighted(weight: float) -> Callable[[], Any]:
    return lambda: generator_loss(_zeros(2), _zeros(2), _zeros(2), weight)


RGB = (1, 4, 4, 3)
INT, BYTE, DOUBLE = torch.int32, torch.uint8, torch.float64
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "l1: shapes": (lambda: l1_loss(_zeros(2), _zeros(3)), r"\(2,\).*\(3,\)"),
    "l1: shapes that broadcast": (lambda: l1_loss(_zeros(2, 3), _zeros(1, 3)), r"\(2, 3\).*\(1, 3\)"),
    "l1: integer prediction": (lambda: l1_loss(_zeros(2, dtype=INT), _zeros(2)), r"int32"),
    "l1: integer target": (lambda: l1_loss(_zeros(2), _zeros(2, dtype=INT)), r"int32"),
    "l1: devices": (lambda: l1_loss(_zeros(2), _zeros(2, device="meta")), r"meta"),
    "l1: impl": (lambda: l1_loss(_zeros(2), _zeros(2), impl="cuda"), r"impl='cuda'"),  # type: ignore[arg-type]
    "l1: float64": (lambda: l1_loss(_zeros(2, dtype=DOUBLE), _zeros(2, dtype=DOUBLE), impl="triton"), r"float64"),
    "l1: float64 target": (lambda: l1_loss(_zeros(2), _zeros(2, dtype=DOUBLE), impl="triton"), r"float64"),
    "l1_lab: one channel": (lambda: l1_lab_loss(_zeros(1, 1, 4, 4), _zeros(*RGB, dtype=BYTE)), r"1, 1, 4, 4"),
    "l1_lab: four channels": (lambda: l1_lab_loss(_zeros(1, 4, 4, 4), _zeros(*RGB, dtype=BYTE)), r"1, 4, 4, 4"),
    "l1_lab: no batch": (lambda: l1_lab_loss(_zeros(2, 4, 4), _zeros(*RGB, dtype=BYTE)), r"2, 4, 4"),
    "l1_lab: width": (lambda: l1_lab_loss(_zeros(1, 2, 4, 5), _zeros(*RGB, dtype=BYTE)), r"1, 2, 4, 5"),
    "l1_lab: batch": (lambda: l1_lab_loss(_zeros(2, 2, 4, 4), _zeros(*RGB, dtype=BYTE)), r"2, 2, 4, 4"),
    "l1_lab: floating image": (lambda: l1_lab_loss(_zeros(1, 2, 4, 4), _zeros(*RGB)), r"float32"),
    "l1_lab: image in NCHW": (
        lambda: l1_lab_loss(_zeros(1, 2, 4, 4), _zeros(1, 3, 4, 4, dtype=BYTE)),
        r"1, 3, 4, 4",
    ),
    "l1_lab: integers": (lambda: l1_lab_loss(_zeros(1, 2, 4, 4, dtype=INT), _zeros(*RGB, dtype=BYTE)), r"int32"),
    "l1_lab: devices": (lambda: l1_lab_loss(_zeros(1, 2, 4, 4), _zeros(*RGB, dtype=BYTE, device="meta")), r"meta"),
    "l1_lab: float64": (
        lambda: l1_lab_loss(_zeros(1, 2, 4, 4, dtype=DOUBLE), _zeros(*RGB, dtype=BYTE), impl="triton"),
        r"float64",
    ),
    "l1_lab: impl": (
        lambda: l1_lab_loss(_zeros(1, 2, 4, 4), _zeros(*RGB, dtype=BYTE), impl="cuda"),  # type: ignore[arg-type]
        r"impl='cuda'",
    ),
    "ciede2000: shapes": (lambda: ciede2000_loss(_zeros(1, 2, 4, 4), _zeros(1, 2, 4, 5)), r"1, 2, 4, 4.*1, 2, 4, 5"),
    "ciede2000: Lab": (lambda: ciede2000_loss(_zeros(1, 3, 4, 4), _zeros(1, 3, 4, 4)), r"1, 3, 4, 4"),
    "ciede2000: no batch": (lambda: ciede2000_loss(_zeros(2, 4, 4), _zeros(2, 4, 4)), r"2, 4, 4"),
    "ciede2000: channels last": (lambda: ciede2000_loss(_zeros(1, 4, 4, 2), _zeros(1, 4, 4, 2)), r"1, 4, 4, 2"),
    "ciede2000: integers": (lambda: ciede2000_loss(_zeros(1, 2, 4, 4), _zeros(1, 2, 4, 4, dtype=INT)), r"int32"),
    "ciede2000: devices": (lambda: ciede2000_loss(_zeros(1, 2, 4, 4), _zeros(1, 2, 4, 4, device="meta")), r"meta"),
    "ciede2000: impl": (
        lambda: ciede2000_loss(_zeros(1, 2, 4, 4), _zeros(1, 2, 4, 4), impl="cuda"),  # type: ignore[arg-type]
        r"impl='cuda'",
    ),
    "ciede2000: float64": (
        lambda: ciede2000_loss(_zeros(1, 2, 4, 4), _zeros(1, 2, 4, 4, dtype=DOUBLE), impl="triton"),
        r"float64",
    ),
    "patch: integers": (lambda: patch_loss(_zeros(2, dtype=INT), True), r"int32"),
    "patch: criterion": (lambda: patch_loss(_zeros(2), True, "hinge"), r"criterion='hinge'"),  # type: ignore[arg-type]
    "patch: impl": (lambda: patch_loss(_zeros(2), True, impl="cuda"), r"impl='cuda'"),  # type: ignore[arg-type]
    "patch: float64": (lambda: patch_loss(_zeros(2, dtype=DOUBLE), True, impl="triton"), r"float64"),
    "discriminator: integers": (
        lambda: discriminator_loss(_zeros(2, dtype=INT), _zeros(2, dtype=INT)),
        r"int32",
    ),
    "discriminator: types": (lambda: discriminator_loss(_zeros(2), _zeros(2, dtype=torch.bfloat16)), r"bfloat16"),
    "discriminator: devices": (lambda: discriminator_loss(_zeros(2), _zeros(2, device="meta")), r"meta"),
    "discriminator: criterion": (
        lambda: discriminator_loss(_zeros(2), _zeros(2), "hinge"),  # type: ignore[arg-type]
        r"criterion='hinge'",
    ),
    "discriminator: impl": (
        lambda: discriminator_loss(_zeros(2), _zeros(2), impl="cuda"),  # type: ignore[arg-type]
        r"impl='cuda'",
    ),
    "discriminator: float64": (
        lambda: discriminator_loss(_zeros(2, dtype=DOUBLE), _zeros(2, dtype=DOUBLE), impl="triton"),
        r"float64",
    ),
    "generator: shapes": (lambda: generator_loss(_zeros(2), _zeros(3), _zeros(2), 1.0), r"\(2,\).*\(3,\)"),
    "generator: integer prediction": (
        lambda: generator_loss(_zeros(2, dtype=INT), _zeros(2), _zeros(2), 1.0),
        r"int32",
    ),
    "generator: integer target": (lambda: generator_loss(_zeros(2), _zeros(2, dtype=INT), _zeros(2), 1.0), r"int32"),
    "generator: integer logits": (lambda: generator_loss(_zeros(2), _zeros(2), _zeros(2, dtype=INT), 1.0), r"int32"),
    "generator: target's device": (
        lambda: generator_loss(_zeros(2), _zeros(2, device="meta"), _zeros(2), 1.0),
        r"meta",
    ),
    "generator: logits' device": (
        lambda: generator_loss(_zeros(2), _zeros(2), _zeros(2, device="meta"), 1.0),
        r"meta",
    ),
    "generator: criterion": (
        lambda: generator_loss(_zeros(2), _zeros(2), _zeros(2), 1.0, "hinge"),  # type: ignore[arg-type]
        r"criterion='hinge'",
    ),
    "generator: impl": (
        lambda: generator_loss(_zeros(2), _zeros(2), _zeros(2), 1.0, impl="cuda"),  # type: ignore[arg-type]
        r"impl='cuda'",
    ),
    "generator: float64 logits": (
        lambda: generator_loss(_zeros(2), _zeros(2), _zeros(2, dtype=DOUBLE), 1.0, impl="triton"),
        r"float64",
    ),
    "generator: negative weight": (_weighted(-1.0), r"l1_weight.*-1"),
    "generator: weight NaN": (_weighted(float("nan")), r"l1_weight.*nan"),
    "generator: infinite weight": (_weighted(float("inf")), r"l1_weight.*inf"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_was_expected_and_what_arrived(name: str) -> None:
    call, arrived = WRONG[name]
    with pytest.raises(ValueError, match="expected") as error:
        call()
    assert error.match(arrived)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_every_implementation_checks_the_weight(weight: float) -> None:
    for impl in IMPLS:
        with pytest.raises(ValueError, match=r"l1_weight.*expected"):
            generator_loss(_zeros(2), _zeros(2), _zeros(2), weight, impl=impl)


def test_losses_are_public() -> None:
    names = {"l1_loss", "l1_lab_loss", "ciede2000_loss", "patch_loss", "discriminator_loss"}
    names |= {"generator_loss", "GeneratorLoss"}
    assert names <= set(recolor_kernels.__all__)
    assert all(callable(getattr(recolor_kernels, name)) for name in names)
