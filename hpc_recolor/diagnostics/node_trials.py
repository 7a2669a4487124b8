"""Tries several nodes at once: a probe on each, all in step, and a table of what they answered.

Each probe is a step of SLURM of its own, so that a node that is dead, hangs or loses data ends no other's trial. Each
wait has an end: a node that does not answer is a finding.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from hpc_recolor.diagnostics.node_probe import MARK
from hpc_recolor.diagnostics.outliers import (
    METRICS,
    PAIRS,
    Metric,
    NodeReport,
    Outlier,
    failed_pairs,
    find_outliers,
    is_any_slowly_connected,
    metrics_of,
    rate_of,
    shared_faults,
    slow_metrics,
)
from hpc_recolor.runtime.output import escaped
from hpc_recolor.runtime.terminal_tables import print_lines

# Nodes may read Python's packages slowly, but about equally so: once half have started, the others get this many
# times as long as the median of those, and at least so long.
START_LIMIT_S, START_RATIO, START_LEAST_S = 180.0, 3.0, 60.0
# Of each part, and how much more for each GPU, where they are tried one after another; the probe kills it then. NCCL
# may take most of a minute to start.
LIMIT_S = {"gpu": 30.0, "product": 15.0, "decode": 10.0, "memory": 5.0, "write": 12.0, "all_reduce": 12.0}
PER_GPU_S = {"gpu": 5.0, "product": 6.0}
NCCL_LIMIT_S = 60.0
CLOCK_LIMIT_S = 10.0
# What else runs on a node for a moment is no fault of it: so often is a part tried while a node is slow in it.
TRIES = 3
# A node that reaches none of so many others is paired no more: each failure takes the whole limit, twice.
ENOUGH_FAILED = 3
# How much later an answer may come, over a network that loses data.
GRACE_S = 10.0
# Each node is paired with so many others, or with all of them.
MOST_ROUNDS = 7
END_LIMIT_S = 5.0
# 128 + SIGUSR2, SLURM's signal before the time limit or a preemption, and 128 + SIGTERM, with which it ends jobs.
SIGNALLED = (140, 143)

# An answer of a probe, None once it has ended.
Answer = Mapping[str, Any] | None


class SignalledError(Exception):
    """SLURM has told the job to end. exit_code: of the probe, one of SIGNALLED."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"SLURM has ended the probes (exit code {exit_code})")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Trial:
    """What a trial is made of.

    gpus: of each node. scratch: folder on each node's disk, None for that of temporary files; shared: on the disk
    that all share. job: a name that no other trial has. device: of all-reduces, as of `distributed.start`. memory_gib:
    that the job needs of each node; None if it does not say.
    """

    gpus: int
    scratch: str | None
    shared: str
    job: str
    network: str | None = None
    device: str = "auto"
    memory_gib: float | None = None


@dataclass
class Result:
    """What came of it.

    pairs: rates of all-reduces [MB/s], pair_failure: what the last that failed said; together: of the one over all
    nodes that were not found.
    """

    reports: list[NodeReport]
    metrics: Sequence[Metric] = METRICS
    pairs: dict[tuple[str, str], float] = field(default_factory=dict)
    pair_failure: str = ""
    together: float | None = None
    together_failure: str = ""

    @property
    def outliers(self) -> list[Outlier]:
        """Nodes that are bad, or unlike the others."""
        return find_outliers(self.reports, self.pairs, self.metrics)

    @property
    def bad_nodes(self) -> list[str]:
        """Those, in order."""
        return list(dict.fromkeys(outlier.node for outlier in self.outliers))

    @property
    def shared_faults(self) -> list[str]:
        """A line for each fault that most nodes have."""
        return shared_faults(self.reports, self.pairs, self.metrics, self.pair_failure)

    @property
    def problems(self) -> list[str]:
        """A line for each: what was found of which nodes, and what to do."""
        lines = [str(outlier) for outlier in self.outliers] + self.shared_faults
        fix = "check the network between them; neither is known to be at fault"
        lines += [f"{one} and {other}: their all-reduce failed; {fix}" for one, other in self.lost_pairs]
        if self.together_failure:
            lines.append(f"all nodes together: all-reduce failed ({self.together_failure}); check the network")
        return lines

    @property
    def lost_pairs(self) -> list[tuple[str, str]]:
        """Pairs whose all-reduce failed though both get on with others."""
        return failed_pairs(self.pairs, self.outliers)


def try_nodes(nodes: Sequence[str], trial: Trial, command: Callable[[str], Sequence[str]]) -> Result:
    """Try all nodes. command: starts the probe of a node, as srun does.

    Raises SignalledError if probes are ended by SLURM's signal.
    """
    metrics = metrics_of(trial.memory_gib)
    probes = Probes(nodes, command, trial.gpus, metrics)
    result = Result(list(probes.reports.values()), metrics)
    try:
        probes.await_start()
        probes.ask_time()
        if trial.gpus:
            probes.ask("gpu", gpus=trial.gpus)
        probes.ask("memory")
        probes.ask("product", gpus=trial.gpus)
        probes.ask("decode")
        probes.ask("write", key="scratch", folder=trial.scratch)
        probes.ask("write", key="shared", folder=trial.shared)
        try_all_pairs(probes, result, trial)
        try_together(probes, result, trial)
    finally:
        probes.end()
    return result


def rounds(nodes: Sequence[str], most: int = MOST_ROUNDS) -> list[list[tuple[str, str]]]:
    """Pairs of nodes: in each round every node once, or all but one; each pair in one round at most (circle method)."""
    seats: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    found = []
    for _ in range(len(seats) - 1):
        opposite = zip(seats[: len(seats) // 2], reversed(seats), strict=False)
        found.append([(one, other) for one, other in opposite if one is not None and other is not None])
        seats[1:] = [seats[-1], *seats[1:-1]]
    step = max(1, len(found) / most)
    return [found[int(number * step)] for number in range(min(most, len(found)))]


def part_limit_s(part: str, gpus: int) -> float:
    """How long a part may take on a node with so many GPUs [s]."""
    if part == "all_reduce" and gpus:
        return NCCL_LIMIT_S
    return LIMIT_S[part] + gpus * PER_GPU_S.get(part, 0.0)


class Probes:
    """The probes of all nodes, and what they have answered. A node that is late or gone is asked nothing more."""

    def __init__(
        self, nodes: Sequence[str], command: Callable[[str], Sequence[str]], gpus: int, metrics: Sequence[Metric]
    ) -> None:
        self.reports = {node: NodeReport(node) for node in nodes}
        self.addresses: dict[str, str] = {}
        self._answers: queue.Queue[tuple[str, Answer, float]] = queue.Queue()
        self._gpus = gpus
        self._metrics = metrics
        self._number = 0
        self._last_lines = dict.fromkeys(nodes, "")
        self._readers: list[threading.Thread] = []
        self._began_s = time.monotonic()
        self._processes = {node: self._start(node, command(node)) for node in nodes}

    @property
    def alive(self) -> list[str]:
        """The nodes that have answered so far."""
        return [node for node, report in self.reports.items() if not report.silence]

    def await_start(self) -> None:
        """Wait until the probes have started, and keep what they say of themselves."""

        def limit_s(times_s: Sequence[float]) -> float:
            if len(times_s) < len(self.reports) / 2:
                return START_LIMIT_S
            return min(START_LIMIT_S, max(START_LEAST_S, START_RATIO * median(times_s)))

        for node, (answer, took_s) in self._await("start", self._began_s, self.alive, limit_s).items():
            self.addresses[node] = answer["address"]
            self.reports[node].versions = answer["versions"]
            self.reports[node].values["start"] = took_s

    def ask_time(self) -> None:
        """Compare the clocks with that of this process: what came back is as old as half of the time that it took."""
        asked, began_s = time.time(), time.monotonic()
        self._order({node: {"part": "clock", "limit_s": CLOCK_LIMIT_S} for node in self.alive})
        for node, (answer, took_s) in self._await("clock", began_s, self.alive, lambda _: CLOCK_LIMIT_S).items():
            self.reports[node].clock_s = answer["time"] - asked - took_s / 2
            self.reports[node].clock_error_s = took_s / 2

    def ask(self, part: str, **arguments: object) -> None:
        """Let all nodes try a part, with the same arguments; again while one has been slow each time.

        What fails once and not again was the fault of a moment.
        """
        for _ in range(TRIES):
            answers = self.ask_each(part, dict.fromkeys(self.alive, arguments))
            failed = [node for node in self.alive if "failure" in answers.get(node, {})]
            answers |= self.ask_each(part, dict.fromkeys(failed, arguments))
            tries = [NodeReport(node, values=dict(answer.get("values", {}))) for node, answer in answers.items()]
            for one in tries:
                report = self.reports[one.node]
                report.values |= {key: max(value, report.values.get(key, 0.0)) for key, value in one.values.items()}
                report.cleared |= set(one.values) - slow_metrics(one, tries, self._metrics)
                if "failure" in answers[one.node]:
                    report.failures[str(arguments.get("key", part))] = answers[one.node]["failure"]
            if all(set(one.values) <= self.reports[one.node].cleared for one in tries):
                break

    def ask_each(self, part: str, arguments: Mapping[str, Mapping[str, object]]) -> dict[str, Mapping[str, Any]]:
        """Let nodes try a part, each with arguments of its own. Returns their answers."""
        limit_s = part_limit_s(part, self._gpus)
        orders = {node: {"part": part, "limit_s": limit_s, "with": own} for node, own in arguments.items()}
        began_s = time.monotonic()
        self._order(orders)
        answers = self._await(part, began_s, [*orders], lambda _: limit_s + GRACE_S)
        return {node: answer for node, (answer, _) in answers.items()}

    def end(self) -> None:
        """End all probes."""
        for process in self._processes.values():
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        deadline_s = time.monotonic() + END_LIMIT_S
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline_s - time.monotonic()))
            process.kill()
        for reader in self._readers:
            reader.join(END_LIMIT_S)

    def _start(self, node: str, command: Sequence[str]) -> "subprocess.Popen[str]":
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, text=True, errors="replace", **pipes)
        reader = threading.Thread(target=self._read, args=(node, process), daemon=True)
        reader.start()
        self._readers.append(reader)
        return process

    def _read(self, node: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout
        with process.stdout as lines:
            for line in lines:
                if line.startswith(MARK):
                    self._answers.put((node, json.loads(line.removeprefix(MARK)), time.monotonic()))
                else:
                    self._last_lines[node] = line.strip() or self._last_lines[node]
        process.wait()
        self._answers.put((node, None, time.monotonic()))

    def _order(self, orders: Mapping[str, Mapping[str, object]]) -> None:
        self._number += 1
        for node, order in orders.items():
            stdin = self._processes[node].stdin
            with suppress(OSError):  # its end is read from the other pipe
                stdin.write(json.dumps({"number": self._number} | dict(order)) + "\n")  # type: ignore[union-attr]
                stdin.flush()  # type: ignore[union-attr]

    def _await(
        self, part: str, began_s: float, nodes: Iterable[str], limit_s: Callable[[Sequence[float]], float]
    ) -> dict[str, tuple[Mapping[str, Any], float]]:
        """The answers to the last order, with the time from `began_s` until they came [s]. The others fall silent.

        limit_s: for how long to wait, given the times of the answers that have come.
        """
        found: dict[str, tuple[Mapping[str, Any], float]] = {}
        waiting = set(nodes)
        while waiting:
            limit = limit_s([took_s for _, took_s in found.values()])
            try:
                left_s = began_s + limit - time.monotonic()
                node, answer, came_s = self._answers.get(timeout=min(1.0, left_s)) if left_s > 0 else ("", {}, 0.0)
            except queue.Empty:
                continue
            if not node:
                for late in waiting:
                    usual = f", others {median(took_s for _, took_s in found.values()):.0f} s" if found else ""
                    self.reports[late].silence = f"has not answered for {limit:.0f} s ({part}{usual})"
                break
            if answer is None:
                self._end_of(node, part)
                waiting.discard(node)
            elif answer["number"] == self._number and node in waiting:
                found[node] = answer, came_s - began_s
                waiting.discard(node)
        return found

    def _end_of(self, node: str, part: str) -> None:
        code = self._processes[node].returncode
        code = 128 - code if code < 0 else code  # srun itself may be ended by a signal
        if code in SIGNALLED:
            raise SignalledError(code)
        reason = self._last_lines[node] or f"exit code {code}"
        self.reports[node].silence = self.reports[node].silence or f"its probe has ended ({part}): {reason}"


def print_result(result: Result) -> None:
    """Print the table of all nodes, which versions they have, and their rate together; problems on stderr."""
    lines = [["node", *(f"{metric.heading} [{metric.unit}]" for metric in _shown(result)), "clock [s]"]]
    for report in result.reports:
        values = {**report.values, PAIRS.key: rate_of(report.node, result.pairs)}
        numbers = [values.get(metric.key) for metric in _shown(result)]
        lines.append([report.node, *map(_number, numbers), _number(report.clock_s, ".1f")])
    print_lines(lines)
    by_versions: dict[str, list[str]] = {}
    for report in result.reports:
        text = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        by_versions.setdefault(text or "no answer", []).append(report.node)
    for text, nodes in by_versions.items():
        print(f"{', '.join(nodes)}: {text}")
    if result.together is not None:
        print(f"all-reduce over all that are not named below: {result.together:.3g} MB/s")
    problems = result.problems
    if not problems:
        print(f"{len(result.reports)} nodes are as they should be")
    sys.stdout.flush()
    for problem in problems:
        print(f"error: {escaped(problem)}", file=sys.stderr, flush=True)


def try_all_pairs(probes: Probes, result: Result, trial: Trial) -> None:
    """All-reduces of each pair; again while a node is slow in them, without the pairs that failed: the best counts.

    A pair has failed if it does so twice in a row.
    """
    nodes = probes.alive
    for number in range(TRIES):
        for place, pairs in enumerate(rounds(nodes)):
            left = [
                pair for pair in pairs if result.pairs.get(pair) != 0.0 and not _are_any_cut_off(pair, result.pairs)
            ]
            rates = _try_pairs(probes, result, left, trial, f"{number} {place}")
            failed = [pair for pair, rate in rates.items() if not rate]
            rates |= _try_pairs(probes, result, failed, trial, f"{number} {place} again")
            result.pairs |= {pair: max(rate, result.pairs.get(pair, 0.0)) for pair, rate in rates.items()}
        if not is_any_slowly_connected(nodes, result.pairs):
            break


def _are_any_cut_off(pair: tuple[str, str], pairs: Mapping[tuple[str, str], float]) -> bool:
    """Whether one of two nodes has failed with so many others, and reached none, that more would only take time."""
    tried = [[rate for other, rate in pairs.items() if node in other] for node in pair]
    return any(len(rates) >= ENOUGH_FAILED and not any(rates) for rates in tried)


def _try_pairs(
    probes: Probes, result: Result, pairs: Sequence[tuple[str, str]], trial: Trial, number: str
) -> dict[Any, float]:
    """The rates of all-reduces of pairs that are tried at once [MB/s]; 0 where one of the two has failed."""
    pairs = [pair for pair in pairs if set(pair) <= set(probes.alive)]
    orders: dict[str, dict[str, object]] = {}
    for pair in pairs:
        orders |= _group(pair, probes, trial, f"{trial.job} {number}")
    answers = probes.ask_each("all_reduce", orders)
    for answer in answers.values():
        result.pair_failure = answer.get("failure", result.pair_failure)
    rates = {node: answer.get("values", {}).get("all_reduce", 0.0) for node, answer in answers.items()}
    return {(one, other): min(rates.get(one, 0.0), rates.get(other, 0.0)) for one, other in pairs}


def try_together(probes: Probes, result: Result, trial: Trial) -> None:
    """An all-reduce over all nodes in which nothing was found; it has failed if it does so twice.

    Two nodes are a pair, which was tried.
    """
    nodes = [node for node in probes.alive if node not in result.bad_nodes]
    if len(nodes) < 3 or result.shared_faults or result.lost_pairs:
        return
    for number in range(2):
        answers = probes.ask_each("all_reduce", _group(nodes, probes, trial, f"{trial.job} all {number}"))
        failures = [f"{node}: {answer['failure']}" for node, answer in answers.items() if "failure" in answer]
        if not failures and len(answers) == len(nodes):
            result.together = min(each["values"]["all_reduce"] for each in answers.values())
            result.together_failure = ""
            return
        result.together_failure = failures[0] if failures else "no answer"
        if len(answers) < len(nodes):  # a node is gone
            return


def _group(nodes: Sequence[str], probes: Probes, trial: Trial, job: str) -> dict[str, dict[str, object]]:
    """Arguments of an all-reduce for each of these nodes."""
    shared: dict[str, object] = {
        "size": len(nodes),
        "host": nodes[0],
        "address": probes.addresses[nodes[0]],
        "job": f"{job} {nodes[0]}",
        "network": trial.network,
        "device": trial.device,
    }
    return {node: {"rank": rank} | shared for rank, node in enumerate(nodes)}


def _shown(result: Result) -> list[Any]:
    measured = {key for report in result.reports for key in report.values}
    return [metric for metric in METRICS if metric.key in measured or (metric is PAIRS and result.pairs)]


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)
