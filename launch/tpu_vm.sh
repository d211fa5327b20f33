#!/usr/bin/env bash
# A Cloud TPU pod slice through queued resources: tpu_vm.sh ACTION [FLAGS OF seem_jax.train]
#
#   create   ask for the slice; it comes when there is room (SPOT=1: cheaper, may be taken away)
#   status   the state of the request
#   install  copy this checkout to all workers and install it there, once
#   run      start training on all workers, in the background; goes on from the last checkpoint
#   log      the last lines of worker 0
#   stop     end training on all workers: each saves, then exits
#   watch    create, install and run again whenever the slice was taken away, until training is done
#   delete   give the slice back
#
# Variables: NAME, ZONE, PROJECT, TYPE (v5litepod-16), RUNTIME (v2-alpha-tpuv5-lite), WORKDIR (a folder
# that all workers share, such as a Filestore or NFS mount), CONFIG (configs/focalt.py), SPOT,
# MOUNT (a command that mounts the shared folder on a fresh worker), WATCH_SECONDS (60, between two
# looks), DRY_RUN=1 (print the commands).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

need NAME "a name for the slice"
need ZONE "the zone, as us-west4-a"
need PROJECT "the Google Cloud project"
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
where=("--zone=$ZONE" "--project=$PROJECT")

on_all() { run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all "--command=$1"; }

create() {
  local spot=()
  if [ -n "${SPOT:-}" ]; then spot=(--spot); fi
  run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${where[@]}" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" ${spot[@]+"${spot[@]}"}
}

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)' 2>/dev/null \
    || echo ABSENT
}

install() {
  local archive=/tmp/seem_jax.tar.gz
  run git -C "$here/.." archive --format=tar.gz --prefix=seem_jax/ -o "$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$NAME:/tmp/" "${where[@]}" --worker=all
  # The TPU images have Python 3.10; uv brings a newer one.
  on_all "${MOUNT:+$MOUNT && }tar -xzf $archive -C \$HOME && cd \$HOME/seem_jax \
&& python3 -m pip install --user --quiet uv && python3 -m uv venv --allow-existing --python 3.12 .venv \
&& python3 -m uv pip install --python .venv/bin/python -r requirements.txt -c launch/constraints.txt 'jax[tpu]'"
}

start() {
  need WORKDIR "a folder that all workers share"
  local command
  command=$(training_command --distributed "$@")
  on_all "cd \$HOME/seem_jax && PATH=\$HOME/seem_jax/.venv/bin:\$PATH nohup setsid launch/restart.sh \
${command}> \$HOME/train.log 2>&1 < /dev/null & sleep 1"
}

delete() {
  run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

# What worker 0 does: TRAINING, or the last line of its log, or nothing where it has not trained yet.
doing() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 "--command=if pgrep -f '[l]aunch/restart.sh' \
> /dev/null; then echo TRAINING; else tail -n 1 \$HOME/train.log 2> /dev/null; fi"
}

# One look a minute: a slice that was taken away is deleted and asked for again. A slice that trains
# already is left alone; training that ended with an error ends this too.
watch() {
  need WORKDIR "a folder that all workers share"
  local now before='' started='' said
  while :; do
    now=$(state)
    if [ "$now" != "$before" ]; then echo "$(date '+%F %T') $now"; fi
    before=$now
    case $now in
      ACTIVE)
        if said=$(doing); then # else not reached: look again
          case $said in
            TRAINING) started=1 ;;
            "restart.sh: ended with 0")
              echo "training is done; its report is in $WORKDIR"
              return 0 ;;
            *)
              if [ -n "$started" ]; then
                echo "error: training ended on worker 0 with: ${said:-nothing in its log}." \
                  "See it with: tpu_vm.sh log; the slice is still there (tpu_vm.sh delete)." >&2
                return 1
              fi
              install
              start "$@"
              started=1 ;;
          esac
        fi ;;
      SUSPENDED | SUSPENDING | FAILED) started='' && delete ;;
      ABSENT) started='' && create ;;
    esac
    sleep "${WATCH_SECONDS:-60}"
  done
}

action=${1:-}
if [ $# -gt 0 ]; then shift; fi
case $action in
  create) create ;;
  status) run gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" ;;
  install) install ;;
  run) start "$@" ;;
  log) run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 "--command=tail -n 30 \$HOME/train.log" ;;
  stop) on_all "pkill -TERM -f '[l]aunch/restart.sh'" ;;
  watch) watch "$@" ;;
  delete) delete ;;
  *)
    echo "usage: tpu_vm.sh create|status|install|run|log|stop|watch|delete [FLAGS]" >&2
    exit 2 ;;
esac
