#!/usr/bin/env bash
# One rank, started by srun once per GPU (submit.sh --launcher srun): tells the stage what torchrun would.
set -euo pipefail
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
trap '' USR1 # until training listens to it
exec python -m pipeline "$@"
