#!/usr/bin/env bash
# Train on a Google Cloud TPU VM, or on all hosts of a pod slice, by gcloud:
#
#   launch/tpu_vm.sh COMMAND --zone=ZONE [OPTIONS] [-- ARGUMENTS of python -m vqd_jax.main]
#
# for example
#
#   launch/tpu_vm.sh run --zone=us-west4-a --type=v5litepod-16 --spot -- --config=configs/coco.py --workdir=gs://my-bucket/coco
#
#   create   create the TPU VM, or reuse the one of that name (a preempted one is deleted and created again)
#   push     copy the files of this checkout that git tracks, as they are now, to it and install, with Python 3.12 and jax[tpu]
#   start    train in the background, in tmux on every worker; the same command resumes from the last checkpoint
#   logs     follow the first worker's output until training ends (Ctrl-C leaves training running). If a worker fails, show
#            its last lines and stop the others
#   run      create, push, start and logs; only logs if training runs already. All of it again when training ends by SIGTERM
#            (status 143), and, with a workdir in a bucket, when the VM is preempted
#   status   show the state of the VM and of each worker, and the last line of the first worker's output
#   fetch    copy the workdirs from vqd_jax/runs on the VM to runs/NAME
#   stop     interrupt training; the VM stays, and costs money, until it is deleted
#   delete   delete the VM and its disk, with everything that was not fetched or uploaded
#
#   --zone=ZONE      for example us-central1-a; $TPU_ZONE by default
#   --name=NAME      name of the VM; vqd-jax by default
#   --type=TYPE      v2-8 v3-8 v4-8 v5litepod-8 v6e-8 and larger slices, such as v4-32; v5litepod-8 by default
#   --version=IMAGE  the VM's software; by default the one for the type
#   --project=NAME   by default the project of gcloud's configuration
#   --spot           a cheaper VM that may be preempted at any time (--preemptible is the older kind)
#   --tries=N        attempts to create the VM while the zone has no capacity, 6 by default; the pauses grow from 30 s to 10 minutes
#   --delete         delete the VM at the end of run, trained or failed; workdirs that are not in a bucket are fetched first
#   --dry-run        print the commands for a VM that does not exist yet, and do nothing
#
# A preempted VM loses its disk: use --workdir=gs://BUCKET/FOLDER for spot VMs. Every worker then writes its parts of the checkpoints
# to the bucket; logs and pictures follow after each checkpoint. The VM's service account needs write access to the bucket.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=/dev/null
source "$root/launch/common.sh" && source "$root/launch/tpu_training.sh"
name=vqd-jax zone=${TPU_ZONE:-} type=v5litepod-8 version='' action='' tries=6 dry_run=false remove=false bucket=false
where=() capacity=() arguments=()
before_failing=''
idle=false       # whether nothing trains, for certain
terminated=false # whether training ended by SIGTERM

give_up() { # MESSAGE
  local hook=$before_failing
  before_failing=''
  [[ -z $hook ]] || "$hook"
  fail "$1" 1
}

show() {
  if $dry_run; then quoted "$@"; else quoted "$@" >&2; fi
}

call() { # MESSAGE COMMAND...: show and run the command; the message is for its failure
  local message=$1
  shift
  show "$@"
  $dry_run || "$@" || give_up "$message (${1##*/} ended with status $?; its output above says why)"
}

tpu() { # MESSAGE SUBCOMMAND...: run gcloud on this VM
  local message=$1 subcommand=$2
  shift 2
  call "$message" gcloud compute tpus tpu-vm "$subcommand" "$@" "${where[@]}"
}

remote() { # MESSAGE WORKER COMMAND: run one shell line on the VM, in the home folder
  tpu "$1" ssh "$name" "--worker=$2" "--command=$3"
}

image() { # the software that Google recommends for JAX on each type
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

describe() { # "STATE TYPE" of the VM, or "MISSING"
  local ask=(gcloud compute tpus tpu-vm describe "$name" '--format=value(state,acceleratorType)' "${where[@]}") said
  quoted "${ask[@]}" >&2
  if said=$("${ask[@]}" 2>&1); then
    grep -E '^[A-Z_]+[[:space:]]' <<<"$said" || echo unknown
  elif grep -qiE 'NOT_FOUND|not found' <<<"$said"; then
    echo MISSING
  else
    fail "gcloud could not tell whether $name exists: $(tail -n 1 <<<"$said")" 1
  fi
}

create() {
  local new=(gcloud compute tpus tpu-vm create "$name" "--accelerator-type=$type" "--version=${version:-$(image "$type")}"
    ${capacity[@]+"${capacity[@]}"} "${where[@]}")
  local try said state found pause=30
  if $dry_run; then
    quoted gcloud compute tpus tpu-vm describe "$name" '--format=value(state,acceleratorType)' "${where[@]}"
    quoted "${new[@]}"
    return
  fi
  for ((try = 1; ; try++)); do
    said=$(describe) || exit
    read -r state found <<<"$said"
    case $state in
      READY)
        [[ $found == "$type" ]] || fail "$name exists and is a $found, not a $type: choose another --name, or delete it" 1
        echo "$name exists and is ready: using it" >&2
        return
        ;;
      PREEMPTED | TERMINATED)
        echo "$name was preempted: creating it again" >&2
        delete
        ;;
      MISSING) ;;
      *) fail "$name is in the state $state: wait until it is READY, or delete it" 1 ;;
    esac
    quoted "${new[@]}" >&2
    said=$("${new[@]}" 2>&1 | tee -a /dev/stderr) && return
    refused "$said"
    ((try < tries)) || fail "$name could not be created in $tries tries, $zone has no capacity for a $type: try later, with more\
 --tries, or in another --zone" 1
    echo "no capacity: next try in $pause s" >&2
    sleep "$pause"
    pause=$((pause < 300 ? 2 * pause : 600))
  done
}

refused() { # OUTPUT of gcloud: return if another try makes sense, else fail
  local quota
  quota=$(sed -nE "/[Qq]uota/{s/.*[Qq]uota( limit| metric)? '([^']+)'.*/\2/p;q}" <<<"$1")
  [[ -z $quota ]] || fail "$name was not created, the quota $quota of your project is used up or zero: ask for more at\
 https://console.cloud.google.com/iam-admin/quotas, or choose another --zone or --type" 1
  grep -qiE 'capacity|stockout|RESOURCE_POOL_EXHAUSTED|ALREADY_EXISTS|already exists|UNAVAILABLE' <<<"$1" ||
    fail "the TPU VM $name could not be created: $(tail -n 1 <<<"$1")" 1
}

preempted() {
  local state
  read -r state _ <<<"$(describe 2>/dev/null)"
  [[ $state == PREEMPTED || $state == TERMINATED || ($state == MISSING && ${#capacity[@]} -gt 0) ]]
}

delete() {
  local gone=(gcloud compute tpus tpu-vm delete "$name" --quiet "${where[@]}") said
  show "${gone[@]}"
  $dry_run && return
  said=$("${gone[@]}" 2>&1 | tee -a /dev/stderr) && return
  grep -qiE 'NOT_FOUND|not found' <<<"$said" ||
    give_up "the TPU VM $name could not be deleted, and costs money: $(tail -n 1 <<<"$said")"
  echo "$name does not exist: nothing to delete" >&2
}

run() {
  local result
  while true; do
    create
    result=0
    (
      before_failing=failing
      reach
      if busy; then
        echo "training already runs on $name: following it" >&2
      else
        push
        start
      fi
      logs
      settle
    ) || result=$?
    ((result == 75)) || break
  done
  exit "$result"
}

failing() { # called before run fails: status 75 makes it start again
  if ! preempted; then
    ! $terminated || again "training on $name got SIGTERM"
    settle
  elif $bucket; then
    again "$name was preempted"
  elif $remove; then
    delete
  fi
}

again() { # REASON
  echo "$1: starting again" >&2
  exit 75
}

settle() { # delete the VM at the end of run, or remind that it costs money
  if $remove && $idle; then
    $bucket || fetch
    delete
  else
    $dry_run || echo "$name still exists and costs money until launch/tpu_vm.sh delete --name=$name $(quoted "${where[@]}")" >&2
  fi
}

while (($#)); do
  case $1 in
    --) shift && arguments=("$@") && break ;;
    -h | --help)
      explain "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --version=?*) version=${1#*=} ;;
    --project=?*) where+=("$1") ;;
    --tries=?*) tries=${1#*=} ;;
    --spot | --preemptible) capacity=("$1") ;;
    --delete) remove=true ;;
    --dry-run) dry_run=true ;;
    create | push | start | logs | run | status | fetch | stop | delete)
      [[ -z $action ]] || fail "give one command, not $action and $1" 1
      action=$1
      ;;
    *) fail "unknown option $1: see launch/tpu_vm.sh --help; arguments of vqd_jax.main come after --" 1 ;;
  esac
  shift
done
[[ -n $action ]] || fail "a command is missing: create, push, start, logs, run, status, fetch, stop or delete" 1
[[ -n $zone ]] || fail "--zone is missing, for example --zone=us-central1-a" 1
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$name: a name has lower-case letters, digits and hyphens" 1
[[ $type =~ ^v[0-9]+(litepod|p|e)?-[0-9]+$ ]] || fail "--type=$type: a type is a generation and a size, such as v4-8 or v5litepod-16" 1
[[ $tries =~ ^[1-9][0-9]*$ ]] || fail "--tries must be a positive number, got $tries" 1
where=("--zone=$zone" ${where[@]+"${where[@]}"})
if [[ $action == start || $action == run ]]; then
  ((${#arguments[@]})) || fail "the arguments of training are missing, for example: -- --config=configs/emoji.py:gpu" 1
elif ((${#arguments[@]})); then
  fail "$action takes no arguments after --" 1
fi
for argument in ${arguments[@]+"${arguments[@]}"}; do
  [[ $argument == --workdir=gs:* ]] || continue
  [[ $argument =~ ^--workdir=gs://[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)+/?$ ]] ||
    fail "$argument: write gs://BUCKET/FOLDER, with letters, digits, dots, hyphens and underscores" 1
  bucket=true
done
trap 'echo "interrupted; if $name exists it costs money, and may be training: see status, logs, stop and delete" >&2; exit 130' INT
$dry_run || command -v gcloud >/dev/null ||
  fail "gcloud is not installed: install it from https://cloud.google.com/sdk, then gcloud auth login" 1
"$action"
