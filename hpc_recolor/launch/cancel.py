"""Cancel a run's job, so that it saves, ends, and is not requeued."""

import os
import signal

from hpc_recolor.launch.job_folder import JobFolder, Submission, read_submission
from hpc_recolor.launch.overview import Overview, inspect_one
from hpc_recolor.launch.slurm_command import run_command
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError


def cancel(run: RunFolder) -> Overview:
    """Cancel the job of a run and return the run's overview from before. Raises UserError if the job has ended."""
    submission = read_submission(JobFolder.of(run))
    overview = inspect_one(run)
    if overview.has_ended:
        raise UserError(
            f"job {overview.job} of {run.path}", f"has already ended ({overview.state})", "nothing to cancel"
        )
    _cancel_job(submission)
    return overview


def _cancel_job(submission: Submission) -> None:
    """Mark the job as cancelled, which prevents a requeue, then signal it. If that fails, no marker remains."""
    marker = JobFolder(submission.logs).cancelled(submission.job)
    try:
        marker.touch()
    except OSError as error:
        raise UserError(
            str(marker), f"cannot be written ({error.strerror})", "free some space there and cancel again"
        ) from None
    try:
        if submission.cluster == "local":
            os.kill(int(submission.job), signal.SIGTERM)
        else:
            run_command(["scancel", submission.job])
    except ProcessLookupError:
        pass  # it has just ended
    except BaseException:
        marker.unlink(missing_ok=True)
        raise
