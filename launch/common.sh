# shellcheck shell=bash
# Functions that the scripts in this folder share. They source this file.

fail() { # MESSAGE [STATUS]
  echo "error: $1" >&2
  exit "${2:-2}"
}

quoted() { # the words as one command line, quoted for a shell
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
    line+=" $word"
  done
  echo "${line:1}"
}

explain() { # SCRIPT: print the comment at its top
  sed -n '2,/^set /{/^#SBATCH/d;/^# shellcheck/d;/^#/s/^# \{0,1\}//p;}' "$1"
}
