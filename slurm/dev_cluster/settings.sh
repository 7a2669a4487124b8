# Settings shared by the scripts in this folder: the cluster's folder, ports and hosts. Sourced, not executed.
#   DEV_CLUSTER        folder for all its files                                 [a folder in $TMPDIR or /tmp]
#   DEV_CLUSTER_PORT   the first of 7 ports on 127.0.0.1; names network devices [16800]
#   DEV_CLUSTER_HOSTS  as `up --hosts`                                          [all nodes share one address]
folder=${DEV_CLUSTER:-${TMPDIR:-/tmp}/hpc_recolor-cluster-$(id -u)}
port=${DEV_CLUSTER_PORT:-16800}
ctld_port=$port dbd_port=$((port + 1)) sql_port=$((port + 2))
node_ports=([1]=$((port + 3)) $((port + 4)) $((port + 5)) $((port + 6)))
export SLURM_CONF=$folder/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

hosts=$(cat "$folder/hosts" 2>/dev/null || true)  # how many; empty: all nodes share one address

node_names() {  # those of the cluster, one a line
  seq -f 'node%g' "${hosts:-4}"
}
daemon_names() {  # our daemons in starting order, one a line
  printf '%s\n' munged mariadbd slurmdbd slurmctld
  node_names
}

pid_of() {  # DAEMON: its process id, if it runs. Process ids may be reused, so the process is checked too
  local pid
  pid=$(cat "$folder/$1.pid" 2>/dev/null) && cat /proc/"$pid"/{cmdline,environ} 2>/dev/null | grep -qa -- "$folder/" &&
    echo "$pid"
}

fail() {  # MESSAGE
  echo "error: $1" >&2
  exit 2
}

wait_for() {  # SECONDS WHAT COMMAND...: until the command succeeds
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "$what did not start in time; see its log in $folder/log"
    sleep 0.2
  done
}
