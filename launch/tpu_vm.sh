#!/usr/bin/env bash
# shellcheck disable=SC2016  # what stands in single quotes is expanded by the shell of the VM
# Trains on a Google Cloud TPU VM, by way of gcloud:
#
#   launch/tpu_vm.sh COMMAND --zone=ZONE [OPTIONS] [-- ARGUMENTS of python -m vqd_jax.main]
#
#   create   make the TPU VM, or reuse the one of that name (one that was preempted is deleted and made again)
#   push     copy this checkout to it and install, with Python 3.12 and jax[tpu]
#   start    train in the background, in tmux on every worker; the same command goes on from the last checkpoint
#   logs     follow the output until training ends (Ctrl-C leaves it running); fails if training failed
#   run      create, push, start and logs
#   status   the state of the VM, whether training runs, the last line of its output
#   fetch    copy the workdirs, vqd_jax/runs there, to runs/NAME here
#   stop     interrupt training; the VM stays, and costs money, until it is deleted
#   delete   delete the VM and its disk, with all that was not fetched
#
#   --zone=ZONE      for example us-central1-a; $TPU_ZONE by default
#   --name=NAME      of the VM; vqd-jax by default
#   --type=TYPE      v2-8 v3-8 v4-8 v5litepod-8 v6e-8; v5litepod-8 by default
#   --version=IMAGE  the VM's software; by default the one that fits the type
#   --project=NAME   gcloud's own setting by default
#   --spot           cheaper, and may be taken away at any time (--preemptible is the older form of it)
#   --dry-run        print the commands, as for a VM that does not exist yet, and do nothing
#
# Slices of several hosts are refused: they need jax.distributed.initialize, which vqd_jax.main does not call yet.
# A spot VM that is preempted loses its disk: for those mount a bucket and give --workdir a folder in it.
set -euo pipefail

single_host="v2-8 v3-8 v4-8 v5litepod-8 v6e-8"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
running='tmux has-session -t =vqd_jax 2>/dev/null'
archive=$root/build/vqd_jax.tar.gz # build/ is ignored by git
name=vqd-jax zone=${TPU_ZONE:-} type=v5litepod-8 version='' action='' dry_run=false
where=() capacity=() arguments=()

fail() {
  echo "error: $1" >&2
  exit 1
}

quoted() { # the words as they could be typed
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
    line+=" $word"
  done
  echo "${line:1}"
}

show() {
  if $dry_run; then quoted "$@"; else quoted "$@" >&2; fi
}

call() { # SENTENCE COMMAND...: show it and run it; the sentence says what failed
  local sentence=$1
  shift
  show "$@"
  $dry_run || "$@" || fail "$sentence (${1##*/} ended with status $?; what it wrote above says why)"
}

tpu() { # SENTENCE SUBCOMMAND...: gcloud on this VM
  local sentence=$1 subcommand=$2
  shift 2
  call "$sentence" gcloud compute tpus tpu-vm "$subcommand" "$@" "${where[@]}"
}

remote() { # SENTENCE WORKER COMMAND: one shell line on the VM, in the home folder
  tpu "$1" ssh "$name" "--worker=$2" "--command=$3"
}

image() { # the software that Google names for JAX on each type
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create_new() {
  tpu "the TPU VM $name could not be created" create "$name" "--accelerator-type=$type" \
    "--version=${version:-$(image "$type")}" ${capacity[@]+"${capacity[@]}"}
}

create() {
  [[ " $single_host " == *" $type "* ]] || fail "--type=$type is not supported, only ${single_host// /, }:\
 vqd_jax.main does not call jax.distributed.initialize yet, so it trains on one host"
  local describe=(gcloud compute tpus tpu-vm describe "$name" '--format=value(state,acceleratorType)' "${where[@]}")
  show "${describe[@]}"
  if $dry_run; then
    create_new
    return
  fi
  local said state='' found=''
  if ! said=$("${describe[@]}" 2>&1); then
    grep -qiE 'NOT_FOUND|not found' <<<"$said" ||
      fail "gcloud could not tell whether $name exists: $(tail -n 1 <<<"$said")"
    create_new
    return
  fi
  read -r state found <<<"$(grep -E '^[A-Z_]+[[:space:]]' <<<"$said")"
  case $state in
    READY)
      [[ $found == "$type" ]] || fail "$name exists and is a $found, not a $type: choose another --name, or delete it"
      echo "$name is there and ready: reusing it" >&2
      ;;
    PREEMPTED | TERMINATED)
      echo "$name was preempted: making it again" >&2
      delete
      create_new
      ;;
    *) fail "$name is in the state ${state:-unknown}: wait until it is READY, or delete it" ;;
  esac
}

reach() { # a VM that was just made takes a while until it lets anyone in
  local reason="$name does not answer to ssh" try
  for try in 1 2 3 4; do
    show gcloud compute tpus tpu-vm ssh "$name" --worker=all --command=true "${where[@]}"
    $dry_run && return
    gcloud compute tpus tpu-vm ssh "$name" --worker=all --command=true "${where[@]}" && return
    echo "$reason, try $try" >&2
    sleep 15
  done
  remote "$reason" all true
}

push() {
  reach
  remote "training is running on $name, or it cannot be told: stop it before pushing" all "! $running"
  $dry_run || mkdir -p "${archive%/*}"
  call "this checkout could not be packed" tar -czf "$archive" -C "$root" --exclude=./.git --exclude=./runs \
    --exclude=./build --exclude=./dist --exclude=./.venv --exclude=__pycache__ --exclude='*.egg-info' \
    --exclude=./.pytest_cache --exclude=./.hypothesis --exclude=./.ruff_cache .
  tpu "this checkout could not be copied to $name" scp "$archive" "$name:vqd_jax.tar.gz" --worker=all
  $dry_run || rm -f "$archive"

  local unpack='mkdir -p vqd_jax && find vqd_jax -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} +'
  unpack+=' && tar -xzf vqd_jax.tar.gz -C vqd_jax'
  remote "this checkout could not be unpacked on $name" all "$unpack"

  # The images come with Python 3.10, too old for jax: uv brings 3.12.
  local install='{ command -v tmux >/dev/null || sudo apt-get install -y -q tmux; }'
  install+=' && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv'
  install+=' && { test -x vqd_venv/bin/python || python3 -m uv venv -q --seed --python 3.12 vqd_venv; }'
  install+=' && vqd_venv/bin/python -m pip install -q -r vqd_jax/requirements.txt "jax[tpu]"'
  remote "the installation on $name failed" all "$install"

  local check='import jax; print(jax.devices()); assert jax.default_backend() == "tpu"'
  remote "jax does not find the TPU of $name" all "vqd_venv/bin/python -c '$check'"
}

start() {
  local train
  train='{ cd vqd_jax && PYTHON=$HOME/vqd_venv/bin/python bash launch/local.sh'
  train+=" $(quoted "${arguments[@]}"); } >>\$HOME/vqd_jax.log 2>&1; echo \$? >\$HOME/vqd_jax.exit"
  remote "training is already running on $name, or it cannot be told: follow it with logs, or stop it" all "! $running"
  remote "training could not be started on $name: was it pushed?" all \
    "test -f vqd_jax/launch/local.sh && rm -f vqd_jax.exit && tmux new-session -d -s vqd_jax $(quoted "$train")"
}

logs() { # tail ends with the process in tmux, whose exit status is then in a file
  local follow='pid=$(tmux list-panes -t =vqd_jax: -F "#{pane_pid}" 2>/dev/null)'
  follow+=' && tail -n 100 -F --pid=$pid vqd_jax.log 2>/dev/null || tail -n 100 vqd_jax.log'
  follow+='; test -f vqd_jax.exit && exit $(cat vqd_jax.exit)'
  remote "training on $name failed or was stopped, or the connection was lost" 0 "$follow"
}

status() {
  tpu "gcloud could not tell the state of $name" describe "$name" '--format=value(state,health,acceleratorType)'
  local tell="if $running; then echo training is running"
  tell+='; elif test -f vqd_jax.exit; then echo training has ended with status $(cat vqd_jax.exit)'
  tell+='; else echo training is not running; fi'
  tell+='; test ! -f vqd_jax.log || tail -c 2000 vqd_jax.log | tr "\r" "\n" | tail -n 1'
  remote "$name does not answer to ssh" all "$tell"
}

fetch() {
  local packed=$root/build/vqd_runs.tar.gz target=$root/runs/$name
  remote "there are no workdirs on $name, or they could not be packed" 0 \
    'test -d vqd_jax/runs && { tar -czf vqd_runs.tar.gz -C vqd_jax/runs . || test $? -eq 1; }' # 1: written to meanwhile
  $dry_run || mkdir -p "${packed%/*}" "$target"
  tpu "the workdirs could not be copied from $name" scp "$name:vqd_runs.tar.gz" "$packed" --worker=0
  call "the workdirs could not be unpacked into $target" tar -xzf "$packed" -C "$target"
  $dry_run || rm -f "$packed"
  $dry_run || echo "the workdirs of $name are in $target" >&2
}

stop() { # as Ctrl-C, which lets a checkpoint be finished; by force after a minute
  local end="$running || exit 0; tmux send-keys -t =vqd_jax: C-c"
  end+="; for i in \$(seq 60); do $running || exit 0; sleep 1; done; tmux kill-session -t =vqd_jax"
  remote "training on $name could not be stopped" all "$end"
}

delete() {
  tpu "the TPU VM $name could not be deleted" delete "$name" --quiet
}

run() {
  create
  push
  start
  logs
}

while (($#)); do
  case $1 in
    --) shift && arguments=("$@") && break ;;
    -h | --help)
      sed -n '3,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --version=?*) version=${1#*=} ;;
    --project=?*) where+=("$1") ;;
    --spot | --preemptible) capacity=("$1") ;;
    --dry-run) dry_run=true ;;
    create | push | start | logs | run | status | fetch | stop | delete)
      [[ -z $action ]] || fail "give one command, not $action and $1"
      action=$1
      ;;
    *) fail "unknown option $1: see launch/tpu_vm.sh --help; what vqd_jax.main is to get comes after --" ;;
  esac
  shift
done
[[ -n $action ]] || fail "a command is missing: create, push, start, logs, run, status, fetch, stop or delete"
[[ -n $zone ]] || fail "--zone is missing, for example --zone=us-central1-a"
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$name: a name has lower-case letters, digits and hyphens"
where=("--zone=$zone" ${where[@]+"${where[@]}"})
if [[ $action == start || $action == run ]]; then
  ((${#arguments[@]})) || fail "what to train is missing, for example: -- --config=configs/emoji.py:gpu"
elif ((${#arguments[@]})); then
  fail "$action takes no arguments after --"
fi
$dry_run || command -v gcloud >/dev/null ||
  fail "there is no gcloud here: install it from https://cloud.google.com/sdk, then gcloud auth login"
"$action"
