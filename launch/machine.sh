#!/usr/bin/env bash
# One machine, with any number of GPUs or none: machine.sh [FLAGS OF seem_jax.train]
# One process drives all devices; PROCESSES=N starts N processes on forced CPU devices instead, as many
# hosts would (DEVICES each, default 4), to try a distributed run without a cluster.
# Variables: CONFIG (configs/focalt.py), WORKDIR, PYTHON (.venv/bin/python), PORT (12355), DRY_RUN=1.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"
cd "$here/.."

need WORKDIR "the folder of the run"
python=${PYTHON:-.venv/bin/python}
command=("$python" -m seem_jax.train "--config=${CONFIG:-configs/focalt.py}" "--workdir=$WORKDIR" "$@")

if [ -z "${PROCESSES:-}" ]; then
  become "$here/restart.sh" "${command[@]}"
fi

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=${DEVICES:-4}"
if [ -n "${DRY_RUN:-}" ]; then run export "JAX_PLATFORMS=$JAX_PLATFORMS" "XLA_FLAGS=$XLA_FLAGS"; fi
children=()
for ((process = 0; process < PROCESSES; process++)); do
  become "${command[@]}" "--coordinator=127.0.0.1:${PORT:-12355}" "--num_processes=$PROCESSES" \
    "--process_id=$process" &
  children+=($!)
done
code=0
trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT
for child in "${children[@]}"; do
  # A trapped signal ends `wait` early; the process is still saving.
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  result=0
  wait "$child" || result=$?
  if [ "$result" -gt "$code" ]; then code=$result; fi
done
exit "$code"
