"""Resume a run whose job has ended or waits after a requeue, with the config, options and code of its submission."""

import shutil

from hpc_recolor.launch.job_folder import JobFolder, Submission, read_submission
from hpc_recolor.launch.overview import Overview, inspect_one
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.launch.slurm_command import run_command
from hpc_recolor.launch.snapshot import Snapshot
from hpc_recolor.launch.submission import Plan, check_no_job, submit
from hpc_recolor.run_folder.folder import RunFolder, read_config, with_recorded_accumulate
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.json_text import parse_json
from hpc_recolor.runtime.output import shell_command

# SLURM refuses to start a job within the second in which it revoked the job's last allocation.
START_DELAY_S = 3


def restart(run: RunFolder) -> Submission:
    """Submit a run again if its job has ended, or start it now if it waits after a requeue.

    Raises UserError if its job runs, or waits for anything else.
    """
    submission = read_submission(JobFolder.of(run))
    overview = inspect_one(run)
    if overview.has_ended:
        return resubmit(run)
    if overview.reason != "BeginTime":
        raise _not_now(overview)
    run_command(["scontrol", "update", f"JobId={overview.job}", f"StartTime=now+{START_DELAY_S}"])
    return submission


def resubmit(run: RunFolder) -> Submission:
    """Submit a run again with the config, options and code of its last submission.

    Raises UserError if its last job has not ended, or if a file that is needed is missing.
    """
    run = RunFolder(run.path.absolute())  # so that the job finds it from any working directory
    folder = JobFolder.of(run)
    last = read_submission(folder)
    check_no_job(run)
    try:
        options = JobOptions.model_validate(parse_json(folder.options.read_bytes()))
        code = _code_of(folder, last)
    except (OSError, ValueError, shutil.Error) as error:
        raise UserError(str(folder.path), f"lacks what `restart` needs ({error})", "submit the run again") from None
    plan = Plan(
        name=run.path.name,
        folder=folder,
        runs=(run,),
        configs=(with_recorded_accumulate(read_config(folder.config, run), run),),
        options=options.model_copy(update={"after": None}),
        code=code,
        command=last.command,
        is_sweep=False,
    )
    (submission,) = submit(plan)
    return submission


def _code_of(folder: JobFolder, last: Submission) -> Snapshot:
    """The snapshot of the last submission, copied into the run's own folder if it was a sweep's."""
    path = folder.code / last.code
    if not path.is_dir():
        shutil.copytree(JobFolder(last.logs).code / last.code, path)
    return Snapshot(path=path, commit=last.commit, difference=b"", files={})


def _not_now(overview: Overview) -> UserError:
    job = f"job {overview.job} of {overview.run}"
    if overview.state == "waiting":
        return UserError(job, f"is already waiting ({overview.why})", "cancel it first to submit it again")
    if overview.state == "ending":
        return UserError(job, "is just ending", "try again in a moment")
    command = shell_command("python", "-m", "hpc_recolor.jobs", "cancel", overview.run)
    return UserError(job, "is running", f"cancel it first: {command}")
