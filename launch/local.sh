#!/usr/bin/env bash
# Train on this machine, on all of its devices:
#
#   launch/local.sh [--detach] [--log=FILE] [--dry-run] ARGUMENTS of python -m vqd_jax.main
#
# for example
#
#   launch/local.sh --detach --log=emoji.log --config=configs/emoji.py --workdir=runs/emoji
#
#   --detach    run in the background under nohup, and return
#   --log=FILE  log file of a detached run (appended to); runs/local-DATE.log by default
#   --dry-run   print the command and do nothing
#
# Training runs in the checkout, so relative paths are relative to it. Environment variables:
#   PYTHON                     the interpreter, `python` by default
#   JAX_COMPILATION_CACHE_DIR  folder of compiled programs; ~/.cache/vqd_jax/xla by default
# XLA_FLAGS and other settings of JAX are passed on. Beside an NVIDIA GPU two are set, unless you set them:
#   XLA_PYTHON_CLIENT_MEM_FRACTION   0.92 of the memory for JAX, whose own default is 0.75
#   --xla_gpu_enable_latency_hiding_scheduler=true in XLA_FLAGS: gradients are summed over GPUs during the backward pass
# On a TPU the compiler does that by itself.
#
# The status is that of training: 143 after SIGTERM, 130 after Ctrl-C, which save a checkpoint first.
# The same command resumes from the last checkpoint.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=/dev/null
source "$root/launch/common.sh"
python=${PYTHON:-python}
detach=false dry_run=false log=runs/local-$(date +%Y%m%d-%H%M%S).log
arguments=()

for argument in "$@"; do
  case $argument in
    --detach) detach=true ;;
    --dry-run) dry_run=true ;;
    --log=?*) log=${argument#--log=} ;;
    --log | --log=) fail "--log needs a file: write --log=FILE" ;;
    -h | --help)
      explain "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) arguments+=("$argument") ;;
  esac
done

settings=()
if command -v nvidia-smi >/dev/null; then
  settings+=("XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}")
  [[ ${XLA_FLAGS:-} == *latency_hiding_scheduler* ]] ||
    settings+=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_gpu_enable_latency_hiding_scheduler=true")
fi
command=(env "JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/vqd_jax/xla}"
  PYTHONUNBUFFERED=1 TRANSFORMERS_VERBOSITY=error ${settings[@]+"${settings[@]}"}
  "$python" -m vqd_jax.main ${arguments[@]+"${arguments[@]}"})

quoted cd "$root"
if $detach; then
  echo "nohup $(quoted "${command[@]}") >>$(quoted "$log") 2>&1 </dev/null &"
else
  quoted "${command[@]}"
fi
$dry_run && exit 0

cd "$root"
command -v "$python" >/dev/null ||
  fail "there is no $python on this machine: activate its environment, or set PYTHON to an interpreter"
$detach || exec "${command[@]}"

{ mkdir -p "$(dirname "$log")" && touch "$log"; } 2>/dev/null || fail "the log $log cannot be written: choose another --log=FILE"
nohup "${command[@]}" >>"$log" 2>&1 </dev/null &
echo "process $!: follow it with tail -f $(quoted "$log"), stop it with kill $!"
