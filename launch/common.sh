# Shared by the scripts of this folder; not to be run. With DRY_RUN=1 commands are printed, not run.
# shellcheck shell=bash

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%s\n' "$(printf '%q ' "$@")" # one write: commands printed side by side do not mix
  else
    "$@"
  fi
}

# Goes on as the command, so that signals sent to this shell reach it.
become() {
  if [ -z "${DRY_RUN:-}" ]; then exec "$@"; fi
  run "$@"
  exit
}

# need NAME MEANING: ends with a message unless the variable is set.
need() {
  if [ -z "${!1:-}" ]; then
    echo "error: set $1: $2" >&2
    exit 2
  fi
}

# The training command, quoted once, as text that a remote shell can run.
training_command() {
  printf '%q ' python3 -m seem_jax.train "--config=${CONFIG:-configs/focalt.py}" "--workdir=$WORKDIR" "$@"
}
