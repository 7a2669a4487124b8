"""From configs to submitted jobs: what is checked before, what is left in the run folders, and submitting again."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hpc_recolor.config import Config, check_ranks
from hpc_recolor.config_file import load_config, to_yaml
from hpc_recolor.launch import slurm_query, snapshot
from hpc_recolor.launch.job_folder import JobFolder, Submission, read_submission, write_submission
from hpc_recolor.launch.job_states import OVER, job_states
from hpc_recolor.launch.profile import Options, plain_path, working_directory
from hpc_recolor.launch.snapshot import Snapshot
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder, claim, find
from hpc_recolor.runtime.errors import UserError


@dataclass(frozen=True)
class Plan:
    """A job that can be submitted: one run, or the runs of a sweep as an array. folder: what its ranks are started
    with, of the run or of the sweep."""

    name: str
    folder: JobFolder
    runs: tuple[RunFolder, ...]
    configs: tuple[Config, ...]
    options: Options
    code: Snapshot
    command: str
    is_sweep: bool

    @property
    def script(self) -> str:
        """What sbatch gets."""
        from hpc_recolor.launch import slurm_executor

        return slurm_executor.executor(self.folder, self.code.path, self.name, self.options, self.tasks).text()

    @property
    def tasks(self) -> int | None:
        return len(self.runs) if self.is_sweep else None


def plan(configs: Sequence[Config], options: Options, command: str, sweep: str | None = None) -> Plan:
    """What would be submitted. Writes nothing. sweep: the name of an array's own folder; None for one run.

    Raises UserError if a run cannot be trained so, its folder is another run's, or a job has it already.
    """
    for config in configs:
        check_ranks(config, options.ranks)
        _check_photos(config)
    runs = tuple(RunFolder(plain_path(find(config).path, "run.folder")) for config in configs)
    if len({run.path for run in runs}) < len(runs):
        raise UserError("two runs of the sweep have one run.name: give each config its own")
    for run in runs:
        _check_free(run)
    home = _home_of_sweep(configs[0], sweep) if sweep else runs[0]
    if sweep and home in runs:
        raise UserError(f"--name={sweep}: one of its runs has that name; give the sweep another one")
    folder = JobFolder.of(home)
    name = sweep or configs[0].run.name
    code = snapshot.look(folder.code)
    options = options.model_copy(update={"chdir": working_directory()})
    return Plan(name, folder, runs, tuple(configs), options, code, command, bool(sweep))


def _home_of_sweep(config: Config, name: str) -> RunFolder:
    home = RunFolder(plain_path(config.run.folder / name, "run.folder"))
    if home.path.exists():
        raise UserError(f"--name={name}: {home.path} is there already; give the sweep another name")
    return home


def submit(plan: Plan) -> list[Submission]:
    """Write what the ranks need, submit the job, and note it in each run folder: a submission for each run.

    Raises UserError, with everything as it was before, if SLURM does not take it.
    """
    homes = [JobFolder.of(run) for run in plan.runs]
    written = [
        file for run, home in zip(plan.runs, homes, strict=True) for file in (run.config, home.config, home.options)
    ]
    folders = [folder for home in (plan.folder, *homes) for folder in (home.path.parent, home.path)]
    with _nothing_changed_by_failure(written, folders):
        for folder in (plan.folder, *homes):
            folder.make()
        plan.code.write()
        for run, home, config in zip(plan.runs, homes, plan.configs, strict=True):
            claim(run, config)
            write_atomically(home.config, to_yaml(config).encode())
            write_atomically(home.options, plan.options.model_dump_json(indent=1).encode())
        if plan.is_sweep:
            write_atomically(plan.folder.tasks, json.dumps([str(run.path) for run in plan.runs]).encode())
        job = _start(plan)
    jobs = [f"{job}_{task}" for task in range(len(homes))] if plan.is_sweep else [job]
    submissions = [_note(plan, job) for job in jobs]
    for home, submission in zip(homes, submissions, strict=True):
        plan.folder.cancelled(submission.job).unlink(missing_ok=True)  # of an older job: numbers may start anew
        write_submission(home, submission)
    return submissions


def resubmit(run: RunFolder) -> Submission:
    """Submit a run again, as it was: its checkpoints, its config, its options and the code of its last submission.

    Raises UserError if its last job is not over, or what it needs is not there.
    """
    run = RunFolder(run.path.absolute())
    folder = JobFolder.of(run)
    last = read_submission(folder)
    _check_free(run)
    try:
        options = Options.model_validate_json(folder.options.read_bytes())
        code = _code_of(folder, last)
    except (OSError, ValueError, shutil.Error) as error:
        raise UserError(f"{folder.path} lacks what `restart` needs ({error}); submit the run again") from None
    again = Plan(
        name=run.path.name,
        folder=folder,
        runs=(run,),
        configs=(load_config(folder.config, {}),),
        options=options.model_copy(update={"after": None}),
        code=code,
        command=last.command,
        is_sweep=False,
    )
    (submission,) = submit(again)
    return submission


def _code_of(folder: JobFolder, last: Submission) -> Snapshot:
    """The snapshot of the last submission, in the run's own folder also if it was a sweep's."""
    place = folder.code / last.code
    if not place.is_dir():
        shutil.copytree(JobFolder(last.logs).code / last.code, place)
    return Snapshot(place, last.commit, b"", {})


def _start(plan: Plan) -> str:
    if plan.options.cluster == "local":
        from hpc_recolor.launch import local_executor

        return local_executor.start(plan.folder, plan.code.path, plan.options)
    from hpc_recolor.launch import slurm_executor

    return slurm_executor.start(
        slurm_executor.executor(plan.folder, plan.code.path, plan.name, plan.options, plan.tasks)
    )


def _note(plan: Plan, job: str) -> Submission:
    options = plan.options
    return Submission(
        cluster=options.cluster,
        job=job,
        ranks=options.ranks,
        nodes=options.nodes,
        logs=plan.folder.path,
        partition=options.partition,
        time=None if options.time_min is None else slurm_query.format_time(options.time_min),
        submitted=datetime.now(UTC).isoformat(timespec="seconds"),
        code=plan.code.path.name,
        commit=plan.code.commit,
        command=plan.command,
    )


def _check_photos(config: Config) -> None:
    named = {
        "data.photos": config.data.photos,
        "data.shards": config.data.shards,
        "data.held_out": config.data.held_out,
    }
    if not (config.data.photos or config.data.shards):
        raise UserError("data.photos and data.shards are both empty: name a folder of photographs, or of shards")
    for key, path in named.items():
        if path and not path.exists():
            raise UserError(f"{key}={path}: no such folder; name one that the nodes see too")


def _check_free(run: RunFolder) -> None:
    """Raises UserError if the run's last job is not over."""
    folder = JobFolder.of(run)
    if not folder.submission.exists():
        return
    last = read_submission(folder)
    if last.cluster == "local":
        from hpc_recolor.launch import local_executor

        state = "RUNNING" if local_executor.is_running(last) else None
    else:
        known = job_states([last.job]).get(last.job)
        state = known.state if known else None
    if state and not state.startswith(OVER):
        raise UserError(
            f"run {run.path} has job {last.job} already ({state.lower()}); see python -m hpc_recolor.jobs status "
            f"{run.path}, or cancel it first"
        )


@contextmanager
def _nothing_changed_by_failure(files: Sequence[Path], folders: Sequence[Path]) -> Iterator[None]:
    """If submitting fails, files are again what they were, and run folders that were not there do not stay."""
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
