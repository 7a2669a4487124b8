"""Norm, activation and dropout in one op, on a GPU or in Triton's interpreter: against the reference, which is compared
with torch's layers."""

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recolor_kernels import Impl, Tracked, launch, norm_act, reference
from tests.support import tolerances
from tests.support.color_samples import (
    DEVICE,
    DTYPES,
    IMPLS,
    LAYOUTS,
    OPCHECK_READS_GRAD,
    SECOND_DERIVATIVES,
    assert_gradients_are_close,
    laid_out,
    numbers,
)

KERNELS: tuple[Impl, ...] = ("auto", "triton")
module: Any = sys.modules["recolor_kernels.norm_act"]

# What networks use: the options of norm_act, and whether features are skipped.
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "leaky": ({"slope": 0.2}, False),
    "instance": ({"slope": 0.2, "instance": True}, False),
    "joined": ({"slope": 0.0}, True),
    "joined with dropout": ({"slope": 0.0, "dropout": 0.5}, True),
    "instance joined with dropout": ({"slope": 0.0, "dropout": 0.25, "instance": True}, True),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def leaves_of(
    kind: str, n: int = 2, channels: int = 20, side: int = 5, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Features, weight and bias, and skipped features if the kind has any."""
    x = numbers(n, channels, side, side, dtype=dtype) * 3 + numbers(channels, 1, 1, dtype=dtype, seed=1)
    weight, bias = 1 + numbers(channels, seed=2) / 4, numbers(channels, seed=3)
    if dtype == torch.float64:
        weight, bias = weight.double(), bias.double()
    skipped = [numbers(n, channels + 3, side, side, dtype=dtype, seed=4)] if KINDS[kind][1] else []
    return [x.to(dtype), weight, bias, *skipped]


def run(kind: str, leaves: Sequence[Tensor], impl: Impl, seed: int = 7, **more: Any) -> Tensor:
    x, weight, bias, *skipped = leaves
    options = KINDS[kind][0] | more
    if options.get("dropout"):
        options["seed"] = torch.tensor(seed * 2**33 + 5, device=x.device)
    return norm_act(x, weight, bias, skipped_NSHW=skipped[0] if skipped else None, impl=impl, **options)


def run_with_gradients(kind: str, leaves: Sequence[Tensor], impl: Impl, **more: Any) -> list[Tensor]:
    tracked = [leaf.detach().requires_grad_() for leaf in leaves]
    result = run(kind, tracked, impl, **more)
    upstream = numbers(*result.shape, dtype=result.dtype, seed=5, device=str(result.device))
    return [result.detach(), *torch.autograd.grad(result, tracked, upstream)]


def near(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert_gradients_are_close(found, expected, tolerances.NORM_OF_LARGEST)


@each_kind
@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_agree_with_the_reference(kind: str, impl: Impl, dtype: torch.dtype) -> None:
    leaves = leaves_of(kind, dtype=dtype)
    found = run_with_gradients(kind, leaves, impl)
    assert [tensor.dtype for tensor in found] == [dtype, *(leaf.dtype for leaf in leaves)]
    near(found, run_with_gradients(kind, leaves, "reference"))


@pytest.mark.parametrize("impl", KERNELS)
@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    n=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 15, 16, 64, 65, 100]),
    side=st.sampled_from([2, 3, 8]),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_shape_and_strides_agree_with_the_reference(
    impl: Impl, kind: str, n: int, channels: int, side: int, layout: str
) -> None:
    leaves = leaves_of(kind, n, channels, side)
    expected = run_with_gradients(kind, leaves, "reference")
    x, weight, bias, *skipped = leaves
    found = run_with_gradients(kind, [laid_out(x, layout), weight, bias, *(laid_out(s, layout) for s in skipped)], impl)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    near(found, expected)


@each_kind
@pytest.mark.parametrize("programs", [1, 3])
def test_groups_of_several_tiles_and_parts_are_summed_to_the_last_row(
    kind: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE_BYTES", 512)
    monkeypatch.setattr(module, "PROGRAMS", programs)
    leaves = leaves_of(kind, n=3, channels=16, side=7)  # 8 rows a tile, of 147 or 49
    near(run_with_gradients(kind, leaves, "triton"), run_with_gradients(kind, leaves, "reference"))


@pytest.mark.parametrize("instance", [False, True])
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("impl", IMPLS)
def test_results_are_those_of_torchs_layers(impl: Impl, slope: float, instance: bool) -> None:
    x = numbers(3, 6, 4, 5)
    norm: Any = nn.InstanceNorm2d(6, affine=True) if instance else nn.BatchNorm2d(6)
    norm = norm.to(DEVICE)
    with torch.no_grad():
        norm.weight.copy_(1 + numbers(6, seed=1) / 4)
        norm.bias.copy_(numbers(6, seed=2))
    zeros, ones = torch.zeros(6, device=DEVICE), torch.ones(6, device=DEVICE)
    tracked = None if instance else Tracked(zeros, ones, torch.tensor(0, device=DEVICE), norm.momentum)
    upstream = numbers(3, 6, 4, 5, seed=3)
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for _ in range(2):
        for results, function in ((expected, None), (found, impl)):
            leaf = x.detach().requires_grad_()
            if function is None:
                y = nn.functional.leaky_relu(norm(leaf), slope)
            else:
                y = norm_act(leaf, norm.weight, norm.bias, slope, instance=instance, tracked=tracked, impl=function)
            results += [y.detach(), *torch.autograd.grad(y, (leaf, norm.weight, norm.bias), upstream)]
    near(found, expected)
    if tracked:
        near([tracked.mean, tracked.variance], [norm.running_mean, norm.running_var])
        assert int(tracked.batches) == int(norm.num_batches_tracked) == 2


@each_kind
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_gradients_pass_gradcheck(kind: str, impl: Impl) -> None:
    leaves = [leaf.cpu().requires_grad_() for leaf in leaves_of(kind, 2, 3, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *leaves: run(kind, leaves, impl), leaves)


@pytest.mark.parametrize("impl", KERNELS)
def test_statistics_are_exact_where_the_mean_is_large(impl: Impl) -> None:
    x = numbers(4, 8, 16, 16) + 4096
    wide = x.double()
    expected = (wide - wide.mean((0, 2, 3), keepdim=True)) / (
        wide.var((0, 2, 3), keepdim=True, correction=0) + 1e-5
    ).sqrt()
    found = norm_act(x, torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE), 1.0, impl=impl)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerances.NORM_LARGE_MEAN)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_value_that_is_not_a_number_spoils_its_channel_alone(impl: Impl) -> None:
    x, weight, bias, skipped = leaves_of("joined", channels=3)
    x[1, 1, 2, 2] = skipped[0, 2, 1, 1] = torch.nan
    spoiled = run("joined", (x, weight, bias, skipped), impl).isnan()
    assert spoiled.sum((0, 2, 3)).tolist() == [0, 0, 1, 0, 0, 0, 0, 50, 0]


# ---- dropout ----


def test_random_bits_are_those_of_philox() -> None:
    """The known answer of Random123's philox4x32-10."""
    zero = torch.tensor(0)
    assert int(reference.philox(zero, zero, zero)) == 0x6627E8D5


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_dropout_keeps_what_the_reference_keeps(impl: Impl, dropout: float) -> None:
    x, weight, bias = leaves_of("leaky", n=3, channels=40, side=9)
    seed = torch.tensor(2**62 + 12345, device=DEVICE)
    found = norm_act(x, weight, bias + 9, 0.2, dropout=dropout, seed=seed, impl=impl)  # nothing is zero by itself
    kept = reference.dropout_mask(seed, x.shape, dropout)
    assert torch.equal(found != 0, kept)
    assert float(kept.double().mean()) == pytest.approx(1 - dropout, abs=tolerances.FAIR_COIN)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_seed_decides_what_is_dropped(impl: Impl) -> None:
    leaves = leaves_of("joined with dropout")
    one, again, other = (run("joined with dropout", leaves, impl, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("impl", KERNELS)
def test_a_recomputed_forward_pass_drops_the_same(impl: Impl) -> None:
    leaves = [leaf.requires_grad_() for leaf in leaves_of("joined with dropout")]

    def loss(*leaves: Tensor) -> Tensor:
        return run("joined with dropout", leaves, impl).square().sum()

    recomputed = torch.utils.checkpoint.checkpoint(loss, *leaves, use_reentrant=False)
    found = torch.autograd.grad(recomputed, leaves)
    assert all(map(torch.equal, found, torch.autograd.grad(loss(*leaves), leaves)))


# ---- as an op ----


@each_kind
@pytest.mark.parametrize("impl", KERNELS)
def test_same_bits_every_time_and_nothing_unwritten(kind: str, impl: Impl) -> None:
    leaves = leaves_of(kind, n=3, channels=70)
    one, other = (run_with_gradients(kind, leaves, impl) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        assert first.isfinite().all()
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["leaky", "instance joined with dropout"])
def test_three_launches_forward_and_three_backward(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = launch.launch

    def noted(kernel: Any, programs: int, /, **arguments: Any) -> None:
        seen.append(kernel.__name__)
        real(kernel, programs, **arguments)

    monkeypatch.setattr(launch, "launch", noted)
    run_with_gradients(kind, leaves_of(kind), "triton")
    assert seen == [
        "_statistics_kernel", "_merge_statistics_kernel", "_norm_act_kernel",
        "_gradient_sums_kernel", "_merge_gradients_kernel", "_norm_act_backward_kernel",
    ]  # fmt: skip


def test_features_in_channels_last_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []
    monkeypatch.setattr(launch, "launch", lambda kernel, programs, **arguments: taken.append(arguments["x_ptr"]))
    monkeypatch.setattr(module._Split, "launch_merging", lambda split, kernel, **arguments: None)
    leaves = [laid_out(leaf, "channels last") for leaf in leaves_of("joined")]
    run("joined", leaves, "triton")
    assert {tensor.data_ptr() for tensor in taken} == {leaves[0].data_ptr()}


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("way", SECOND_DERIVATIVES)
def test_a_second_derivative_is_refused(way: str, impl: Impl) -> None:
    leaves = [leaf.requires_grad_() for leaf in leaves_of("joined")]
    with pytest.raises(RuntimeError, match="second derivative"):
        SECOND_DERIVATIVES[way](run("joined", leaves, impl).square().sum(), leaves)


@each_kind
def test_it_compiles_with_its_gradients_without_a_graph_break(kind: str) -> None:
    torch.compiler.reset()
    results = []
    for compiled in (False, True):
        leaves = [leaf.requires_grad_() for leaf in leaves_of(kind)]
        channels = leaves[1].shape
        running = [torch.zeros(channels), torch.ones(channels), torch.tensor(0)]
        seed = torch.tensor(3, device=DEVICE)

        def step(*leaves: Tensor, running: Sequence[Tensor], seed: Tensor) -> Tensor:
            x, weight, bias, *skipped = leaves
            options = dict(KINDS[kind][0])
            tracked = None if options.get("instance") else Tracked(running[0], running[1], running[2], 0.1)
            if options.get("dropout"):
                options["seed"] = seed
            return norm_act(x, weight, bias, tracked=tracked, skipped_NSHW=skipped[0] if skipped else None, **options)

        function = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
        running = [tensor.to(DEVICE) for tensor in running]
        result = function(*leaves, running=running, seed=seed)
        results.append([result.detach(), *torch.autograd.grad(result.square().sum(), leaves), *running])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@OPCHECK_READS_GRAD
@pytest.mark.parametrize("instance", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_ops_are_registered_correctly(joined: bool, instance: bool) -> None:
    x, weight, bias, *skipped = (leaf.requires_grad_() for leaf in leaves_of("joined" if joined else "leaky"))
    ops, seed = torch.ops.recolor_kernels, torch.tensor(1, device=DEVICE)
    tracked = [tensor.to(DEVICE) for tensor in (torch.zeros(20), torch.ones(20), torch.tensor(0))]
    running = [None] * 3 if instance else tracked
    torch.library.opcheck(ops.norm_statistics.default, (x.detach(), *running, 0.1, 1e-5, instance))
    statistics = reference.norm_statistics(x.detach(), None, None, None, 0.0, 1e-5, instance)
    rest = (x, weight, bias, *statistics, seed, skipped[0] if skipped else None, 0.2, 0.5)
    torch.library.opcheck(ops.norm_act.default, rest)
    d_y = numbers(2, 43 if joined else 20, 5, 5).contiguous(memory_format=torch.channels_last)
    detached = [value.detach() if isinstance(value, Tensor) else value for value in rest]
    torch.library.opcheck(ops.norm_act_backward.default, (d_y, *detached))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"x_NCHW": torch.zeros(2, 3, 4)}, r"expected features \(N,C,H,W\)"),
        ({"weight": torch.ones(4)}, r"expected features \(N,C,H,W\), weight and bias \(C,\)"),
        ({"x_NCHW": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, "expected a floating tensor"),
        ({"x_NCHW": torch.zeros(1, 3, 1, 1)}, "more than 1 value per channel"),
        ({"x_NCHW": torch.zeros(2, 3, 1, 1), "instance": True}, "more than 1 value per channel"),
        ({"x_NCHW": torch.zeros(0, 3, 4, 4)}, "more than 1 value per channel"),
        ({"dropout": 1.0}, "dropout=1.0: expected a number from 0 to below 1"),
        ({"dropout": 0.5}, "expected a seed for dropout, int64"),
        ({"dropout": 0.5, "seed": torch.zeros(1)}, "expected a seed for dropout, int64"),
        ({"skipped_NSHW": torch.zeros(2, 5, 4, 3)}, r"expected skipped features \(2,S,4,4\)"),
        ({"skipped_NSHW": torch.zeros(2, 5, 4, 4).half()}, "expected features of one type"),
        ({"skipped_NSHW": torch.zeros(2, 5, 4, 4, device="meta")}, "on one device"),
        (
            {"instance": True, "tracked": Tracked(torch.zeros(3), torch.ones(3), torch.tensor(0), 0.1)},
            "expected no tracked statistics",
        ),
    ],
)
def test_other_arguments_are_refused(change: dict[str, Any], problem: str, impl: Impl) -> None:
    arguments: dict[str, Any] = {
        "x_NCHW": torch.zeros(2, 3, 4, 4),
        "weight": torch.ones(3),
        "bias": torch.zeros(3),
        "slope": 0.2,
    }
    with pytest.raises(ValueError, match=problem):
        norm_act(**arguments | change, impl=impl)
