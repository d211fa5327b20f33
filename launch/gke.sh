#!/usr/bin/env bash
# TPU slices on GKE with JobSet, through xpk (pip install xpk): gke.sh ACTION [FLAGS OF seem_jax.train]
#
#   cluster  create a cluster with the TPU node pools
#   image    build and push the container of launch/Dockerfile (TPU variant)
#   run      start the job; Kubernetes starts it again on exit codes 75 and 76 and after preemption
#   list     the jobs of the cluster
#   delete   end the job
#   remove   delete the cluster
#
# Variables: NAME (of the job), CLUSTER, ZONE, PROJECT, TYPE (v5litepod-16), SLICES (1), IMAGE (where the
# image is pushed), WORKDIR (on storage that xpk mounts, see xpk storage attach), STORAGE (its name),
# CONFIG (configs/focalt.py), SPOT=1, DRY_RUN=1 (print the commands).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

need CLUSTER "the name of the cluster"
need ZONE "the zone, as us-west4-a"
need PROJECT "the Google Cloud project"
TYPE=${TYPE:-v5litepod-16}
SLICES=${SLICES:-1}
where=("--cluster=$CLUSTER" "--zone=$ZONE" "--project=$PROJECT")
kind=(--on-demand)
if [ -n "${SPOT:-}" ]; then kind=(--spot); fi

start() {
  need NAME "a name for the job"
  need IMAGE "where the image was pushed"
  need WORKDIR "a folder on storage that all pods mount"
  local command storage=()
  command=$(training_command --distributed "$@")
  if [ -n "${STORAGE:-}" ]; then storage=("--storage=$STORAGE"); fi
  # 120 s to save after the notice of a preemption; 75 and 76 are not in xpk's list of codes to restart
  run xpk workload create "${where[@]}" "--workload=$NAME" "--tpu-type=$TYPE" "--num-slices=$SLICES" \
    "--docker-image=$IMAGE" --max-restarts=100 --restart-on-exit-codes=75,76 \
    --termination-grace-period-seconds=120 ${storage[@]+"${storage[@]}"} "${kind[@]}" "--command=$command"
}

action=${1:-}
if [ $# -gt 0 ]; then shift; fi
case $action in
  cluster)
    run xpk cluster create "${where[@]}" "--tpu-type=$TYPE" "--num-slices=$SLICES" "${kind[@]}" ;;
  image)
    need IMAGE "where to push the image, as us-docker.pkg.dev/PROJECT/seem/seem_jax:1"
    run docker build --build-arg VARIANT=tpu -f "$here/Dockerfile" -t "$IMAGE" "$here/.."
    run docker push "$IMAGE" ;;
  run) start "$@" ;;
  list) run xpk workload list "${where[@]}" ;;
  delete)
    need NAME "the name of the job"
    run xpk workload delete "${where[@]}" "--workload=$NAME" ;;
  remove) run xpk cluster delete "${where[@]}" ;;
  *)
    echo "usage: gke.sh cluster|image|run|list|delete|remove [FLAGS]" >&2
    exit 2 ;;
esac
