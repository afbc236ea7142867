# Sourced by the batch scripts. They run on the first node of a job and start a stage on all of them.
# shellcheck shell=bash

# shellcheck source=launch/common.sh
source "$LTUNE_REPOSITORY/launch/common.sh"
# shellcheck source=launch/slurm/site.env
source "${LTUNE_SITE:-$REPOSITORY/launch/slurm/site.env}"

told_to_stop="" step="" status=0

# The signal before the time limit. SIGUSR1 tells the ranks to save and stop; it is repeated, since a rank that is still
# starting ignores it.
hand_on() {
    told_to_stop=yes
    if [ -n "$step" ]; then (while kill -USR1 "$step" 2>/dev/null; do sleep 10; done) & fi
}
trap hand_on USR1 TERM

prepare_job
echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"

# Runs a stage on all ranks of the job, to its end; leaves the exit status in `status`.
run_ranks() {
    local tasks=1 ranks
    local processes="${SLURM_GPUS_ON_NODE:-1}"
    MASTER_ADDR="$(master_address)"
    # Jobs that share a node get different ports, below those that Linux gives to outgoing connections (32768).
    MASTER_PORT=$((16000 + SLURM_JOB_ID % 16000))
    export MASTER_ADDR MASTER_PORT
    if [ "${LTUNE_LAUNCHER:-torchrun}" = torchrun ]; then
        ranks=(bash "$REPOSITORY/launch/torchrun.sh" --nodes "$SLURM_NNODES" --processes "$processes"
            --master "$MASTER_ADDR:$MASTER_PORT")
    else
        ranks=(bash "$REPOSITORY/launch/slurm/rank.sh")
        tasks="$processes"
    fi
    export LOCAL_WORLD_SIZE="$tasks"
    if [ -n "${LTUNE_STAGE_IN:-}" ]; then stage_in "$@"; fi
    run_step --nodes "$SLURM_NNODES" --ntasks-per-node "$tasks" "${CONTAINER[@]}" "${ranks[@]}" "$@"
    if [ -n "${LTUNE_LOCAL:-}" ]; then each_node rm -rf "$LTUNE_LOCAL"; fi
}

# Copies what a stage reads to every node. The program finds it by LTUNE_LOCAL (pipeline/distributed/launcher.py).
stage_in() {
    local folders=("${LTUNE_RUN_DIR:-$(run_dir "$@")}/data" "$(config_value backbone.name_or_path "$@")")
    export LTUNE_LOCAL="$LTUNE_STAGE_IN/ltune-$SLURM_JOB_ID"
    for folder in "${folders[@]}"; do
        if [ -d "$folder" ]; then # else preprocess has not run yet, or the backbone comes from the hub
            folder="$(realpath "$folder")"
            # Copied beside and renamed: whole or not at all, also where nodes turn out to share the disk.
            # shellcheck disable=SC2016 # the nodes' shells expand it
            each_node bash -c 'mkdir -p "$(dirname "$2")" && cp -rT "$1" "$2.$SLURM_PROCID" &&
                { mv -T "$2.$SLURM_PROCID" "$2" 2>/dev/null || rm -r "$2.$SLURM_PROCID"; }' \
                stage-in "$folder" "$LTUNE_LOCAL$folder"
            echo "copied $folder to $LTUNE_LOCAL on each node"
        fi
    done
}

each_node() {
    srun --nodes "$SLURM_NNODES" --ntasks-per-node 1 "$@"
}

# Runs one job step with these srun options and command, to its end; leaves its exit status in `status`.
run_step() {
    # srun does not take this over from sbatch by itself.
    if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi
    # Once one task has ended the others may take 120 s to end too (rank 0 may still be writing); then they are killed.
    srun --kill-on-bad-exit=0 --wait=120 "$@" &
    step=$!
    if [ -n "$told_to_stop" ]; then hand_on; fi
    while kill -0 "$step" 2>/dev/null; do wait "$step" || :; done # a signal ends `wait` early
    wait "$step" || status=$?
}

# Runs a stage that can go on from a checkpoint. Told to stop, or failed after one, the job asks to be started again.
run_or_requeue() {
    newest_at_start="$(newest_checkpoint)"
    run_ranks "$@"
    if [ "$status" -eq 0 ]; then exit 0; fi
    if was_preempted "$LTUNE_RUN_DIR"; then status=$PREEMPTED; fi
    # A job that was cancelled stays so, and one that Slurm is requeueing needs no help.
    if ! scontrol --oneliner show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then exit "$status"; fi
    count_stalled_starts
    if [ "$stalled" -ge "$allowed" ]; then
        echo "$stalled start(s) without a checkpoint newer than $newest, not requeued" >&2
        exit "$status"
    fi
    echo "requeued; goes on from $newest"
    scontrol requeue "$SLURM_JOB_ID"
    exit "$status"
}

# Sets `stalled`, how many starts in a row brought no newer checkpoint, and `allowed`, how many may.
count_stalled_starts() {
    local record="$LTUNE_RUN_DIR/logs/slurm/.stalled-$SLURM_JOB_ID" before=0
    allowed="$MAX_STALLED"
    if [ -f "$record" ]; then
        before="$(cat "$record")"
    elif [ -z "$told_to_stop" ] && [ "$status" -ne "$PREEMPTED" ]; then
        # What fails before it has ever brought a checkpoint would fail again. Later it may have been a node that Slurm
        # misses only after minutes (SlurmdTimeout).
        allowed=1
    fi
    newest="$(newest_checkpoint)"
    stalled=0
    if [ "$newest" = "$newest_at_start" ]; then stalled=$((before + 1)); fi
    mkdir -p "${record%/*}"
    echo "$stalled" >"$record"
}

newest_checkpoint() {
    cat "$LTUNE_RUN_DIR/checkpoints/LATEST" 2>/dev/null || echo "the beginning"
}
