#!/usr/bin/env bash
# Submits a run to Slurm as four jobs, of which each starts when the one before has succeeded: preprocess, encode-labels
# (and encode-texts), train, evaluate.
#
#   bash launch/slurm/submit.sh recipe.yaml --nodes 2 --gpus-per-node 8 --time 04:00:00 run.dir=runs/mine
#
#   --nodes N              of the jobs with the backbone (default 1)
#   --gpus-per-node G      one rank each (default 1); 0: one CPU rank per node
#   --partition P          --account A, --time T: for sbatch
#   --launcher NAME        torchrun: one per node (default); srun: one task per GPU, without torchrun
#   --stage-in DIR         copy the tokenized texts and a local backbone to this folder on every node first
#   --dry-run              show the sbatch commands and scripts, submit nothing
#   --OPTION[=VALUE]       any other option goes to sbatch, for all four jobs
#   key=value              overrides of the recipe
#
# What is the same for every run on a cluster belongs in launch/slurm/site.env.
set -euo pipefail
# shellcheck source=launch/slurm/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
parse_job_options "$@"
[ -z "$methods$seeds$parallel" ] || fail "--methods, --seeds and --parallel are options of sweep.sh"
LTUNE_RUN_DIR="$(run_dir run "${arguments[@]}")" # checks the config too
LTUNE_RUN_DIR="$(realpath -m "$LTUNE_RUN_DIR")"
export LTUNE_RUN_DIR LTUNE_LAUNCHER="$launcher" LTUNE_STAGE_IN="$stage_in"

# sbatch options of one stage, in `options`.
options_of() {
    local logs="${LTUNE_RUN_DIR//%/%%}/logs/slurm" # sbatch would fill in its own words for %j and the like
    options=(--export=ALL "--job-name=$(basename "$LTUNE_RUN_DIR")-$1" "--output=$logs/$1-%j.log")
    if [ "$1" = preprocess ]; then
        options+=("${given[@]}" "${CPU_OPTIONS[@]}")
    else
        # shellcheck disable=SC2207 # one word per option
        options+=($(ranks_options) "${GPU_OPTIONS[@]}" "${given[@]}")
    fi
    if [ "$1" = train ]; then options+=("--signal=B:USR1@$SIGNAL_LEAD"); fi
}

stages=(preprocess encode_labels train evaluate)
if [ -z "$dry_run" ]; then
    for stage in "${stages[@]}"; do
        options_of "$stage"
        check_job "$stage" "${options[@]}"
    done
    mkdir -p "$LTUNE_RUN_DIR/logs/slurm" # Slurm does not make it
fi
jobs=()
for stage in "${stages[@]}"; do
    options_of "$stage"
    # Without the second option a job whose predecessor failed would wait for ever.
    if [ "${#jobs[@]}" -gt 0 ]; then options+=("--dependency=afterok:${jobs[-1]}" --kill-on-invalid-dep=yes); fi
    job="$(submit "$stage" "${options[@]}")" || {
        scancel "${jobs[@]}"
        fail "$stage was not submitted; the jobs before it are cancelled"
    }
    jobs+=("$job")
    echo "$job  $stage"
done
echo "logs: $LTUNE_RUN_DIR/logs/slurm/"
