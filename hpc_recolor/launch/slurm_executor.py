"""Runs ranks as a SLURM job.

submitit writes the script and passes it to sbatch. Our ranks' command replaces its pickled function, and the end of the
script requeues the job when its ranks request that.
"""

import os
import shlex
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from hpc_recolor.launch.job_folder import FOLDER_MODE, IDLE_STARTS, JobFolder
from hpc_recolor.launch.profile import Container, JobOptions, working_directory
from hpc_recolor.launch.slurm_command import run_command, slurm_error
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import STOPPED
from hpc_recolor.runtime.launcher_environment import SCRIPT_BEGAN, foreign_names

CHECK = f"""\
[ -O "$job_folder" ] && [ "$(stat -c %a "$job_folder")" = {FOLDER_MODE:o} ] || {{
  echo "error: $job_folder must be yours with mode {FOLDER_MODE:o}, as its files are executed" >&2; exit 2
}}"""

# A profile's lines may set options of the shell, and variables of any name: these come after them.
NO_OPTIONS = "set +eu +o pipefail"
JOB = """\
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID} restart=${SLURM_RESTART_COUNT:-0}"""

# When the script began and ended: its ranks are not all that takes time in a job. Began: as proc_pid_stat(5) has it, by
# the clock that ranks ask; /proc/uptime may be a container's own (lxcfs). Ended: subshells, as that of
# `leave_lost_ranks`, do not inherit the trap; a job that is requeued or cancelled gets SIGTERM, all of its processes.
RECORD_BEGIN = f"""export {SCRIPT_BEGAN}=$(read -r stat </proc/$$/stat && set -- ${{stat##*) }} && echo "${{20}}")"""
RECORD_END = (
    """trap 'trap "" TERM; echo "$job $restart $(date +%s.%N)" """
    f"""2>/dev/null >>"$job_folder/{JobFolder.ENDED}" || :' EXIT"""
)

# On SIGTERM the ranks save for as long as SLURM allows; this shell must not exit before them.
OUTLIVE_RANKS = "trap : TERM"

# SIGUSR2 waits until a rank has its handler (`StopRequest`): interpreters take a while to start, and the first rank
# that it ended would have srun end the others by another signal. env has the option since coreutils 8.31.
HOLD = "$hold"
HOLD_SIGNAL = 'hold="env --block-signal=USR2"; $hold true 2>/dev/null || hold='

# srun learns from a rank itself that it has ended, and would wait for good if the network was cut just then. Once this
# node's part of the step is over, all ranks have ended or are about to. Where processes of root are hidden, it waits.
LOST_RANKS_S = 60
LEAVE_LOST_RANKS = f"""\
leave_lost_ranks() {{
  # 0: there are ranks, 1: there are none; anything else is no answer.
  look() {{ pgrep -f "^slurmstepd: .$SLURM_JOB_ID[.][0-9]+." >/dev/null 2>&1; }}
  until look; do sleep 2 >/dev/null 2>&1; done
  without=0
  while [ $without -lt {LOST_RANKS_S} ]; do
    sleep 2 >/dev/null 2>&1
    look && found=0 || found=$?
    [ $found -eq 1 ] && without=$((without + 2)) || without=0
  done
  echo "error: ranks of other nodes have not reported their end for {LOST_RANKS_S} s: their network is lost" >&2
  pkill -KILL -P $$ -x srun
}}
leave_lost_ranks &
leaving=$!"""

# Runs after srun, or instead of it. Exit code 140 = 128 + SIGUSR2: the signal came before a rank had installed its
# handler, where nothing held it; nothing is lost. 137 = 128 + SIGKILL: of a rank, unless lost ranks were left, after
# which `leaving` is over. A job that SLURM already ends may be one that its user cancelled after a signal, which only
# accounting tells, a little late. SLURM sends SIGTERM to all processes of a job that it requeues; only then can nodes
# be excluded.
END_JOB = f"""\
end_job() {{  # EXIT_CODE
  code=$1
  kill $leaving 2>/dev/null && watched=yes || watched=
  request=$job_folder/requeue-$job-$restart
  early=$job_folder/early-$job
  excluded=$job_folder/excluded-$job
  run=$(cat "$request" 2>/dev/null || dirname "$job_folder")
  resume="restart $(printf %q "$run")"
  [ -e "$request" ] || [ ! -e "$job_folder/{JobFolder.TASKS}" ] || resume="list $(printf %q "$(dirname "$run")")"
  if [ -e "$request" ]; then
    rm -f "$early"
  else
    if [ $code -eq 137 ] && [ $watched ]; then
      echo "error: a rank was killed on the node that srun names, as for lack of memory (memory_gb asks for more)" >&2
      echo "Once that is done: python -m hpc_recolor.jobs $resume" >&2
    fi
    [ $code -eq 140 ] || exit $code
    echo "$restart" >> "$early"
  fi
  rm -f "$request"
  [ -e "$job_folder/cancelled-$job" ] && exit {STOPPED}
  if scontrol show job "$SLURM_JOB_ID" 2>/dev/null | grep -q JobState=COMPLETING; then
    for attempt in 1 2 3 4 5; do
      case $(sacct -nPX -j "$SLURM_JOB_ID" -o State 2>/dev/null) in
        CANCELLED*) exit {STOPPED} ;;
        RUNNING | '') sleep 1 ;;
        *) break ;;
      esac
    done
  fi
  trap '' TERM
  if [ "$restart" -ge $max_requeues ]; then
    echo "stopped: requeued $restart times, the limit set by max_requeues" >&2
  elif [ "$(cat "$early" 2>/dev/null | wc -l)" -ge {IDLE_STARTS} ]; then
    echo "stopped: {IDLE_STARTS} times in a row a signal came before training began; give the job more --time" >&2
    rm -f "$early"
  elif scontrol requeue "$job"; then
    [ ! -e "$excluded" ] || scontrol update JobId="$job" ExcNodeList="$(cat "$excluded")"
    exit 0
  else
    echo "error: SLURM could not requeue job $job" >&2
  fi
  echo "The run is saved; resume it with: python -m hpc_recolor.jobs $resume" >&2
  exit {STOPPED}
}}"""
NO_REQUEUE_LIMIT = 2**31 - 1


class RankExecutor(submitit.SlurmExecutor):
    """submitit's executor with our ranks' command: no function is pickled, and nothing is unpickled on the nodes."""

    def __init__(self, folder: JobFolder, python: str) -> None:
        super().__init__(folder=folder.path)
        self.python = python
        self.script: str | None = None

    @classmethod
    def affinity(cls) -> int:
        """Positive, so that scripts can be written on a machine without SLURM."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m hpc_recolor.launch.job {shlex.quote(str(self.folder))}"

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # sbatch takes variables for options, over those of the script, and passes them all on to the job.
        self.script = submission_file_path.name
        unset = [f"--unset={name}" for name in foreign_names(os.environ, devices=True)]
        return ["env", *unset, "sbatch", str(submission_file_path)]

    def text(self) -> str:
        """The script that is passed to sbatch."""
        text: str = self._make_submission_file_text(self._submitit_command_str, "")
        return text

    def start(self) -> str:
        """Submit it. Returns the job id."""
        return str(self._submit_command(self._submitit_command_str).job_id)


def executor(folder: JobFolder, code: Path, name: str, options: JobOptions, tasks: int | None = None) -> RankExecutor:
    """The executor that submits a job. code: the snapshot; tasks: number of runs in an array, None for a single run."""
    made = RankExecutor(folder, _python(folder, options))
    made.update_parameters(**_parameters(folder, code, name, options))
    if tasks is not None:
        made.parameters |= {"map_count": tasks, "array_parallelism": options.at_once}
    return made


def start(made: RankExecutor) -> str:
    """Submit a job and return its id. Raises UserError, with nothing left behind, if SLURM refuses it."""
    before = set(Path(made.folder).iterdir())
    try:
        with redirect_stderr(StringIO()):  # submitit also prints sbatch's message
            return made.start()
    except FailedJobError as error:
        for left in set(Path(made.folder).iterdir()) - before:
            left.unlink()
        raise slurm_error(str(error), context="job refused: ") from None


def test_only(made: RankExecutor, script: Path) -> str:
    """sbatch's forecast for the script, without submitting it. Raises UserError if SLURM would refuse the job."""
    script.write_text(made.text())
    return run_command(["sbatch", "--test-only", str(script)])


def _parameters(folder: JobFolder, code: Path, name: str, options: JobOptions) -> dict[str, Any]:
    requeues = NO_REQUEUE_LIMIT if options.max_requeues is None else options.max_requeues
    return {
        "job_name": name,
        "nodes": options.nodes,
        "ntasks_per_node": options.ranks_per_node,
        "gpus_per_node": options.gpus_per_node or None,
        "cpus_per_task": options.cpus_per_rank,
        "mem": options.memory,
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
        "setup": [
            RECORD_BEGIN,
            *environment_lines(code, options),
            NO_OPTIONS,
            f"job_folder={shlex.quote(str(folder.path))} max_requeues={requeues} leaving=",
            CHECK,
            JOB,
            OUTLIVE_RANKS,
            END_JOB,
            RECORD_END,
            *([_preflight(folder, options)] if options.preflight else []),
            LEAVE_LOST_RANKS,
        ],
        # A rank that fails ends the others.
        "srun_args": ["--open-mode=append", "--kill-on-bad-exit=1", *_srun_arguments(folder, options)],
        "teardown": ["end_job $?"],
    }


def environment_lines(code: Path, options: JobOptions) -> list[str]:
    """Shell lines after which the Python of a job finds what it needs. code: the folder of our packages."""
    modules = [f"module load {shlex.quote(module)}" for module in options.modules]
    path = f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1"
    return [*modules, *options.setup, path, *([] if _is_pyxis(options) else [HOLD_SIGNAL])]


def _preflight(folder: JobFolder, options: JobOptions) -> str:
    """Tries the nodes, and ends the job if one is bad."""
    command = [options.python or sys.executable, "-u", "-m", "hpc_recolor.diagnostics.slurm_trials", str(folder.path)]
    return f"{shlex.join(command)} || end_job $?"


def _srun_arguments(folder: JobFolder, options: JobOptions) -> list[str]:
    # Since SLURM 22.05 srun does not inherit it from sbatch.
    cpus = [f"--cpus-per-task={options.cpus_per_rank}"] if options.cpus_per_rank else []
    container = options.container
    if not container or not _is_pyxis(options):
        return cpus
    mounts = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in _mounts(folder, options, container))
    return [*cpus, f"--container-image={container.image}", f"--container-mounts={mounts}"]


def _python(folder: JobFolder, options: JobOptions) -> str:
    container = options.container
    if not container:
        return f"{HOLD} {shlex.quote(options.python or sys.executable)}"
    if _is_pyxis(options):
        return shlex.quote(container.python)
    binds = [part for mount in _mounts(folder, options, container) for part in ("--bind", mount)]
    return f"{HOLD} {shlex.join(['apptainer', 'exec', '--nv', *binds, container.image, container.python])}"


def _is_pyxis(options: JobOptions) -> bool:
    """Whether srun starts the container: its env is not the one that the script has tried."""
    return options.container is not None and options.container.runtime == "pyxis"


def _mounts(folder: JobFolder, options: JobOptions, container: Container) -> list[str]:
    """The folder of all runs, the working directory of the job, and the mounts of the profile."""
    own = [str(folder.path.parents[1]), options.chdir or working_directory()]
    for path in own:
        if any(character in path for character in " ,:"):
            raise UserError(
                path, "paths mounted into a container cannot contain spaces, ',' or ':'", "rename the folder"
            )
    return list(dict.fromkeys([*own, *container.mounts]))
