#!/usr/bin/env bash
# Runs a stage on several processes with the deepspeed launcher:
#
#   bash launch/deepspeed.sh train --config recipe.yaml                      one process per GPU (without a GPU: one)
#   bash launch/deepspeed.sh --processes 2 run --config recipe.yaml run.seed=1
#   bash launch/deepspeed.sh --hostfile hosts train --config recipe.yaml     on all nodes, by ssh: lines `node1 slots=8`
#   bash launch/deepspeed.sh --nodes 2 --node-rank 0 --master node1:29500 train --config recipe.yaml     on node1
#   bash launch/deepspeed.sh --nodes 2 --node-rank 1 --master node1:29500 train --config recipe.yaml     on the other
#
#   --processes P          per node
#   --hostfile FILE        the nodes; they are reached by ssh (pdsh), and FILE says how many processes each gets
#   --nodes N              number of nodes; start the script on each, no ssh is needed
#   --node-rank R          number of this node, from 0 (default: SLURM_NODEID)
#   --master HOST[:PORT]   where rank 0 runs, as all nodes can reach it (port: 29500)
#   --OPTION=VALUE         any other option goes to deepspeed
#
# Exit status 85: training was told to stop and has saved; the same command goes on from there.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_launcher_options "$@"
if [ -z "${DS_ACCELERATOR:-}" ] && [ "$(gpus)" -eq 0 ]; then export DS_ACCELERATOR=cpu; fi
if [ -n "$hostfile" ]; then
    where=(--hostfile "$hostfile")
elif [ "$nodes" -gt 1 ]; then
    # The launcher reads the number of nodes and processes from a host file; without ssh the names do not matter.
    hosts="$(mktemp)"
    trap 'rm -f "$hosts"' EXIT
    for ((node = 0; node < nodes; node++)); do echo "node$node slots=$processes"; done >"$hosts"
    where=(--hostfile "$hosts" --no_ssh --node_rank "$node_rank" --master_addr "$master_address")
    where+=(--master_port "$master_port")
else
    where=(--num_gpus "$processes")
fi
launch python -m deepspeed.launcher.runner "${where[@]}" "${passed[@]}" --module pipeline "${command[@]}"
