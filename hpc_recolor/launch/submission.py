"""From configs to submitted jobs: checks, files in the run folders, and the submission itself."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hpc_recolor.config import Config
from hpc_recolor.config_file import to_yaml
from hpc_recolor.launch import snapshot
from hpc_recolor.launch.job_folder import JobFolder, Submission, read_submission, write_submission
from hpc_recolor.launch.job_states import JobState, job_of, job_states
from hpc_recolor.launch.profile import JobOptions, plain_path, working_directory
from hpc_recolor.launch.slurm_time import format_time
from hpc_recolor.launch.snapshot import Snapshot
from hpc_recolor.run_folder.files import to_json, write_atomically
from hpc_recolor.run_folder.folder import RunFolder, claim
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.output import shell_command
from hpc_recolor.training import preflight


@dataclass(frozen=True)
class Plan:
    """A job that can be submitted: one run, or the runs of a sweep as an array.

    folder: the job folder that its ranks are started with, of the run or of the sweep. command: the command line that
    submits the same again.
    """

    name: str
    folder: JobFolder
    runs: tuple[RunFolder, ...]
    configs: tuple[Config, ...]
    options: JobOptions
    code: Snapshot
    command: str
    is_sweep: bool

    @property
    def script(self) -> str:
        """The script that is passed to sbatch."""
        from hpc_recolor.launch import slurm_executor

        return slurm_executor.executor(self.folder, self.code.path, self.name, self.options, self.tasks).text()

    @property
    def tasks(self) -> int | None:
        """Number of tasks of the array; None for one run."""
        return len(self.runs) if self.is_sweep else None


def plan(configs: Sequence[Config], options: JobOptions, command: str, sweep: str | None = None) -> Plan:
    """Plan a submission without writing anything. sweep: name of the array's own folder; None for one run.

    Raises UserError if a config cannot be trained on these ranks, if a run folder belongs to another config, or if a
    run already has a job.
    """
    found = [preflight.check(config, options.ranks) for config in configs]
    runs = tuple(RunFolder(plain_path(run.path, "run.folder")) for _, run in found)
    if len({run.path for run in runs}) < len(runs):
        raise UserError("run.name", "two runs of the sweep have the same name", "give each config its own")
    for run in runs:
        check_no_job(run)
    home = _home_of_sweep(configs[0], sweep) if sweep else runs[0]
    if sweep and home in runs:
        raise UserError(f"--name={sweep}", "one of the sweep's runs has that name", "give the sweep another one")
    folder = JobFolder.of(home)
    name = sweep or configs[0].run.name
    code = snapshot.capture(folder.code)
    options = options.model_copy(update={"chdir": working_directory()})
    return Plan(
        name=name,
        folder=folder,
        runs=runs,
        configs=tuple(config for config, _ in found),
        options=options,
        code=code,
        command=command,
        is_sweep=bool(sweep),
    )


def _home_of_sweep(config: Config, name: str) -> RunFolder:
    home = RunFolder(plain_path(config.run.folder / name, "run.folder"))
    if home.path.exists():
        raise UserError(f"--name={name}", f"{home.path} already exists", "give the sweep another name")
    return home


def submit(plan: Plan) -> list[Submission]:
    """Write the files that the ranks need, submit the job, and record it in each run folder: a submission for each run.

    Raises UserError, with all files restored, if SLURM refuses it.
    """
    homes = [JobFolder.of(run) for run in plan.runs]
    written = [
        file for run, home in zip(plan.runs, homes, strict=True) for file in (run.config, home.config, home.options)
    ]
    folders = [folder for home in (plan.folder, *homes) for folder in (home.path.parent, home.path)]
    with _restored_on_failure(written, folders):
        for folder in (plan.folder, *homes):
            folder.make()
        plan.code.write()
        for run, home, config in zip(plan.runs, homes, plan.configs, strict=True):
            claim(run, config)
            write_atomically(home.config, to_yaml(config).encode())
            write_atomically(home.options, to_json(plan.options, indent=1))
        if plan.is_sweep:
            write_atomically(plan.folder.tasks, json.dumps([str(run.path) for run in plan.runs]).encode())
        job, script = _start(plan)
    jobs = [f"{job}_{task}" for task in range(len(homes))] if plan.is_sweep else [job]
    submissions = [_make_submission(plan, job, script) for job in jobs]
    for home, submission in zip(homes, submissions, strict=True):
        plan.folder.cancelled(submission.job).unlink(missing_ok=True)  # of an older job: SLURM may reuse its ids
        first = _first_submitted(home) or submission.submitted
        write_submission(home, submission.model_copy(update={"first_submitted": first}))
    return submissions


def _first_submitted(home: JobFolder) -> str | None:
    """When the run was first submitted, if it was submitted before."""
    try:
        last = read_submission(home)
    except UserError:
        return None
    return last.first_submitted or last.submitted


def check_no_job(run: RunFolder) -> None:
    """Raises UserError if the run's last job has not ended."""
    folder = JobFolder.of(run)
    if not folder.submission.exists():
        return
    last = read_submission(folder)
    if last.cluster == "local":
        from hpc_recolor.launch import local_executor

        job = JobState(job=last.job, state="RUNNING") if local_executor.is_running(last) else None
    else:
        job = job_of(last, job_states([last.job]))
    if job and not job.has_ended:
        raise UserError(
            f"run {run.path}",
            f"already has job {last.job} ({job.state.lower()})",
            f"see {shell_command('python', '-m', 'hpc_recolor.jobs', 'status', run.path)}, or cancel it first",
        )


def _start(plan: Plan) -> tuple[str, str | None]:
    """The id of the job that was started, and the name of its script."""
    if plan.options.cluster == "local":
        from hpc_recolor.launch import local_executor

        return local_executor.start(plan.folder, plan.code.path, plan.options), None
    from hpc_recolor.launch import slurm_executor

    executor = slurm_executor.executor(plan.folder, plan.code.path, plan.name, plan.options, plan.tasks)
    return slurm_executor.start(executor), executor.script


def _make_submission(plan: Plan, job: str, script: str | None) -> Submission:
    options = plan.options
    return Submission(
        cluster=options.cluster,
        job=job,
        ranks=options.ranks,
        nodes=options.nodes,
        logs=plan.folder.path,
        partition=options.partition,
        time=None if options.time_min is None else format_time(options.time_min),
        submitted=datetime.now(UTC).isoformat(timespec="milliseconds"),
        code=plan.code.path.name,
        commit=plan.code.commit,
        command=plan.command,
        script=script,
    )


@contextmanager
def _restored_on_failure(files: Sequence[Path], folders: Sequence[Path]) -> Iterator[None]:
    """If the body fails, restore the files, and remove the folders that did not exist before."""
    before = {file: file.read_bytes() if file.exists() else None for file in files}
    new = [folder for folder in dict.fromkeys(folders) if not folder.exists()]
    parents = dict.fromkeys(parent for folder in new for parent in folder.parents if not parent.exists())
    try:
        yield
    except BaseException:
        for folder in new:
            shutil.rmtree(folder, ignore_errors=True)
        for file, content in before.items():
            if content is not None:
                write_atomically(file, content)
        for parent in parents:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise
