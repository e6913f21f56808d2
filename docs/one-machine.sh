#!/bin/bash
# A Ray cluster of this machine alone, which stays: experiments are its jobs, and go on when their terminal closes.
#
#   docs/one-machine.sh                               # in a terminal of its own; Ctrl-C ends it, and no other Ray
#   export RAY_ADDRESS=http://127.0.0.1:8265          # in another one
#   orchestrator submit --strategy tp4,pp4
#
# Words behind the script go to `ray start`, as --num-gpus=2. docs/cluster.md has the rest.
set -euo pipefail

# Another Ray may run here: ports of its own, from PORT on, and a folder of its own.
PORT=${PORT:-6379}
DASHBOARD_PORT=${DASHBOARD_PORT:-8265}
FOLDER=${FOLDER:-/tmp/ray-$(id -un)-$PORT}   # short: paths of sockets have at most 107 characters

[[ -e ~/.ray/auth_token ]] || ray get-auth-token --generate > /dev/null
chmod 600 ~/.ray/auth_token
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
exec ray start --head --block --node-ip-address=127.0.0.1 --port="$PORT" --dashboard-port="$DASHBOARD_PORT" \
    --dashboard-agent-listen-port=$((PORT + 1)) --ray-client-server-port=$((PORT + 2)) --temp-dir="$FOLDER" "$@"
