"""The ranks of a run as a SLURM job: submitit writes the script and hands it to sbatch, with our ranks in the place of
a pickled function, and a last part that queues the job again when its ranks have asked for that."""

import shlex
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from hpc_recolor.launch.job_folder import FOLDER_MODE, JobFolder
from hpc_recolor.launch.profile import Container, Options, working_directory
from hpc_recolor.launch.slurm_query import run, slurm_error
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import STOPPED

CHECK = f"""\
[ -O "$job_folder" ] && [ "$(stat -c %a "$job_folder")" = {FOLDER_MODE:o} ] || {{
  echo "error: $job_folder is not yours alone (owner, mode {FOLDER_MODE:o}), and what lies there is run" >&2; exit 2
}}"""

# The ranks save for as long as SLURM lets them; this shell must not leave before them.
STAY = "trap : TERM"

# What follows srun. 140 = 128 + SIGUSR2, which came before a rank had begun to listen: nothing is lost.
REQUEUE = f"""\
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}} restart=${{SLURM_RESTART_COUNT:-0}}
asked=$job_folder/requeue-$job-$restart
[ -e "$asked" ] || [ $code -eq 140 ] || exit $code
run=$(cat "$asked" 2>/dev/null || dirname "$job_folder")
go_on="restart $(printf %q "$run")"
[ -e "$asked" ] || [ ! -e "$job_folder/{JobFolder.TASKS}" ] || go_on="list $(printf %q "$(dirname "$run")")"
rm -f "$asked"
[ -e "$job_folder/cancelled-$job" ] && exit {STOPPED}
if [ "$restart" -ge $max_requeues ]; then
  echo "stopped: queued again $restart times, as often as max_requeues allows" >&2
else
  scontrol requeue "$job" && exit 0
  echo "error: SLURM could not queue job $job again" >&2
fi
echo "The run is saved; go on with: python -m hpc_recolor.jobs $go_on" >&2
exit {STOPPED}"""
WITHOUT_END = 2**31 - 1


class RankExecutor(submitit.SlurmExecutor):
    """submitit's executor with the command of our ranks. No function is pickled, and nothing unpickled on the nodes."""

    def __init__(self, folder: JobFolder, python: str) -> None:
        super().__init__(folder=folder.path)
        self.python = python

    @classmethod
    def affinity(cls) -> int:
        """Scripts can be written where no SLURM is."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m hpc_recolor.launch.job {shlex.quote(str(self.folder))}"

    def text(self) -> str:
        """The script, as sbatch gets it."""
        text: str = self._make_submission_file_text(self._submitit_command_str, "")
        return text

    def start(self) -> str:
        """Submit it. Returns the job id."""
        return str(self._submit_command(self._submitit_command_str).job_id)


def executor(folder: JobFolder, code: Path, name: str, options: Options, tasks: int | None = None) -> RankExecutor:
    """What submits a job. code: the snapshot; tasks: of an array, a run each; None for one run."""
    made = RankExecutor(folder, _python(folder, options))
    made.update_parameters(**_parameters(folder, code, name, options))
    if tasks is not None:
        made.parameters |= {"map_count": tasks, "array_parallelism": options.at_once}
    return made


def start(made: RankExecutor) -> str:
    """Submit a job and return its id. Raises UserError, with nothing left behind, if SLURM refuses it."""
    before = set(Path(made.folder).iterdir())
    try:
        with redirect_stderr(StringIO()):  # submitit shows sbatch's own words too
            return made.start()
    except FailedJobError as error:
        for left in set(Path(made.folder).iterdir()) - before:
            left.unlink()
        raise UserError(f"SLURM refused the job: {slurm_error(str(error))}") from None


def test_only(made: RankExecutor, script: Path) -> str:
    """Ask sbatch what it would do with the script, without queueing it. Raises UserError with what it objects to."""
    script.write_text(made.text())
    return run(["sbatch", "--test-only", str(script)])


def _parameters(folder: JobFolder, code: Path, name: str, options: Options) -> dict[str, Any]:
    per_rank = options.cpus_per_node and max(1, options.cpus_per_node // options.ranks_per_node)
    requeues = WITHOUT_END if options.max_requeues is None else options.max_requeues
    return {
        "job_name": name,
        "nodes": options.nodes,
        "ntasks_per_node": options.ranks_per_node,
        "gpus_per_node": options.gpus_per_node or None,
        "cpus_per_task": per_rank,
        "mem": None if options.memory_gb is None else f"{max(1, round(options.memory_gb * 1024))}M",
        "time": options.time_min,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "dependency": options.after and f"afterany:{options.after}",
        "signal_delay_s": options.signal_s,
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, "chdir": options.chdir or working_directory()},
        "setup": [f"job_folder={shlex.quote(str(folder.path))}", CHECK, *_setup(code, options), STAY],
        # A rank that is gone ends the others.
        "srun_args": ["--open-mode=append", "--kill-on-bad-exit=1", *_srun_arguments(folder, options, per_rank)],
        "teardown": ["code=$?", f"max_requeues={requeues}", REQUEUE],
    }


def _setup(code: Path, options: Options) -> list[str]:
    modules = [f"module load {shlex.quote(module)}" for module in options.modules]
    path = f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1"
    return [*modules, *options.setup, path]


def _srun_arguments(folder: JobFolder, options: Options, cpus_per_rank: int | None) -> list[str]:
    # Since SLURM 22.05 srun does not take it from sbatch.
    cpus = [f"--cpus-per-task={cpus_per_rank}"] if cpus_per_rank else []
    container = options.container
    if not container or container.runtime != "pyxis":
        return cpus
    mounts = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in _mounts(folder, options, container))
    return [*cpus, f"--container-image={container.image}", f"--container-mounts={mounts}"]


def _python(folder: JobFolder, options: Options) -> str:
    container = options.container
    if not container:
        return shlex.quote(options.python or sys.executable)
    if container.runtime == "pyxis":
        return shlex.quote(container.python)
    binds = [part for mount in _mounts(folder, options, container) for part in ("--bind", mount)]
    return shlex.join(["apptainer", "exec", "--nv", *binds, container.image, container.python])


def _mounts(folder: JobFolder, options: Options, container: Container) -> list[str]:
    """The folder of all runs, where the job runs, and what the profile names."""
    own = [str(folder.path.parents[1]), options.chdir or working_directory()]
    for path in own:
        if any(sign in path for sign in " ,:"):
            raise UserError(f"{path}: a container's mounts cannot have spaces, ',' or ':' in them; rename the folder")
    return list(dict.fromkeys([*own, *container.mounts]))
