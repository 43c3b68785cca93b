#!/usr/bin/env bash
# launch/tpu_vm.sh runs this on each worker of a TPU VM, in a checkout in ~/vqd_jax:
#
#   tpu_worker.sh start ARGUMENTS of python -m vqd_jax.main   train in tmux; an error while training runs
#   tpu_worker.sh state      print "vqd_jax worker I" and "running", "ended STATUS TIME" or "idle"
#   tpu_worker.sh log LINES  print the last lines of the output, and follow it until training ends
#   tpu_worker.sh stop       interrupt training, by force after five minutes
#
# The output is in ~/vqd_jax.log; STATUS and TIME (seconds of the epoch) of the last training are in ~/vqd_jax.exit.
#
# --workdir=gs://BUCKET/FOLDER trains in runs/BUCKET/FOLDER. The first worker, which writes the checkpoints, downloads the bucket's
# files if its checkpoints are later, and uploads new files every VQD_SYNC seconds (300 by default) and at the end. A checkpoint is
# complete only with the checksums of its files, sha256.json. They are uploaded last, so that an interrupted upload leaves an
# incomplete checkpoint, never a damaged one.
set -euo pipefail

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
log=$HOME/vqd_jax.log ended=$HOME/vqd_jax.exit lock=$HOME/vqd_jax.lock
bucket='' folder=''

running() {
  tmux has-session -t =vqd_jax 2>/dev/null
}

metadata() { # NAME: an attribute of this VM
  curl -sf -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

start() {
  ! running || fail "training is already running on this worker"
  rm -f "$ended"
  tmux new-session -d -s vqd_jax "$(quoted bash vqd_jax/launch/tpu_worker.sh train "$@")"
}

train() { # in tmux
  local status=0
  trap : INT # Ctrl-C ends training only; the upload comes after it
  (work "$@") >>"$log" 2>&1 || status=$?
  echo "$status $(date +%s)" >"$ended"
}

work() {
  local argument arguments=() number status=0 syncing=''
  trap : INT
  number=$(metadata agent-worker-number) || fail "the metadata server does not say which worker this is"
  for argument in "$@"; do
    if [[ $argument == --workdir=gs://?* ]]; then
      bucket=${argument#--workdir=}
      bucket=${bucket%/}
      folder=runs/${bucket#gs://}
      argument=--workdir=$folder
    fi
    arguments+=("$argument")
  done
  # Each worker of a slice runs one process; on a TPU, JAX detects the others.
  if [[ $(metadata worker-network-endpoints) == *,* ]]; then arguments+=(--coordinator=auto); fi
  cd "$HOME/vqd_jax"
  if [[ -n $bucket ]] && ((number == 0)); then
    pull || fail "$bucket could not be downloaded, and without it training would start over"
    while sleep "${VQD_SYNC:-300}"; do locked push || echo "the upload to $bucket failed and will be retried"; done &
    syncing=$!
  fi
  PYTHON=$HOME/vqd_venv/bin/python bash launch/local.sh ${arguments[@]+"${arguments[@]}"} || status=$?
  if [[ -n $syncing ]]; then
    kill "$syncing" || true
    locked push || locked push || fail "training ended with status $status, but the upload to $bucket failed"
  fi
  return "$status"
}

locked() { # COMMAND: run it after the one that still runs, even if that one's shell has ended
  (
    flock 9
    "$@"
  ) 9>"$lock"
}

finished() { # "STAGE STEP" of the checkpoints whose checksums are listed
  sed -nE 's|^.*/([a-z]+)/checkpoints/([0-9]+)/sha256\.json$|\1 \2|p'
}

latest() { # STAGE: the last step among them
  awk -v stage="$1" 'BEGIN { last = -1 } $1 == stage && $2 > last { last = $2 } END { print last }'
}

checksums() { # files of the finished checkpoints on this disk
  find "$folder" -path '*/checkpoints/*/sha256.json' 2>/dev/null || true
}

pull() { # download the bucket, if its checkpoints are later than those of the folder
  local remote own stage
  if ! remote=$(gcloud storage ls "$bucket/**/sha256.json" 2>&1); then
    grep -q 'matched no objects' <<<"$remote" && return
    echo "$remote"
    return 1
  fi
  remote=$(finished <<<"$remote") own=$(checksums | finished)
  while read -r stage; do
    if (($(latest "$stage" <<<"$remote") > $(latest "$stage" <<<"$own"))); then
      echo "downloading $bucket"
      mkdir -p "$folder"
      gcloud storage rsync --recursive '--exclude=.*sha256\.json$' "$bucket" "$folder" &&
        gcloud storage rsync --recursive "$bucket" "$folder"
      return
    fi
  done < <(cut -d' ' -f1 <<<"$remote" | sort -u)
}

push() {
  local complete path stage listed last step
  [[ -d $folder ]] || return 0
  complete=$(checksums)
  for path in "$folder"/*/checkpoints; do
    [[ -d $path ]] || continue
    gcloud storage rsync --recursive '--exclude=.*sha256\.json$,.*\.orbax-checkpoint-tmp.*,.*\.deleted/.*,.*\.replaced/.*,.*\.part$,.*\.part/.*' \
      "$path" "$bucket${path#"$folder"}" || return
  done
  while read -r path; do
    [[ ! -f $path ]] || gcloud storage cp "$path" "$bucket${path#"$folder"}" </dev/null || return
  done <<<"$complete"
  for path in "$folder"/*/checkpoints; do # remove steps that are no longer on this disk
    stage=${path%/checkpoints} && stage=${stage##*/}
    last=$(finished <<<"$complete" | latest "$stage")
    ((last >= 0)) || continue
    listed=$(gcloud storage ls "$bucket/$stage/checkpoints/") || return
    while read -r step; do
      ((step >= last)) || [[ -d $path/$step ]] || gcloud storage rm --recursive "$bucket/$stage/checkpoints/$step/" </dev/null || return
    done < <(sed -nE 's|^.*/([0-9]+)/$|\1|p' <<<"$listed")
  done
  gcloud storage rsync --recursive '--exclude=.*checkpoints/.*,.*\.part$' "$folder" "$bucket" # files may change meanwhile
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
