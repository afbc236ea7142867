#!/usr/bin/env bash
# Submits a job array to Slurm: every method with every seed, each a run of its own (all stages) in RUN/METHOD-seedSEED.
#
#   bash launch/slurm/sweep.sh recipe.yaml --methods lt_prefix,lt_prompt --seeds 0,1,2 --gpus-per-node 1 run.dir=runs/sweep
#
#   --methods A,B          tuning methods; the recipe's other method.* keys must fit each of them
#   --seeds 0,1            seeds
#   --parallel N           at most so many at a time
#
# and the options of submit.sh.
set -euo pipefail
# shellcheck source=launch/slurm/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
parse_job_options "$@"
[ -n "$methods" ] && [ -n "$seeds" ] || fail "--methods and --seeds are needed; see --help"
IFS=, read -ra each_method <<<"$methods"
IFS=, read -ra each_seed <<<"$seeds"
for method in "${each_method[@]}"; do
    LTUNE_RUN_DIR="$(run_dir run "${arguments[@]}" "method.name=$method")" # checks the config with each method
done
LTUNE_RUN_DIR="$(realpath -m "$LTUNE_RUN_DIR")"
export LTUNE_RUN_DIR LTUNE_LAUNCHER="$launcher" LTUNE_STAGE_IN="$stage_in" LTUNE_METHODS="$methods" LTUNE_SEEDS="$seeds"

cells=$((${#each_method[@]} * ${#each_seed[@]}))
logs="${LTUNE_RUN_DIR//%/%%}/logs/slurm" # sbatch would fill in its own words for %j and the like
options=(--export=ALL "--job-name=$(basename "$LTUNE_RUN_DIR")-sweep" "--output=$logs/sweep-%A_%a.log")
# shellcheck disable=SC2207 # one word per option
options+=($(ranks_options) "${GPU_OPTIONS[@]}" "${given[@]}" "--signal=B:USR1@$SIGNAL_LEAD")
options+=("--array=0-$((cells - 1))${parallel:+%$parallel}")
if [ -z "$dry_run" ]; then
    check_job sweep "${options[@]}"
    mkdir -p "$LTUNE_RUN_DIR/logs/slurm"
fi
job="$(submit sweep "${options[@]}")" || fail "the array was not submitted"
echo "$job  $cells runs"
echo "logs: $LTUNE_RUN_DIR/logs/slurm/"
