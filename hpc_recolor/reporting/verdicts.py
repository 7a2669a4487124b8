"""Sentences from numbers: whether a run beats the gray copy, and what a single change does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_recolor.evaluation.metric_registry import BY_KEY, METHODS
from hpc_recolor.evaluation.results import ImageScores, StoredEvaluation
from hpc_recolor.reporting.compare import Group, one_key_apart, why_apart
from hpc_recolor.reporting.numbers import APOSTROPHE, MINUS, Difference, number, pair, plural
from hpc_recolor.reporting.runs import COLOR_NAMES, Run
from hpc_recolor.runtime.output import shell_command

COMPARED = ("ciede2000", "ab_error", "colorfulness")
NAMES = {key: BY_KEY[key].short for key in COMPARED}
BEATS = "Beats the gray copy"
BASELINES = {method.key: method.name for method in METHODS if method.baseline}
VALUE_NAMES = {
    "model.color": COLOR_NAMES,
    "model.generator": {
        "unet": "U-Net",
        "autoencoder": "Autoencoder",
        "resnet": "ResNet",
        "backbone_unet": "U-Net on a pretrained backbone",
    },
    "loss.adversarial": {
        "none": "L1 alone",
        "bce": "adversary (BCE)",
        "l1": "adversary (L1)",
        "mse": "adversary (MSE)",
    },
}


@dataclass(frozen=True)
class Standing:
    """A run's CIEDE2000 against the gray copy, for the plot of intervals. label: with which lightness."""

    label: str
    against_gray: Difference


@dataclass(frozen=True)
class Verdict:
    """What the numbers say about a run: a headline, sentences, and its CIEDE2000 against the gray copy's.

    tone: `good` where it beats the gray copy, `bad` where it does not, `open` where the numbers do not decide.
    """

    run: Run
    epoch: str
    headline: str
    tone: str
    sentences: tuple[str, ...]
    standings: tuple[Standing, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two runs that differ in one config key."""

    title: str
    one: Run
    other: Run
    sentences: tuple[str, ...]


def verdict_on(run: Run, data: str | None) -> Verdict:
    """The verdict on a run's last evaluation of some data."""
    evaluation = run.last(data)
    if evaluation is None:
        return Verdict(run, "", "Not measured", "open", (how_to_measure(run, data),))
    differences = {
        (metric, baseline): difference
        for metric in ("ciede2000", "ab_error")
        for baseline in BASELINES
        if (difference := _against(evaluation, metric, f"{baseline}_{metric}"))
    }
    sentences = [_against_baselines(metric, differences) for metric in ("ciede2000", "ab_error")]
    sentences += [*_own_lightness(evaluation), _colorfulness(evaluation)]
    headline, tone = _headline(differences)
    return Verdict(
        run, evaluation.epoch_text, headline, tone, tuple(one for one in sentences if one), _standings(evaluation)
    )


def how_to_measure(run: Run, data: str | None) -> str:
    """A sentence with the command for the numbers that are missing."""
    command = shell_command("python", "-m", "hpc_recolor.evaluate", run.given)
    others = ", ".join(run.evaluations)
    if not others or data is None:
        return f"No evaluation yet; run {command}"
    return f"No evaluation of {data}, only of {others}; to measure the run's own test data, run {command}"


def compare(runs: Sequence[Run], data: str | None, groups: Sequence[Group]) -> list[Comparison]:
    """A comparison for each pair of runs that differ in one key that affects what is learned."""
    group_of = {run.number: one for one in reversed(groups) for run in one.runs}
    found = []
    for one, other, key, value, other_value in one_key_apart(runs):
        title = f"{_value_name(key, value)} against {_value_name(key, other_value)}"
        first, second = one.last(data), other.last(data)
        if first is None or second is None:
            missing = one if first is None else other
            sentences = [f"{missing.name} has no numbers to compare."]
        elif first.comparable_by != second.comparable_by:
            reason = why_apart(group_of[one.number], group_of[other.number])
            sentences = [f"Not comparable: they were measured differently ({reason})."]
        else:
            sentences = _compare_two(first, second)
        found.append(Comparison(title, one, other, tuple(sentences)))
    return found


def summary(verdicts: Sequence[Verdict], data: str | None, groups: Sequence[Group]) -> str:
    """The report in one line."""
    count = plural(len(verdicts), "run")
    if not groups:
        return f"{count}, none measured yet."
    measured = sum(bool(verdict.standings) for verdict in verdicts)
    good = [verdict.headline for verdict in verdicts if verdict.tone == "good"]
    clear = good.count(BEATS)
    beat = "beats" if clear == 1 else "beat"
    line = f"{count}, measured on {data}: {clear} of {measured} {beat} the gray copy in CIEDE2000 and ab error"
    line += f", {len(good) - clear} in one of the two" if len(good) > clear else ""
    best = _best([verdict for verdict in verdicts if verdict.run in groups[0].runs and verdict.standings])
    return f"{line}; best CIEDE2000 {best}." if best and len(verdicts) > 1 else f"{line}."


def _best(verdicts: Sequence[Verdict]) -> str | None:
    candidates = [(one.against_gray.mean, verdict.run.name) for verdict in verdicts for one in verdict.standings[:1]]
    return f"{number(min(candidates)[0])} by {min(candidates)[1]}" if candidates else None


def _against(evaluation: StoredEvaluation, key: str, other_key: str) -> Difference | None:
    return pair((photo.value(key), photo.value(other_key)) for photo in evaluation.images)


def _standings(evaluation: StoredEvaluation) -> tuple[Standing, ...]:
    keys = {"as generated": "ciede2000", f"with the photograph{APOSTROPHE}s L*": "own_l_ciede2000"}
    found = ((label, _against(evaluation, key, "gray_ciede2000")) for label, key in keys.items())
    return tuple(Standing(label, difference) for label, difference in found if difference)


def _headline(differences: dict[tuple[str, str], Difference]) -> tuple[str, str]:
    signs = {metric: one.sign for (metric, baseline), one in differences.items() if baseline == "gray"}
    if not signs:
        return "No values of single images, so no verdict", "open"
    better = [NAMES[metric] for metric, sign in signs.items() if sign < 0]
    worse = [NAMES[metric] for metric, sign in signs.items() if sign > 0]
    if better and worse:
        return f"{BEATS} in {better[0]}, loses to it in {worse[0]}", "open"
    if len(better) == len(signs):
        return BEATS, "good"
    if better:
        return f"{BEATS} in {better[0]}", "good"
    if len(worse) == len(signs):
        return "Worse than the gray copy", "bad"
    if worse:
        return f"Worse than the gray copy in {worse[0]}", "bad"
    return "No significant difference from the gray copy", "open"


def _against_baselines(metric: str, differences: dict[tuple[str, str], Difference]) -> str:
    parts = [
        f"{_relation(difference)} the {name}{APOSTROPHE}s {number(difference.other_mean)}{_by(difference)}"
        for baseline, name in BASELINES.items()
        if (difference := differences.get((metric, baseline)))
    ]
    if not parts:
        return ""
    first = next(one for (key, _), one in differences.items() if key == metric)
    return f"{NAMES[metric]} {number(first.mean)}: {', '.join(parts)}."


def _relation(difference: Difference) -> str:
    return {-1: "below", 0: "not distinguishable from", 1: "above"}[difference.sign]


def _by(difference: Difference) -> str:
    if difference.half_width is None:
        return " (one image, no interval)"
    return f" by {difference.size_text}" if difference.sign else f" ({_signed(difference)})"


def _signed(difference: Difference) -> str:
    sign = MINUS if difference.difference < 0 else "+"
    return sign + difference.size_text


def _own_lightness(evaluation: StoredEvaluation) -> list[str]:
    """RGB runs also with the photograph's own L*, which colorize keeps."""
    sentences = []
    gray = _against(evaluation, "own_l_ciede2000", "gray_ciede2000")
    if gray:
        mean = _against(evaluation, "own_l_ciede2000", "mean_color_ciede2000")
        values = {("ciede2000", "gray"): gray} | ({("ciede2000", "mean_color"): mean} if mean else {})
        sentences.append(f"With the photograph{APOSTROPHE}s own L*: {_against_baselines('ciede2000', values)}")
    ab_error = evaluation.value("model_own_l", "ab_error")
    if sentences and ab_error is not None:
        sentences[0] = f"{sentences[0][:-1]}; ab error {number(ab_error)}."
    return sentences


def _colorfulness(evaluation: StoredEvaluation) -> str:
    both = _against(evaluation, "colorfulness", "original_colorfulness")
    if both is None:
        return ""
    share = f" ({100 * both.mean / both.other_mean:.0f} %)" if both.other_mean > 0 else ""
    gray = evaluation.value("gray", "colorfulness")
    end = f"; the gray copy has {number(gray, 1)}" if gray is not None else ""
    return f"Colorfulness {number(both.mean, 1)}, the originals{APOSTROPHE} {number(both.other_mean, 1)}{share}{end}."


def _compare_two(one: StoredEvaluation, other: StoredEvaluation) -> list[str]:
    others = {photo.number: photo for photo in other.images}
    pairs = [(photo, others[photo.number]) for photo in one.images if photo.number in others]
    sentences = []
    for metric, name in NAMES.items():
        difference = pair((mine.value(metric), theirs.value(metric)) for mine, theirs in pairs)
        if difference:
            sentences.append(_sentence(name, difference))
    own = pair((_fair(mine), _fair(theirs)) for mine, theirs in pairs)
    if own and one.protocol.color != other.protocol.color:
        sentences.append(_sentence(f"CIEDE2000 with the photograph{APOSTROPHE}s L* on both sides", own))
    if one.protocol.images_seen != other.protocol.images_seen:
        sentences.append(f"After {one.protocol.images_seen:,} and {other.protocol.images_seen:,} images seen.")
    return sentences or ["No values of single images to compare."]


def _fair(photo: ImageScores) -> float | None:
    own = photo.value("own_l_ciede2000")
    return own if own is not None else photo.value("ciede2000")


def _sentence(name: str, difference: Difference) -> str:
    digits = max(difference.digits, 2)
    values = f"{name} {number(difference.mean, digits)} against {number(difference.other_mean, digits)}"
    over = f"over {plural(difference.images, 'image')}"
    if difference.half_width is None:
        return f"{values} {over}: too few for an interval."
    if difference.sign == 0:
        return f"{values}: no significant difference ({_signed(difference)} {over})."
    return f"{values}, {'lower' if difference.sign < 0 else 'higher'} by {difference.size_text} {over}."


def _value_name(key: str, value: Any) -> str:
    named = VALUE_NAMES.get(key, {}).get(str(value))
    if named:
        return named
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if key in ("data.shards", "data.photos"):
        return f"data {Path(shown).name}"
    return f"{key} {shown}"
