#!/usr/bin/env bash
# On a TPU VM worker: a command that outlives the ssh connection which started it.
#
#     bash run_worker.sh start COMMAND…
#     bash run_worker.sh status | logs | stop
#
# Beside this script lie variables (NAME=VALUE lines), source/ (where the command runs) and venv/ (see setup_worker.sh),
# and of the last command: command_line, log, pid, exit_code, and lock, which is held as long as it runs.
set -euo pipefail
cd "$(dirname "$0")"

running() {
  ! flock --nonblock --shared lock true
}

status() {
  if running; then
    echo "mllmsubj: running"
  elif [[ -s exit_code ]]; then
    echo "mllmsubj: exited $(<exit_code)"
  elif [[ -s command_line ]]; then
    echo "mllmsubj: killed" # and whoever should have written its exit code
  else
    echo "mllmsubj: none"
  fi
}

start() {
  local words
  words=$(printf '%q ' "$@")
  exec 9>lock
  if ! flock --nonblock 9; then
    # gcloud tries again when a connection breaks: the same start twice is one start.
    [[ $(<command_line) == "$words" ]] && return
    echo "mllmsubj: another command is running here; stop it first" >&2
    exit 1
  fi
  rm -f pid exit_code
  printf '%s\n' "$words" >command_line
  printf '\n== %s: %s\n' "$(date --utc +%FT%TZ)" "$words" >>log
  setsid bash run_worker.sh supervise "$@" </dev/null >>log 2>&1 &
  until [[ -s pid || -s exit_code ]]; do sleep 0.1; done
}

supervise() {
  trap 'echo "$?" >exit_code' EXIT
  trap : TERM # at shutdown everybody gets it: the command ends in its own way, and its exit code is still written
  load_variables
  join
  export PATH="$PWD/venv/bin:$PATH"
  (cd source && exec "$@" 9>&-) &
  local child=$! code=0
  echo "$child" >pid
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # that was our own SIGTERM, not its end
    code=0
    wait "$child" || code=$?
  done
  exit "$code"
}

load_variables() {
  [[ -f variables ]] || return 0
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    if [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; then export "${line?}"; fi
  done <variables
}

# Tells the command of the slice's other hosts, in the variables that mllmsubj/parallel/multihost.py reads.
join() {
  local endpoints workers
  endpoints=$(metadata worker-network-endpoints)
  IFS=, read -ra workers <<<"$endpoints"
  if ((${#workers[@]} > 1)); then
    # Each is a host, or name:id:address.
    export JAX_COORDINATOR_ADDRESS="${workers[0]##*:}:8482" JAX_NUM_PROCESSES="${#workers[@]}"
    JAX_PROCESS_ID=$(metadata agent-worker-number)
    export JAX_PROCESS_ID
  fi
}

metadata() {
  curl --silent --show-error --fail --retry 5 --header 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

logs() {
  if running; then
    tail -n 1000 --pid="$(<pid)" -f log
  else
    tail -n 1000 log
  fi
  status
}

stop() {
  if running; then kill -TERM "$(<pid)"; fi
}

"$@"
