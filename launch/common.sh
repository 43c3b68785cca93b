# shellcheck shell=bash
# What the scripts here share; they source it.

fail() { # SENTENCE [STATUS]
  echo "error: $1" >&2
  exit "${2:-2}"
}

quoted() { # the words as they could be typed
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
    line+=" $word"
  done
  echo "${line:1}"
}

explain() { # SCRIPT: the comment at its head
  sed -n '2,/^set /{/^#SBATCH/d;/^# shellcheck/d;/^#/s/^# \{0,1\}//p;}' "$1"
}
