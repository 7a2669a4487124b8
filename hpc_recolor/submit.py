"""`python -m hpc_recolor.submit`: train as a SLURM job, or several runs as an array."""

import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.config_file import merge
from hpc_recolor.launch import sweep as sweeps
from hpc_recolor.launch.defaults import DEFAULTS, read_defaults
from hpc_recolor.launch.given_options import GivenOptions
from hpc_recolor.launch.job_folder import JobFolder, Submission
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.launch.submission import Plan, plan
from hpc_recolor.launch.submission import submit as submit_plan
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import INTERRUPTED
from hpc_recolor.runtime.output import shell_command

app = cli.command("submit")

SUBMIT = ("python", "-m", "hpc_recolor.submit")

RANKS_SHOWN = 16
NOT_FINISHED = 1


@app.default
def submit(
    *,
    config: Annotated[Path | None, Parameter(help=cli.CONFIG_HELP)] = None,
    nodes: Annotated[int | None, Parameter(help="Nodes [nodes, 1 or more; default: 1].")] = None,
    gpus_per_node: Annotated[
        int | None,
        Parameter(name="--gpus-per-node", help="GPUs, and so ranks, of each node [0: CPUs; default: all]."),
    ] = None,
    time: Annotated[
        str | None, Parameter(help="Time limit, at which the job saves and is requeued: MINUTES, H:M:S, D-H:M:S.")
    ] = None,
    partition: Annotated[str | None, Parameter(help="Partition [default: SLURM's default one].")] = None,
    account: Annotated[str | None, Parameter(help="Account to charge.")] = None,
    qos: Annotated[str | None, Parameter(help="Quality of service.")] = None,
    constraint: Annotated[str | None, Parameter(help="Features that the nodes must have.")] = None,
    name: Annotated[str | None, Parameter(help="Short for --run.name; for a sweep: the folder of its array.")] = None,
    profile: Annotated[
        Path | None,
        Parameter(
            help="YAML file that describes the cluster, or the name of one in slurm/profiles/; flags win over it."
        ),
    ] = None,
    after: Annotated[str | None, Parameter(help="Start when that job has ended, however it ends [job id].")] = None,
    sweep: Annotated[
        tuple[Path, ...], Parameter(help="Config files: one job array, a run for each.", consume_multiple=True)
    ] = (),
    grid: Annotated[
        tuple[str, ...],
        Parameter(help="section.field=value,value: one job array, a run for each combination.", consume_multiple=True),
    ] = (),
    at_once: Annotated[
        int | None, Parameter(name="--at-once", help="Runs of a sweep that may train at once [runs; default: 4].")
    ] = None,
    cluster: Annotated[
        Literal["slurm", "local"] | None,
        Parameter(help="local: the same job on this machine, without SLURM [default: slurm]."),
    ] = None,
    preflight: Annotated[
        bool | None,
        Parameter(help="Try each node before training, in about half a minute; a bad one ends the job."),
    ] = None,
    exclude_bad: Annotated[
        bool | None,
        Parameter(name="--exclude-bad", negative=(), help="With --preflight: queue the job again without bad nodes."),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(name="--dry-run", negative=(), help="Show the script and the ranks, and submit nothing.")
    ] = False,
    check: Annotated[bool, Parameter(negative=(), help="With --dry-run: also ask SLURM whether it would run.")] = False,
    follow: Annotated[
        bool, Parameter(negative=(), help="Show all ranks' logs until the job ends; Ctrl-C leaves it running.")
    ] = False,
    wait: Annotated[bool, Parameter(negative=(), help="Return when the job has ended, with 0 if it finished.")] = False,
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> int:
    """Train as a SLURM job. Takes the same config and flags as `train`.

    Jobs that reach their time limit, are preempted or lose a node are requeued and resume, until the run is finished.
    The same command resumes a run; `python -m hpc_recolor.jobs` shows, cancels and restarts it.

    hpc_recolor.yaml in this folder, and then ~/.config/hpc_recolor.yaml, may hold defaults of these flags.
    """
    given: dict[str, object] = {
        "nodes": nodes, "gpus_per_node": gpus_per_node, "time": time, "partition": partition, "account": account,
        "qos": qos, "constraint": constraint, "after": after, "at_once": at_once,
        "preflight": preflight, "exclude_bad": exclude_bad,
    }  # fmt: skip
    fields = cli.given(flags)
    if name and not (sweep or grid):
        fields = merge(fields, {"run": {"name": name}})
    options = GivenOptions(config, profile, cluster, given, fields, read_defaults())
    _check_flags(sweep, grid, config, options.cluster == "local" or follow, check and not dry_run)
    configs = sweeps.find_configs(config, sweep, grid, fields, options.defaults)
    _require_photographs(configs)
    array = _array_name(name) if sweep or grid else None
    complete, unchecked = options.complete(needs_cluster=not dry_run or check)
    complete = with_possible_preflight(complete, bool(sweep or grid), preflight, exclude_bad)
    planned = plan(configs, complete, shell_command(*SUBMIT, *_arguments()), array)
    sources = options.sources(planned.options, configs[0])
    if dry_run:
        notes = [f"not checked against the cluster: {unchecked}"] if unchecked else []
        return _print_plan(planned, check, [*sources, *notes])
    print(*sources, sep="\n")
    _print_submissions(planned, submit_plan(planned))
    return _wait(planned, follow) if follow or wait else 0


def _arguments() -> list[str]:
    """Those of this process, by whichever name it was started."""
    return sys.argv[2:] if sys.argv[1:2] == ["submit"] else sys.argv[1:]


def _require_photographs(configs: Sequence[Config]) -> None:
    if any(config.data.photos is None and config.data.shards is None for config in configs):
        example = shell_command(*SUBMIT, *_arguments(), "--data.photos", "DIR")
        raise UserError(
            "--data.photos",
            "missing, as is --data.shards",
            f"for example: {example}; or write `data: {{photos: DIR}}` into {DEFAULTS}",
        )


def _check_flags(
    sweep: Sequence[Path], grid: Sequence[str], config: Path | None, single_run: bool, check_alone: bool
) -> None:
    """Raise UserError for flags that exclude each other."""
    if sweep and (grid or config):
        raise UserError("--sweep", "its files are whole configs", "leave out --grid and --config")
    if (sweep or grid) and single_run:
        raise UserError("--sweep, --grid", "only available as SLURM arrays", "leave out --cluster local and --follow")
    if check_alone:
        raise UserError("--check", "only available with --dry-run", "add --dry-run")


def with_possible_preflight(
    options: JobOptions, is_sweep: bool, preflight: bool | None, exclude_bad: bool | None
) -> JobOptions:
    """The options, without a preflight where nodes cannot be tried before training, as a line on stderr says.

    preflight, exclude_bad: the flags, None where one was left out. Raises UserError where a flag asked for it.
    """
    if not options.preflight:
        if exclude_bad:
            raise UserError("--exclude-bad", "only available with --preflight", "add --preflight")
        if options.exclude_bad and preflight is None:
            print("exclude_bad has no effect without preflight", file=sys.stderr)
        return options.model_copy(update={"exclude_bad": False})
    reason = ""
    if options.cluster == "local" or is_sweep:
        reason = f"not available with {'--cluster local' if options.cluster == 'local' else 'a sweep'}"
    elif options.container:
        reason = "not available with a container, in which there is no srun"
    if not reason:
        return options
    if preflight or exclude_bad:
        flag = "--preflight" if preflight else "--exclude-bad"
        raise UserError(flag, reason, "leave it out")
    print(f"nodes are not tried before training: preflight is {reason}", file=sys.stderr)
    return options.model_copy(update={"preflight": False, "exclude_bad": False})


def _array_name(name: str | None) -> str:
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--name={name}", "not a folder name", "use letters, digits, '.', '_' and '-'")
    return name or time.strftime("sweep-%Y%m%d-%H%M%S")


def _print_plan(planned: Plan, check: bool, sources: Iterable[str]) -> int:
    """Print the script, the command of each rank and where values come from, and with `check` SLURM's forecast."""
    from hpc_recolor.launch import slurm_executor

    options = planned.options
    if options.cluster == "slurm":
        print(planned.script)
    print("# commands of the ranks")
    per_node = options.ranks_per_node
    for rank in range(min(options.ranks, RANKS_SHOWN)):
        print(
            f"#   rank {rank} of {options.ranks}: node {rank // per_node}, "
            f"{'GPU ' + str(rank % per_node) if options.gpus_per_node else 'CPUs'}, "
            f"-m hpc_recolor.launch.job {planned.folder.path}"
        )
    if options.ranks > RANKS_SHOWN:
        print(f"#   ... up to rank {options.ranks - 1}")
    print("# values")
    for line in sources:
        print(f"#   {line}")
    if check and options.cluster == "slurm":
        executor = slurm_executor.executor(planned.folder, planned.code.path, planned.name, options, planned.tasks)
        with tempfile.TemporaryDirectory() as folder:
            print(slurm_executor.test_only(executor, Path(folder) / "script.sh").strip() or "SLURM would run it")
    return 0


def _print_submissions(planned: Plan, submissions: Sequence[Submission]) -> None:
    for run, submission in zip(planned.runs, submissions, strict=True):
        logs = JobFolder(submission.logs).log(submission.job, 0)
        path = run.path.relative_to(Path.cwd()) if run.path.is_relative_to(Path.cwd()) else run.path
        print(f"job {submission.job}: {path}, {submission.ranks} ranks on {submission.nodes} nodes, logs {logs}")
    print(f"follow it: {shell_command('python', '-m', 'hpc_recolor.jobs', 'logs', path, '--follow')}")


def _wait(planned: Plan, follow: bool) -> int:
    """Wait until all runs have ended, or for Ctrl-C. Returns 0 unless a run has ended without finishing."""
    from hpc_recolor import jobs
    from hpc_recolor.launch.follow import wait_until_ended
    from hpc_recolor.launch.overview import inspect

    if follow:
        jobs.logs_(planned.runs[0].path, follow_=True)
        rows, _ = inspect(planned.runs)
    else:
        try:
            rows = wait_until_ended(planned.runs)
        except KeyboardInterrupt:
            print("the job continues; see python -m hpc_recolor.jobs list", file=sys.stderr)
            return INTERRUPTED
    return NOT_FINISHED if any(row.has_ended and row.state != "finished" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(cli.run(app))
