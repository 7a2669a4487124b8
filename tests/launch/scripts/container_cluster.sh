#!/bin/bash

# Parameters
#SBATCH --account=my_project
#SBATCH --chdir=/
#SBATCH --gpus-per-node=8
#SBATCH --job-name=cars
#SBATCH --mem=921600M
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/runs/cars/job/%j_0_log.out
#SBATCH --partition=batch
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=240

# setup
export HPC_RECOLOR_SCRIPT_BEGAN=$(read -r stat </proc/$$/stat && set -- ${stat##*) } && echo "${20}")
export PYTHONPATH=/runs/cars/job/code/0123456789abcdef${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
set +eu +o pipefail
job_folder=/runs/cars/job max_requeues=2147483647 leaving=
[ -O "$job_folder" ] && [ "$(stat -c %a "$job_folder")" = 700 ] || {
  echo "error: $job_folder must be yours with mode 700, as its files are executed" >&2; exit 2
}
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID} restart=${SLURM_RESTART_COUNT:-0}
trap : TERM
end_job() {  # EXIT_CODE
  code=$1
  kill $leaving 2>/dev/null && watched=yes || watched=
  request=$job_folder/requeue-$job-$restart
  early=$job_folder/early-$job
  excluded=$job_folder/excluded-$job
  run=$(cat "$request" 2>/dev/null || dirname "$job_folder")
  resume="restart $(printf %q "$run")"
  [ -e "$request" ] || [ ! -e "$job_folder/tasks.json" ] || resume="list $(printf %q "$(dirname "$run")")"
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
  [ -e "$job_folder/cancelled-$job" ] && exit 75
  if scontrol show job "$SLURM_JOB_ID" 2>/dev/null | grep -q JobState=COMPLETING; then
    for attempt in 1 2 3 4 5; do
      case $(sacct -nPX -j "$SLURM_JOB_ID" -o State 2>/dev/null) in
        CANCELLED*) exit 75 ;;
        RUNNING | '') sleep 1 ;;
        *) break ;;
      esac
    done
  fi
  trap '' TERM
  if [ "$restart" -ge $max_requeues ]; then
    echo "stopped: requeued $restart times, the limit set by max_requeues" >&2
  elif [ "$(cat "$early" 2>/dev/null | wc -l)" -ge 5 ]; then
    echo "stopped: 5 times in a row a signal came before training began; give the job more --time" >&2
    rm -f "$early"
  elif scontrol requeue "$job"; then
    [ ! -e "$excluded" ] || scontrol update JobId="$job" ExcNodeList="$(cat "$excluded")"
    exit 0
  else
    echo "error: SLURM could not requeue job $job" >&2
  fi
  echo "The run is saved; resume it with: python -m hpc_recolor.jobs $resume" >&2
  exit 75
}
trap 'trap "" TERM; echo "$job $restart $(date +%s.%N)" 2>/dev/null >>"$job_folder/ended" || :' EXIT
leave_lost_ranks() {
  # 0: there are ranks, 1: there are none; anything else is no answer.
  look() { pgrep -f "^slurmstepd: .$SLURM_JOB_ID[.][0-9]+." >/dev/null 2>&1; }
  until look; do sleep 2 >/dev/null 2>&1; done
  without=0
  while [ $without -lt 60 ]; do
    sleep 2 >/dev/null 2>&1
    look && found=0 || found=$?
    [ $found -eq 1 ] && without=$((without + 2)) || without=0
  done
  echo "error: ranks of other nodes have not reported their end for 60 s: their network is lost" >&2
  pkill -KILL -P $$ -x srun
}
leave_lost_ranks &
leaving=$!

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cars/job/%j_%t_log.out --open-mode=append --kill-on-bad-exit=1 --container-image=/images/hpc_recolor.sqsh --container-mounts=/runs:/runs,/:/,/datasets:/datasets,/scratch:/scratch python3 -u -m hpc_recolor.launch.job /runs/cars/job


# teardown
end_job $?
