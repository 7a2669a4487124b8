"""`python -m hpc_recolor.submit`: train as a SLURM job, or several as an array."""

import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.launch import sweep as sweeps
from hpc_recolor.launch.job_folder import JobFolder, Submission
from hpc_recolor.launch.profile import Profile, load_profile
from hpc_recolor.launch.resolve import resolve
from hpc_recolor.launch.submission import Plan, plan
from hpc_recolor.launch.submission import submit as submit_plan
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import INTERRUPTED

app = cli.command("hpc_recolor.submit")

RANKS_SHOWN = 16
POLL_S = 5.0
NOT_FINISHED = 1


@app.default
def submit(
    *,
    config: Annotated[Path | None, Parameter(help="YAML file with the same keys; flags win over it.")] = None,
    nodes: Annotated[int | None, Parameter(help="Nodes [nodes, 1 or more; 1 without it].")] = None,
    gpus_per_node: Annotated[
        int | None,
        Parameter(name="--gpus-per-node", help="GPUs, and so ranks, of each node [0: CPUs]; all of them without it."),
    ] = None,
    time: Annotated[
        str | None, Parameter(help="Longest turn before the job saves and is queued again: MINUTES, H:M:S, D-H:M:S.")
    ] = None,
    partition: Annotated[str | None, Parameter(help="Partition; without it SLURM's default one.")] = None,
    account: Annotated[str | None, Parameter(help="Account that pays.")] = None,
    qos: Annotated[str | None, Parameter(help="Quality of service.")] = None,
    constraint: Annotated[str | None, Parameter(help="Features that the nodes must have.")] = None,
    name: Annotated[str | None, Parameter(help="Short for --run.name; of a sweep: the folder of its array.")] = None,
    profile: Annotated[
        Path | None, Parameter(help="YAML file that describes the cluster, as in slurm/profiles/; flags win over it.")
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
        int | None, Parameter(name="--at-once", help="Runs of a sweep that may train at once [runs, 4 without it].")
    ] = None,
    cluster: Annotated[
        Literal["slurm", "local"], Parameter(help="local: the same job on this machine, without SLURM.")
    ] = "slurm",
    dry_run: Annotated[
        bool, Parameter(name="--dry-run", negative=(), help="Show the script and the ranks, and submit nothing.")
    ] = False,
    check: Annotated[bool, Parameter(negative=(), help="With --dry-run: also ask SLURM whether it would run.")] = False,
    follow: Annotated[
        bool, Parameter(negative=(), help="Show all ranks' logs until the end; Ctrl-C leaves the job running.")
    ] = False,
    wait: Annotated[bool, Parameter(negative=(), help="Return when the job has ended, with 0 if it finished.")] = False,
    flags: cli.ConfigFlags = Config(),  # noqa: B008, frozen
) -> int:
    """Train as a SLURM job. Takes the same config and flags as `train`.

    Jobs that reach their time limit, are preempted or lose a node save and are queued again, until the run is finished.
    The same command again goes on with a run; `python -m hpc_recolor.jobs` shows, stops and restarts it.
    """
    if (sweep and grid) or (sweep and config):
        raise UserError("--sweep names whole configs: leave out --grid and --config")
    if (sweep or grid) and (cluster == "local" or follow):
        raise UserError("--sweep and --grid are SLURM arrays: leave out --cluster local and --follow")
    if check and not dry_run:
        raise UserError("--check belongs to --dry-run: give both, or none")
    given = {
        "nodes": nodes, "gpus_per_node": gpus_per_node, "time": time, "partition": partition, "account": account,
        "qos": qos, "constraint": constraint, "after": after, "at_once": at_once,
    }  # fmt: skip
    overrides = cli.given(flags)
    if name and not (sweep or grid):
        overrides["run"] = overrides.get("run", {}) | {"name": name}
    configs = _configs(config, sweep, grid, overrides)
    options = resolve(load_profile(profile) if profile else Profile(), given, cluster)
    array = _array_name(name) if sweep or grid else None
    made = plan(configs, options, shlex.join(["python", "-m", "hpc_recolor.submit", *sys.argv[1:]]), array)
    if dry_run:
        return _show(made, check)
    submissions = submit_plan(made)
    _tell(made, submissions)
    if follow or wait:
        return _accompany(made, follow)
    return 0


def _configs(
    file: Path | None, sweep: Sequence[Path], grid: Sequence[str], overrides: dict[str, dict[str, object]]
) -> list[Config]:
    if sweep:
        return sweeps.of_files(sweep, overrides)
    if grid:
        return sweeps.of_grid(grid, file, overrides)
    return [load_config(file, overrides)]


def _array_name(name: str | None) -> str:
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--name={name}: use letters, digits, '.', '_' and '-'")
    return name or time.strftime("sweep-%Y%m%d-%H%M%S")


def _show(made: Plan, check: bool) -> int:
    """Print what would be submitted, and what each rank would run."""
    from hpc_recolor.launch import slurm_executor

    options = made.options
    if options.cluster == "slurm":
        print(made.script)
    print("# what each rank runs")
    per_node = options.ranks_per_node
    for rank in range(min(options.ranks, RANKS_SHOWN)):
        print(
            f"#   rank {rank} of {options.ranks}: node {rank // per_node}, "
            f"{'GPU ' + str(rank % per_node) if options.gpus_per_node else 'CPUs'}, "
            f"-m hpc_recolor.launch.job {made.folder.path}"
        )
    if options.ranks > RANKS_SHOWN:
        print(f"#   ... and so on, to rank {options.ranks - 1}")
    if check and options.cluster == "slurm":
        made_executor = slurm_executor.executor(made.folder, made.code.path, made.name, options, made.tasks)
        with tempfile.TemporaryDirectory() as folder:
            print(slurm_executor.test_only(made_executor, Path(folder) / "script.sh").strip() or "SLURM would run it")
    return 0


def _tell(made: Plan, submissions: Sequence[Submission]) -> None:
    for run, submission in zip(made.runs, submissions, strict=True):
        logs = JobFolder(submission.logs).log(submission.job, 0)
        place = run.path.relative_to(Path.cwd()) if run.path.is_relative_to(Path.cwd()) else run.path
        print(f"job {submission.job}: {place}, {submission.ranks} ranks on {submission.nodes} nodes, logs {logs}")
    print(f"follow it: python -m hpc_recolor.jobs logs {place} --follow")


def _accompany(made: Plan, follow: bool) -> int:
    """Stay until all runs are over, or the user leaves with Ctrl-C. Returns 0 unless a run is over and not finished."""
    from hpc_recolor import jobs
    from hpc_recolor.launch.overview import OVER, look

    if follow:
        jobs.logs_(made.runs[0].path, follow_=True)
    while True:
        states = [row.state for row in look(made.runs)[0]]
        if follow or all(state in OVER for state in states):
            return NOT_FINISHED if any(state in OVER and state != "finished" for state in states) else 0
        try:
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            print("the job goes on; see python -m hpc_recolor.jobs list", file=sys.stderr)
            return INTERRUPTED


if __name__ == "__main__":
    sys.exit(cli.run(app))
