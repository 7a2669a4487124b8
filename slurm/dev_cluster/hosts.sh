# Nodes that are hosts of their own: namespaces on a bridge, with limits by cgroups. Sourced after settings.sh.
# A host is a process (`host`, PID 1 of its namespaces); its network, mounts and firewall end with it. What does not: the
# bridge, which has the addresses $network.0/24, and the cgroups.
bridge=hpcr$port
network=198.18.$((port % 256))  # 198.18.0.0/15 is set aside for tests of networks (RFC 2544): no route leads there
control_address=$network.254
cgroups=/sys/fs/cgroup
controllers=(cpu memory)

address_of() { echo "$network.${1#node}"; }
hardware_address_of() {  # the same after each boot, as others remember it for a while
  local parts
  IFS=. read -ra parts <<<"$(address_of "$1")"
  printf '02:00:%02x:%02x:%02x:%02x' "${parts[@]}"
}
link_of() { echo "$bridge-${1#node}"; }  # the bridge's end of a node's cable
is_v2() { [ -e $cgroups/cgroup.controllers ]; }
cgroup_of() {  # CONTROLLER [NODE]: its folder; without NODE, that of all hosts
  is_v2 && echo "$cgroups/$bridge/${2-}" || echo "$cgroups/$1/$bridge/${2-}"
}
inside() {  # NODE COMMAND...: on that host
  local node=$1 controller
  shift
  (
    for controller in "${controllers[@]}"; do
      echo "$BASHPID" >"$(cgroup_of "$controller" "$node")/cgroup.procs"
    done
    exec nsenter --target "$(pid_of "host-$node")" --mount --uts --ipc --net --pid -- "$@"
  )
}

check_hosts() {
  local program
  [ "$(id -u)" = 0 ] || fail "--hosts requires root: leave it out, and all nodes share one address"
  [[ $1 =~ ^[1-9][0-9]?$ ]] || fail "--hosts=$1: use 1 to 99"
  for program in ip tc nft nsenter unshare; do
    command -v $program >/dev/null || fail "--hosts requires $program: run python -m hpc_recolor.dev_cluster install"
  done
  unshare --mount --uts --ipc --net --pid --fork true 2>/dev/null ||
    fail "--hosts: this machine has no namespaces: leave it out, and all nodes share one address"
}

start_network() {
  ip link show "$bridge" >/dev/null 2>&1 && return
  ip link add "$bridge" type bridge
  ip link set "$bridge" addrgenmode none 2>/dev/null || true
  ip address add "$control_address/24" dev "$bridge"
  ip link set "$bridge" up
}

make_cgroups() {  # NODE
  local controller
  is_v2 && echo '+cpu +memory' >$cgroups/cgroup.subtree_control && mkdir -p "$cgroups/$bridge" &&
    echo '+cpu +memory' >"$cgroups/$bridge/cgroup.subtree_control"
  for controller in "${controllers[@]}"; do
    mkdir -p "$(cgroup_of "$controller" "$1")"
  done
}

start_host() {  # NODE RATE SHARED_FOLDER...
  local node=$1 rate=$2 pid link
  link=$(link_of "$node")
  shift 2
  pid_of "host-$node" >/dev/null && return
  rm -f "$folder/host-$node.pid"
  make_cgroups "$node"
  ip link delete "$link" 2>/dev/null || true
  setsid unshare --mount --uts --ipc --net --pid --fork --kill-child \
    bash "$here/host" "$folder" "$node" "$@" >>"$folder/log/host-$node.out" 2>&1 9>&- </dev/null &
  wait_for 20 "host $node" pid_of "host-$node"
  pid=$(pid_of "host-$node")
  ip link add "$link" type veth peer name eth0 netns "$pid"
  ip link set "$link" addrgenmode none 2>/dev/null || true
  ip link set "$link" master "$bridge" up
  inside "$node" ip link set eth0 address "$(hardware_address_of "$node")"
  inside "$node" ip address add "$(address_of "$node")/24" dev eth0
  inside "$node" ip link set eth0 up
  set_rate "$node" "$rate"
}

set_rate() {  # NODE RATE: of its cable, in each direction; empty: unlimited
  local limit=(tbf rate "${2:-}" burst 64kb latency 50ms) link
  link=$(link_of "$1")
  tc qdisc delete dev "$link" root 2>/dev/null || true
  inside "$1" tc qdisc delete dev eth0 root 2>/dev/null || true
  [ -n "${2:-}" ] || return 0
  tc qdisc add dev "$link" root "${limit[@]}"
  inside "$1" tc qdisc add dev eth0 root "${limit[@]}"
}

start_slurmd() {  # NODE
  local pid
  pid_of "$1" >/dev/null && return
  inside "$1" slurmd -N "$1" >>"$folder/log/$1.out" 2>&1 9>&- </dev/null
  pid=$(pgrep -x slurmd --parent "$(pid_of "host-$1")")  # in its own pid file is the number that the host sees
  echo "$pid" >"$folder/$1.pid"
}

stop_hosts() {  # and leave nothing of them
  local node controller deadline=$((SECONDS + 20))
  pkill -KILL -f "/host $folder node"  # also one that an interrupted `up` left without a pid file
  for node in $(node_names); do
    ip link delete "$(link_of "$node")" 2>/dev/null
  done
  ip link delete "$bridge" 2>/dev/null
  for controller in "${controllers[@]}"; do
    [ -d "$(cgroup_of "$controller")" ] || continue
    until find "$(cgroup_of "$controller")" -depth -type d -exec rmdir {} + 2>/dev/null; do
      [ "$SECONDS" -lt "$deadline" ] || { echo "error: processes remain in $(cgroup_of "$controller")" >&2; break; }
      sleep 0.1
    done
  done
}
