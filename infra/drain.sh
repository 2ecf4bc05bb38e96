#!/bin/sh
# Empties this Ray node before it goes away: its trials save and end, nothing new starts on it, then
# its raylet ends by itself. For preStop hooks and spot notices. Usage: drain.sh [SECONDS]
set -u

limit_s=${1:-90}
file=${SHAREDENC_DRAIN_FILE:-${TMPDIR:-/tmp}/sharedenc-drain-$(id -u)}

# Every trial of this node watches for the file, saves, and ends as preempted (never charged).
touch "$file"
# Ray places nothing more here. Without it the trials still save, so a failure is only told.
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the node goes away" \
    --deadline-remaining-seconds "$limit_s" || echo "drain.sh: ray drain-node failed" >&2

waited_s=0
while pgrep -u "$(id -u)" -x raylet >/dev/null && [ "$waited_s" -lt "$limit_s" ]; do
    sleep 1
    waited_s=$((waited_s + 1))
done
