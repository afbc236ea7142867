#!/usr/bin/env bash
# Runs a stage on several processes with accelerate launch:
#
#   bash launch/accelerate.sh train --config recipe.yaml                     one process per GPU (without a GPU: one)
#   bash launch/accelerate.sh --processes 2 run --config recipe.yaml run.seed=1
#   bash launch/accelerate.sh --nodes 2 --node-rank 0 --master node1:29500 train --config recipe.yaml    on node1
#   bash launch/accelerate.sh --nodes 2 --node-rank 1 --master node1:29500 train --config recipe.yaml    on the other
#
#   --processes P          per node
#   --nodes N              number of nodes; start the script on each
#   --node-rank R          number of this node, from 0 (default: SLURM_NODEID)
#   --master HOST[:PORT]   where rank 0 runs, as all nodes can reach it (port: 29500)
#   --OPTION=VALUE         any other option goes to accelerate launch
#
# Exit status 85: training was told to stop and has saved; the same command goes on from there.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_launcher_options "$@"
machines=(--num_machines "$nodes" --machine_rank "$node_rank" --num_processes "$((nodes * processes))")
if [ "$nodes" -gt 1 ]; then
    # standard: no ssh, this script runs on every node; static: ranks follow the nodes' numbers.
    machines+=(--main_process_ip "$master_address" --main_process_port "$master_port"
        --deepspeed_multinode_launcher standard --rdzv_backend static)
else
    machines+=(--main_process_port 0) # a free one
fi
# The DeepSpeed settings are those of engine.deepspeed; no questionnaire of `accelerate config` is needed.
launch python -m accelerate.commands.launch --use_deepspeed --mixed_precision no --dynamo_backend no "${machines[@]}" \
    "${passed[@]}" -m pipeline "${command[@]}"
