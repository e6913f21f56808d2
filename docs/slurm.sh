#!/bin/bash
# A Ray cluster over the nodes of a Slurm allocation, for one `orchestrator submit`:
#
#   sbatch --nodes=2 docs/slurm.sh --strategy tp8,tp8pp2 --model llama-70b --load-format dummy
#
# CHANGE marks what has to be yours. docs/cluster.md has the rest.
#SBATCH --job-name=orchestrator
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8       # CHANGE
#SBATCH --cpus-per-task=64      # CHANGE
#SBATCH --exclusive
#SBATCH --time=02:00:00
set -euo pipefail

ENVIRONMENT=${ORCHESTRATOR_ENVIRONMENT:-$HOME/shard-orchestrator/.venv}   # CHANGE: the same path on every node
RESULTS=${ORCHESTRATOR_RESULTS:-$PWD/results}                             # CHANGE: a folder of all nodes, or a URI
PATIENCE_S=600                                                            # for the nodes to join

# Another job may share a node, so ports, folder and token are of this job alone. `ray symmetric-run` would be shorter, but
# it calls `ray stop`, which ends every Ray of the node.
PORT=$((20000 + 3 * (SLURM_JOB_ID % 4000)))   # and the next two: above Ray's own, below those that the system gives out
FOLDER=/tmp/ray-$SLURM_JOB_ID                 # short: paths of sockets have at most 107 characters
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export PATH=$ENVIRONMENT/bin:$PATH

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${NODES[0]}
# CHANGE where nodes reach each other by another address than their first one.
ADDRESS=$(srun --nodes=1 --ntasks=1 --nodelist="$HEAD" hostname --all-ip-addresses | awk '{print $1}')

on_node() { # NODE WORDS...: starts Ray there, until this script ends
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap ray start --block --temp-dir="$FOLDER" "$@" &
}
# Until COMMAND succeeds. Ends the job where it does not, or where Ray has ended on a node.
await() { # WHAT COMMAND...
    local what=$1
    shift
    until "$@" 2> /dev/null; do
        if ((SECONDS > PATIENCE_S)) || (($(jobs -rp | wc -l) < STARTED)); then
            echo "$what" >&2
            exit 1
        fi
        sleep 1
    done
}
joined() { # NUMBER: whether so many nodes are in the cluster
    local nodes
    nodes=$(ray list nodes --address "http://127.0.0.1:$((PORT + 1))" --limit 10000 --format json)
    (($(grep -o '"ALIVE"' <<< "$nodes" | wc -l) >= $1))
}
trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT

STARTED=1
on_node "$HEAD" --head --node-ip-address="$ADDRESS" --port="$PORT" --dashboard-port=$((PORT + 1)) \
    --ray-client-server-port=$((PORT + 2))
await "Ray did not start on $HEAD" joined 1
for node in "${NODES[@]:1}"; do
    STARTED=$((STARTED + 1))
    on_node "$node" --address="$ADDRESS:$PORT"
done
await "Ray did not start on all of ${NODES[*]}" joined ${#NODES[@]}

orchestrator submit --address "$ADDRESS:$PORT" --result-dir "$RESULTS" "$@"
