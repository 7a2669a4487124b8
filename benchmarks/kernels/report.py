"""Results of `benchmarks.kernels`, as JSON and as text. Neither has times of an op that failed its check."""

import re
from collections.abc import Sequence
from statistics import quantiles
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

# Targets on Hopper, for working sets of at least this size: share of the copy's bandwidth, and speedup.
LARGE_BYTES = 64e6
SHARES = {"conversion": 0.90, "loss": 0.85}
RATIOS = {"kornia": 40.0, "kornia_compiled": 4.0}


# Layers of networks read their input twice, first for its statistics: no share of the copy's bandwidth is their target.
Kind = Literal["conversion", "loss", "difference", "metric", "layer"]


class Part(BaseModel):
    """Anything in a report: no unknown keys, not mutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Times(Part):
    """Times of one call [us], over all rounds."""

    p20_us: PositiveFloat
    p50_us: PositiveFloat
    p80_us: PositiveFloat
    share_of_copy: PositiveFloat = Field(description="Least bytes over the median time, over the copy's bandwidth.")
    times_ours: PositiveFloat | None = Field(description="Median over ours in the same mode. Above 1, ours is faster.")

    @model_validator(mode="after")
    def _ordered(self) -> "Times":
        assert self.p20_us <= self.p50_us <= self.p80_us, "percentiles out of order"
        return self


class Side(Part):
    """Times of one implementation. plain: called one after another from Python. graph: in a CUDA graph."""

    plain: Times
    graph: Times | None

    @property
    def best(self) -> Times:
        """The mode with the smaller median."""
        return min((times for times in (self.plain, self.graph) if times), key=lambda times: times.p50_us)


class Row(Part):
    """One op at one size."""

    op: str
    kind: Kind
    dtype: str
    gradient: bool
    n: PositiveInt
    side_px: PositiveInt
    least_bytes: PositiveInt
    calls: int = Field(description="Calls in a timed block, each with its own inputs and results.")
    rounds: int
    copy_gb_s: PositiveFloat | None = Field(description="Bandwidth of the large copy timed in turn with this row.")
    wrong: str | None = Field(description="Why the op failed its check.")
    sides: dict[str, Side]
    left_out: dict[str, str]

    @model_validator(mode="after")
    def _wrong_has_no_speed(self) -> "Row":
        timed = bool(self.sides) and self.copy_gb_s is not None
        assert timed != (self.wrong is not None), "a row is either wrong or timed"
        assert self.wrong is None or (not self.sides and self.copy_gb_s is None), "a wrong op has no speed"
        return self

    @property
    def size(self) -> str:
        """Images x height x width."""
        return f"{self.n}x{self.side_px}x{self.side_px}"


class Report(Part):
    """All rows of one run on one device."""

    device: str
    cache_bytes: int = Field(description="The GPU's L2.")
    machine: dict[str, Any]
    rows: list[Row]
    left_out: list[str] = Field(description="Ops that were not started, and why.")

    @property
    def file_stem(self) -> str:
        """Name of the result file without its suffix."""
        return "kernels-" + re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")

    @property
    def is_gpu(self) -> bool:
        """Whether a GPU was measured."""
        return self.device != "CPU"

    @property
    def all_left_out(self) -> list[str]:
        """Ops that were not started, then implementations that could not be timed, each reason once."""
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            for side, reason in row.left_out.items():
                reasons.setdefault(f"{side} ({reason})", []).append(f"{row.op} {row.size}")
        return self.left_out + [f"{reason}: {', '.join(places)}" for reason, places in reasons.items()]


def summarize(
    block_us: Sequence[float], calls: int, least_bytes: int, copy_gb_s: float, ours_us: float | None
) -> Times:
    """From the times of whole blocks [us]. ours_us: our median per call in the same mode, if measured."""
    tenths = quantiles([elapsed_us / calls for elapsed_us in block_us], n=10, method="inclusive")
    p20_us, p50_us, p80_us = tenths[1], tenths[4], tenths[7]
    share = least_bytes / p50_us / (copy_gb_s * 1000)
    return Times(
        p20_us=p20_us,
        p50_us=p50_us,
        p80_us=p80_us,
        share_of_copy=share,
        times_ours=p50_us / ours_us if ours_us else None,
    )


# ---- lines ----


def line(row: Row) -> str:
    """One line: ours with its share of the copy's bandwidth, then the others' times relative to ours."""
    name = f"{row.op:24} {row.size:>11} {row.least_bytes / 1e6:8.2f} MB"
    if row.wrong is not None:
        return f"{name}  WRONG {row.wrong}"
    others = [f"{key} {_ratio(side)}" for key, side in row.sides.items() if key != "ours"]
    return "  ".join((name, _ours(row.sides["ours"]), *others))


def _ours(side: Side) -> str:
    modes = (("", side.plain), ("graph ", side.graph))
    return "ours " + ", ".join(
        f"{mode}{times.p20_us:.1f}/{times.p50_us:.1f}/{times.p80_us:.1f} us = {times.share_of_copy:.0%}"
        for mode, times in modes
        if times
    )


def _ratio(side: Side) -> str:
    ratios = [times.times_ours for times in (side.plain, side.graph) if times and times.times_ours]
    return "/".join(f"{ratio:.2f}x" for ratio in ratios)


# ---- targets, on a GPU ----


def verdicts(report: Report) -> list[str]:
    """The worst results beside their targets, on a GPU. The targets are for Hopper and at least 64 MB."""
    if not report.is_gpu:
        return []
    large = [row for row in report.rows if row.sides and row.least_bytes >= LARGE_BYTES]
    texts = [_worst_share(kind, [row for row in large if row.kind == kind], target) for kind, target in SHARES.items()]
    lab = [row for row in large if row.op == "rgb_to_lab"]
    texts += [_worst_ratio(side, lab, target) for side, target in RATIOS.items()]
    return [text for text in texts if text]


def _worst_share(kind: str, rows: Sequence[Row], target: float) -> str:
    shares = [(row.sides["ours"].best.share_of_copy, f"{row.op} {row.size}") for row in rows]
    if not shares:
        return ""
    share, where = min(shares)
    return (
        f"{kind}, {LARGE_BYTES / 1e6:.0f} MB and more: {share:.1%} of the copy at worst ({where}), target {target:.0%}"
    )


def _worst_ratio(side: str, rows: Sequence[Row], target: float) -> str:
    """The worst speedup of rgb_to_lab over another implementation, each in its faster mode."""
    ratios = [
        (row.sides[side].best.p50_us / row.sides["ours"].best.p50_us, row.size) for row in rows if side in row.sides
    ]
    if not ratios:
        return ""
    ratio, size = min(ratios)
    return f"rgb_to_lab: {ratio:.1f} times as fast as {side} ({size}), target {target:.0f}"
