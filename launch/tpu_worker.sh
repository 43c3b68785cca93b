#!/usr/bin/env bash
# launch/tpu_vm.sh runs this on each worker of a TPU VM, in a checkout in ~/vqd_jax:
#
#   tpu_worker.sh start ARGUMENTS of python -m vqd_jax.main   train in tmux; an error while training runs
#   tpu_worker.sh state      print "vqd_jax worker I" and "running", "ended STATUS TIME" or "idle"
#   tpu_worker.sh log LINES  print the last lines of the output, and follow it until training ends
#   tpu_worker.sh stop       interrupt training, by force after five minutes
#
# The output is in ~/vqd_jax.log; STATUS and TIME (seconds of the epoch) of the last training are in ~/vqd_jax.exit.
set -euo pipefail

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
log=$HOME/vqd_jax.log ended=$HOME/vqd_jax.exit

running() {
  tmux has-session -t =vqd_jax 2>/dev/null
}

metadata() { # NAME: an attribute of this VM
  curl -sf -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

start() {
  ! running || fail "training is already running on this worker"
  rm -f "$ended"
  : >>"$log" # can be read even if training is gone before it has begun
  tmux new-session -d -s vqd_jax "$(quoted bash vqd_jax/launch/tpu_worker.sh train "$@")"
}

train() { # in tmux
  local status=0
  trap : INT # Ctrl-C ends training only
  (work "$@") >>"$log" 2>&1 || status=$?
  echo "$status $(date +%s)" >"$ended"
}

work() {
  trap - INT
  # Each worker of a slice runs one process; on a TPU, JAX detects the others.
  if [[ $(metadata worker-network-endpoints) == *,* ]]; then set -- "$@" --coordinator=auto; fi
  cd "$HOME/vqd_jax"
  PYTHON=$HOME/vqd_venv/bin/python exec bash launch/local.sh "$@"
}

state() {
  local number
  number=$(metadata agent-worker-number) || fail "the metadata server does not say which worker this is"
  if running; then
    echo "vqd_jax worker $number running"
  elif [[ -f $ended ]]; then
    echo "vqd_jax worker $number ended $(cat "$ended")"
  else
    echo "vqd_jax worker $number idle"
  fi
}

log() { # LINES: tail ends when the process in tmux does
  local process
  if process=$(tmux list-panes -t =vqd_jax: -F '#{pane_pid}' 2>/dev/null); then
    tail -n "$1" -F --pid="$process" "$log" 2>/dev/null
  else
    tail -n "$1" "$log"
  fi
}

stop() { # by Ctrl-C, so that training saves a checkpoint
  running || return 0
  tmux send-keys -t =vqd_jax: C-c
  for _ in {1..300}; do
    running || return 0
    sleep 1
  done
  tmux kill-session -t =vqd_jax
  echo "137 $(date +%s)" >"$ended"
}

case ${1:-} in
  start | train | state | log | stop) "$@" ;;
  *)
    explain "${BASH_SOURCE[0]}"
    [[ ${1:-} == -h || ${1:-} == --help ]] || exit 2
    ;;
esac
