# shellcheck shell=bash disable=SC2016,SC2034,SC2154  # what stands in single quotes is expanded on the VM; the variables are those of tpu_vm.sh
# The part of launch/tpu_vm.sh that handles training on a TPU VM; tpu_vm.sh, which sources it, handles the VM itself.

archive=$root/build/vqd_jax.tar.gz # build/ is ignored by git
files=$root/build/vqd_jax.files    # the names of what is packed
worker='bash vqd_jax/launch/tpu_worker.sh'
follower='' reached=false

reach() { # wait until ssh works: a new VM takes a while
  local reason="$name does not answer to ssh" try
  ! $reached || return 0
  reached=true
  for try in 1 2 3 4; do
    show gcloud compute tpus tpu-vm ssh "$name" --worker=all --command=true "${where[@]}"
    $dry_run && return
    gcloud compute tpus tpu-vm ssh "$name" --worker=all --command=true "${where[@]}" && return
    echo "$reason, try $try" >&2
    sleep 15
  done
  remote "$reason" all true
}

busy() { # whether training runs on every worker
  local ask=(gcloud compute tpus tpu-vm ssh "$name" --worker=all '--command=tmux has-session -t =vqd_jax 2>/dev/null' "${where[@]}")
  show "${ask[@]}"
  ! $dry_run && "${ask[@]}" 2>/dev/null
}

known() { # the files that git tracks; names those that it neither tracks nor ignores
  local name listed=() new=()
  while IFS= read -r -d '' name; do
    [[ ! -e $root/$name && ! -L $root/$name ]] || listed+=("$name") # not those that were deleted
  done < <(git -C "$root" ls-files -z)
  ((${#listed[@]})) || give_up "push copies the files that git tracks, and $root is no git checkout: clone the repository"
  printf '%s\0' "${listed[@]}"
  while IFS= read -r -d '' name; do
    new+=("$(printf %q "$name")")
  done < <(git -C "$root" ls-files -z --others --exclude-standard)
  ((!${#new[@]})) || echo "not copied, as git does not track them (git add FILE changes that): ${new[*]:0:10}$(
    ((${#new[@]} <= 10)) || printf ' and %s more' $((${#new[@]} - 10))
  )" >&2
}

push() {
  reach
  remote "training is running on $name, or its state is unknown: stop it before pushing" all '! tmux has-session -t =vqd_jax 2>/dev/null'
  idle=true
  $dry_run || { mkdir -p "${files%/*}" && known >"$files"; }
  call "this checkout could not be packed" tar -czf "$archive" -C "$root" --null -T "$files"
  tpu "this checkout could not be copied to $name" scp "$archive" "$name:vqd_jax.tar.gz" --worker=all
  $dry_run || rm -f "$archive" "$files"

  local unpack='mkdir -p vqd_jax && find vqd_jax -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} +'
  unpack+=' && tar -xzf vqd_jax.tar.gz -C vqd_jax'
  remote "this checkout could not be unpacked on $name" all "$unpack"

  # The images come with Python 3.10, too old for jax: uv brings 3.12.
  local install='{ command -v tmux >/dev/null || sudo apt-get install -y -q tmux; }'
  install+=' && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv'
  install+=' && { test -x vqd_venv/bin/python || python3 -m uv venv -q --seed --python 3.12 vqd_venv; }'
  install+=' && vqd_venv/bin/python -m pip install -q -r vqd_jax/requirements.txt "jax[tpu]" gcsfs'
  remote "the installation on $name failed" all "$install"

  local check='import jax; print(jax.devices()); assert jax.default_backend() == "tpu"'
  remote "jax does not find the TPU of $name" all "vqd_venv/bin/python -c '$check'"
}

start() {
  remote "training is already running on $name, or its state is unknown: follow it with logs, or stop it" all \
    '! tmux has-session -t =vqd_jax 2>/dev/null'
  idle=false
  remote "training could not be started on $name: was it pushed?" all "$worker start $(quoted "${arguments[@]}")"
}

follow() { # LINES: show the output of the first worker, in the background
  local tail=(gcloud compute tpus tpu-vm ssh "$name" --worker=0 "--command=$worker log $1" "${where[@]}")
  show "${tail[@]}"
  $dry_run && return
  set -m # in its own process group, so that it can be killed together with ssh
  "${tail[@]}" </dev/null &
  follower=$!
  set +m
}

unfollow() {
  [[ -z $follower ]] || kill -- "-$follower" 2>/dev/null || true
  follower=''
}

logs() {
  local ask=(gcloud compute tpus tpu-vm ssh "$name" --worker=all "--command=$worker state" "${where[@]}")
  local said states bad lost=0
  follow 100
  show "${ask[@]}"
  if $dry_run; then
    idle=true
    return
  fi
  trap unfollow EXIT
  while true; do
    if said=$("${ask[@]}" 2>&1 </dev/null) && states=$(grep -oE 'vqd_jax worker [0-9]+ (running|idle|ended [0-9]+ [0-9]+)' <<<"$said"); then
      lost=0
      bad=$(grep -vE ' (running|ended 0 [0-9]+)$' <<<"$states" | sort -k6n | head -n 1) || true
      [[ -z $bad ]] || end_all "$states" "$bad"
      grep -q running <<<"$states" || break
      kill -0 "$follower" 2>/dev/null || follow 0
    elif ((++lost == 1 || lost % 5 == 0)); then
      preempted && give_up "$name was preempted, and its disk is lost: with a workdir in a bucket, --workdir=gs://BUCKET/FOLDER,\
 run creates it again and resumes"
      ((lost < 10)) || give_up "$name no longer answers to ssh; it still costs money, and may be training: try logs, or delete it"
    fi
    sleep 30
  done
  idle=true
  for _ in {1..20}; do # until the output is complete
    kill -0 "$follower" 2>/dev/null || break
    sleep 1
  done
}

end_all() { # STATES BAD: stop all workers, as one, in the state BAD, no longer trains
  local number status
  read -r _ _ number _ status _ <<<"$2"
  unfollow
  [[ $status != 143 ]] || terminated=true
  if grep -q running <<<"$1"; then stop; fi
  idle=true
  remote "the output of worker $number of $name cannot be read" "$number" "$worker log 40"
  case $status in
    '') give_up "training is gone on worker $number of $name, as after a restart of the machine: start it again" ;;
    130) give_up "training on $name was stopped" ;;
    143) give_up "training on worker $number of $name got SIGTERM, as when the machine shuts down: start resumes it" ;;
    *) give_up "training failed on worker $number of $name, with status $status: its last lines are above, all workers are stopped" ;;
  esac
}

status() {
  tpu "gcloud could not tell the state of $name" describe "$name" '--format=value(state,health,acceleratorType)'
  remote "$name does not answer to ssh" all "$worker state"
  remote "$name does not answer to ssh" 0 'test ! -f vqd_jax.log || tail -c 2000 vqd_jax.log | tr "\r" "\n" | tail -n 1'
}

fetch() {
  local packed=$root/build/vqd_runs.tar.gz target=$root/runs/$name
  remote "there are no workdirs on $name, or they could not be packed" 0 \
    'test -d vqd_jax/runs && { tar -czf vqd_runs.tar.gz -C vqd_jax/runs . || test $? -eq 1; }' # 1: files changed meanwhile
  $dry_run || mkdir -p "${packed%/*}" "$target"
  tpu "the workdirs could not be copied from $name" scp "$name:vqd_runs.tar.gz" "$packed" --worker=0
  call "the workdirs could not be unpacked into $target" tar -xzf "$packed" -C "$target"
  $dry_run || rm -f "$packed"
  $dry_run || echo "the workdirs of $name are in $target" >&2
}

stop() {
  remote "training on $name could not be stopped" all "$worker stop"
}
