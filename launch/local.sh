#!/usr/bin/env bash
# Trains on this machine, on all of its devices:
#
#   launch/local.sh [--detach] [--log=FILE] [--dry-run] ARGUMENTS of python -m vqd_jax.main
#
# for example
#
#   launch/local.sh --detach --log=emoji.log --config=configs/emoji.py --workdir=runs/emoji
#
#   --detach    run in the background under nohup, and return
#   --log=FILE  where a detached run writes its output (appended); runs/local-DATE.log by default
#   --dry-run   print the command and do nothing
#
# It runs in the checkout, so relative paths are relative to it. From the environment:
#   PYTHON                     the interpreter, `python` by default
#   JAX_COMPILATION_CACHE_DIR  compiled programs are kept there; ~/.cache/vqd_jax/xla by default
#   XLA_FLAGS and other JAX settings are passed on as they are; none is set, as no flag is known to help here.
# Starting the same command again goes on from the last checkpoint.
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
    --log | --log=) fail "--log needs a file, written --log=FILE" ;;
    -h | --help)
      explain "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) arguments+=("$argument") ;;
  esac
done

command=(env "JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/vqd_jax/xla}"
  PYTHONUNBUFFERED=1 TRANSFORMERS_VERBOSITY=error
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
  fail "there is no $python here: activate the environment, or name an interpreter in PYTHON"
$detach || exec "${command[@]}"

{ mkdir -p "$(dirname "$log")" && touch "$log"; } 2>/dev/null || fail "the log $log cannot be written"
nohup "${command[@]}" >>"$log" 2>&1 </dev/null &
echo "process $!; follow it with: tail -f $(quoted "$log"); stop it with: kill $!"
