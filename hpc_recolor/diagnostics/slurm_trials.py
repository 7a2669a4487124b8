"""Trials of SLURM's nodes.

`python -m hpc_recolor.diagnostics.slurm_trials FOLDER` tries those of a job before its ranks start.
"""

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import hpc_recolor
from hpc_recolor import cli
from hpc_recolor.diagnostics import node_trials
from hpc_recolor.diagnostics.node_trials import Result, SignalledError, Trial
from hpc_recolor.diagnostics.outliers import may_exclude
from hpc_recolor.launch import slurm_executor, slurm_query
from hpc_recolor.launch.job_folder import Event, JobFolder, append_event
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.launch.slurm_command import parse_rows, run_command
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT, FAILED, STOPPED
from hpc_recolor.runtime.json_text import parse_json
from hpc_recolor.runtime.launcher_environment import foreign_names
from hpc_recolor.runtime.output import escaped, shell_command

PROBE = ("-u", "-m", "hpc_recolor.diagnostics.node_probe")
# Of an allocation for a trial alone: how long to wait for it, and how long it may last.
QUEUE_S, ALLOCATED_MIN = 120, 20


def main() -> int:
    """Try the nodes of this job. Returns 0 if all are as they should be.

    75: bad ones are excluded, and the job is to be queued again; 140 or 143: SLURM has told it to end; 1: the job must
    end.
    """
    try:
        return cli.exit_code(lambda: _try_job(JobFolder(Path(sys.argv[1]))), distributed=False)
    except SignalledError as error:
        return error.exit_code


def try_allocated(options: JobOptions) -> Result:
    """Try nodes that are allocated for it alone, and given back.

    Raises UserError if there are none for two minutes, or if SLURM takes them away.
    """
    name = f"doctor-{uuid4().hex[:12]}"
    with _signals_raised():
        try:
            job = _allocate(options, name)
            listed = parse_rows(run_command(["squeue", "--noheader", f"--jobs={job}", "--format=%i|%N"]), 2)
            nodes = [node for _, names in listed for node in _names(names)]
            python = shlex.quote(options.python or sys.executable)
            lines = [*slurm_executor.environment_lines(_code(), options), f"exec {python} {shlex.join(PROBE)}"]
            step = _step(options, ["bash", "-c", "\n".join(lines)], f"--jobid={job}", unset=foreign_names(os.environ))
            return node_trials.try_nodes(nodes, _trial(options, Path.cwd(), job), step)
        except SignalledError as error:
            raise UserError(f"job {job}", f"was ended before its nodes were tried ({error})", "try again") from None
        finally:  # by its name: salloc may have ended before it said which job it was given
            run_command(["scancel", f"--name={name}", f"--user={os.getuid()}"])


@contextmanager
def _signals_raised() -> Iterator[None]:
    """SIGTERM and SIGHUP (a lost terminal) end this process as exceptions do, so that what it holds is given back."""
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def leave(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)  # one is enough
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _try_job(folder: JobFolder) -> int:
    """Every end is in the history, also one by an error of SLURM's commands."""
    folder.check()
    options = JobOptions.model_validate(parse_json(folder.options.read_bytes()))
    job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    nodes: list[str] = []

    def end(code: int, *reasons: str) -> int:
        reason = f"preflight: {'; '.join(reasons)}"
        append_event(folder, Event.now("end", job, restart, options.ranks, nodes, exit_code=code, reason=reason))
        return code

    try:
        nodes = _names(os.environ["SLURM_JOB_NODELIST"])
        excluded = _excluded(folder, job)
        if again := sorted(excluded.intersection(nodes)):
            reason = f"job {job} was given {', '.join(again)} again, which it excludes"
            resume = shell_command("python", "-m", "hpc_recolor.jobs", "restart", folder.path.parent)
            print(f"stopped: {reason}\nThe run is saved; resume it with: {resume}", file=sys.stderr, flush=True)
            return end(STOPPED, reason)
        print(f"trying {len(nodes)} nodes: {', '.join(nodes)}", flush=True)
        step = _step(options, [options.python or sys.executable, *PROBE])
        result = node_trials.try_nodes(nodes, _trial(options, folder.path, f"{job} {restart}"), step)
    except UserError as error:
        end(BAD_INPUT, str(error))
        raise
    node_trials.print_result(result)
    if not result.problems:
        return 0
    excluded = excluded.union(result.bad_nodes)
    code = STOPPED if options.exclude_bad and _can_exclude(result, excluded, options) else FAILED
    if code == STOPPED:
        write_atomically(folder.excluded(job), ",".join(sorted(excluded)).encode())
        write_atomically(folder.requeue(job, restart), str(folder.path.parent).encode())
    return end(code, *result.problems)


def _can_exclude(result: Result, excluded: set[str], options: JobOptions) -> bool:
    """Whether the job is better queued again without these nodes than ended."""
    if not result.bad_nodes or result.shared_faults:
        return False
    if not may_exclude(result.bad_nodes, result.reports):
        problem = f"{len(result.bad_nodes)} of {len(result.reports)} nodes are bad; at most half are left out"
        print(f"not queued again: {problem}; see what they share", file=sys.stderr, flush=True)
        return False
    return _enough_without(excluded, options)


def _enough_without(excluded: set[str], options: JobOptions) -> bool:
    """Whether the partition has as many usable nodes without these.

    Which of them have the job's --constraint, GPUs and memory is not known: where too few have, the job waits.
    """
    try:
        left = len(slurm_query.usable_nodes(options.partition) - excluded)
    except UserError as error:
        print(f"not queued again: {escaped(str(error))}", file=sys.stderr, flush=True)
        return False
    without = f"without {', '.join(sorted(excluded))}"
    if left >= options.nodes:
        print(f"queued again {without}", flush=True)
        return True
    problem = f"partition {options.partition} has {left} usable nodes of {options.nodes}"
    print(f"not queued again: {without} {problem}; use fewer --nodes, or repair them", file=sys.stderr, flush=True)
    return False


def _excluded(folder: JobFolder, job: str) -> set[str]:
    file = folder.excluded(job)
    return set(file.read_text().split(",")) if file.exists() else set()


def _allocate(options: JobOptions, name: str) -> str:
    """The id of a job of that name that holds nodes."""
    flags = {
        "nodes": options.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": options.cpus_per_node,
        "gpus-per-node": options.gpus_per_node or None,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "time": ALLOCATED_MIN,
        "mem": options.memory,
        "job-name": name,
        "immediate": QUEUE_S,
    }
    given = [f"--{key}={value}" for key, value in flags.items() if value is not None]
    text = run_command(["salloc", "--no-shell", "--no-kill", *given], timeout_s=QUEUE_S + 30)
    found = re.search(r"Granted job allocation (\d+)", text)
    if not found:
        raise UserError("salloc", f"has not said which job it was given ({text.strip()})", "try again")
    return found[1]


def _names(nodes: str) -> list[str]:
    """The nodes of SLURM's `node[1-4]`, one by one."""
    return node_names(run_command(["scontrol", "show", "hostnames", nodes]))


def node_names(text: str) -> list[str]:
    """The lines that are names of nodes; warnings have spaces."""
    return [line for line in text.splitlines() if re.fullmatch(r"[\w.-]+", line)]


def _trial(options: JobOptions, shared: Path, job: str) -> Trial:
    return Trial(
        gpus=options.gpus_per_node or 0,
        scratch=options.scratch,
        shared=str(shared),
        job=f"trial {job}",
        network=options.network_interface,
        memory_gib=options.memory_gb,
    )


def _step(
    options: JobOptions, command: Sequence[str], *more: str, unset: Sequence[str] = ()
) -> Callable[[str], list[str]]:
    """Starts a command on a node, as a step with all that the job has there. unset: variables of another job."""
    flags = ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1", *more]
    flags += [f"--cpus-per-task={options.cpus_per_rank * options.ranks_per_node}"] if options.cpus_per_rank else []
    flags += [f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []
    srun = ["env", *(f"--unset={name}" for name in unset), "srun", *flags]
    return lambda node: [*srun, f"--nodelist={node}", *command]


def _code() -> Path:
    return Path(hpc_recolor.__file__).parents[1]


if __name__ == "__main__":
    sys.exit(main())
