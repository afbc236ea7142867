#!/usr/bin/env bash
# Runs a stage on several processes with torchrun:
#
#   bash launch/torchrun.sh train --config recipe.yaml                       one process per GPU (without a GPU: one)
#   bash launch/torchrun.sh --processes 2 run --config recipe.yaml run.seed=1
#   bash launch/torchrun.sh --nodes 2 --node-rank 0 --master node1:29500 train --config recipe.yaml    on node1
#   bash launch/torchrun.sh --nodes 2 --node-rank 1 --master node1:29500 train --config recipe.yaml    on the other
#
#   --processes P          per node
#   --nodes N              number of nodes; start the script on each
#   --node-rank R          number of this node, from 0 (default: SLURM_NODEID)
#   --master HOST[:PORT]   where rank 0 runs, as all nodes can reach it (port: 29500)
#   --OPTION=VALUE         any other option goes to torchrun
#
# Exit status 85: training was told to stop and has saved; the same command goes on from there.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_launcher_options "$@"
# Static rendezvous: the ranks follow the nodes' numbers, so that every start gives each rank the same part of the work.
rendezvous=(--nnodes "$nodes" --node-rank "$node_rank" --master-addr "$master_address" --master-port "$master_port")
if [ "$nodes" -eq 1 ]; then rendezvous=(--standalone); fi # on a free port
# What saving may take after SIGTERM before torchrun kills the ranks, in seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"
launch python -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$processes" "${passed[@]}" \
    -m pipeline "${command[@]}"
