#!/usr/bin/env bash
# restart.sh COMMAND...: runs a command again for as long as it ends with 75 (told to stop, saved), 76 (a
# process hung or was lost) or above 128 (killed by a signal; JAX aborts so when the process with its
# coordination service is gone), at most MAX_RESTARTS (default 100) times. SIGTERM and SIGINT go on to the
# command, and end this script with it. Use it where no scheduler restarts jobs.
set -u

if [ $# -eq 0 ]; then
  echo "usage: restart.sh COMMAND..." >&2
  exit 2
fi

left=${MAX_RESTARTS:-100}
stopping=
child=

# shellcheck disable=SC2329 # called by the trap
forward() {
  stopping=1
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi
}
trap forward TERM INT

while [ -z "$stopping" ]; do
  "$@" &
  child=$!
  # A trapped signal ends `wait` early; the command is still saving.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done
  wait "$child"
  code=$?
  if [ -n "$stopping" ] || { [ "$code" -ne 75 ] && [ "$code" -ne 76 ] && [ "$code" -le 128 ]; }; then
    break
  fi
  if [ "$left" -le 0 ]; then
    echo "restart.sh: exit code $code again after ${MAX_RESTARTS:-100} restarts; giving up" >&2
    break
  fi
  left=$((left - 1))
  echo "restart.sh: exit code $code, starting again ($left restarts left)" >&2
  sleep "${RESTART_SECONDS:-5}"
done
echo "restart.sh: ended with $code" >&2 # the last line of a log, read by tpu_vm.sh
exit "$code"
