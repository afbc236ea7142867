# Sourced by submit.sh and sweep.sh: their options, checked before anything is submitted.
# shellcheck shell=bash disable=SC2034 # the scripts read what is set here

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
export LTUNE_REPOSITORY="$REPOSITORY"
# shellcheck source=launch/slurm/site.env
source "${LTUNE_SITE:-$REPOSITORY/launch/slurm/site.env}"

# Splits the arguments: `recipe`, our options, `given` (options for sbatch), `overrides` (key=value).
parse_job_options() {
    recipe="" nodes=1 gpus_per_node=1 launcher=torchrun stage_in="" dry_run="" methods="" seeds="" parallel=""
    given=() overrides=()
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage ;;
            --dry-run) dry_run=yes ;;
            --nodes | --gpus-per-node | --launcher | --stage-in | --methods | --seeds | --parallel)
                [ $# -ge 2 ] || fail "$1 needs a value; see --help"
                set_job_option "$1" "$2"
                shift
                ;;
            --nodes=* | --gpus-per-node=* | --launcher=* | --stage-in=* | --methods=* | --seeds=* | --parallel=*)
                set_job_option "${1%%=*}" "${1#*=}"
                ;;
            --partition | --account | --time)
                [ $# -ge 2 ] || fail "$1 needs a value; see --help"
                given+=("$1=$2")
                shift
                ;;
            -*) given+=("$1") ;;
            *=*)
                # The config of a comparison's cell lies in a folder such as learning_rate=0.01.
                if [ -z "$recipe" ] && [ -f "$1" ]; then recipe="$1"; else overrides+=("$1"); fi
                ;;
            *)
                [ -z "$recipe" ] || fail "'$1' is neither an option nor key=value; sbatch options are written --option=value"
                recipe="$1"
                ;;
        esac
        shift
    done
    [ -n "$recipe" ] || fail "no recipe given; see --help"
    # SIGUSR1 comes from the batch script, before the time limit.
    arguments=(--config "$recipe" "train.preemption_signals=[SIGTERM,SIGINT,SIGUSR1]" "${overrides[@]}")
}

set_job_option() {
    local name="${1#--}"
    case "$name" in
        nodes | parallel) [[ "$2" =~ ^[1-9][0-9]*$ ]] || fail "$1 is '$2'; it is a number from 1" ;;
        gpus-per-node) [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 is '$2'; it is a number, 0 for CPU ranks" ;;
        launcher) [[ "$2" =~ ^(torchrun|srun)$ ]] || fail "$1 is '$2'; it is torchrun or srun" ;;
        stage-in) [[ "$2" = /* ]] || fail "$1 is '$2'; it is the absolute path of a node-local folder" ;;
        seeds) [[ "$2" =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "$1 is '$2'; it is a list like 0,1,2" ;;
    esac
    printf -v "${name//-/_}" %s "$2"
}

# What the jobs with the backbone are given.
ranks_options() {
    local tasks=1 ranks="$gpus_per_node"
    [ "$ranks" -gt 0 ] || ranks=1
    if [ "$launcher" = srun ]; then tasks="$ranks"; fi
    echo "--nodes=$nodes" "--ntasks-per-node=$tasks" "--cpus-per-task=$((CPUS_PER_RANK * ranks / tasks))"
    if [ "$gpus_per_node" -gt 0 ]; then echo "${GPU_REQUEST//@/$gpus_per_node}"; fi
}

# Submits a batch script with these sbatch options and prints the job's id; with --dry-run it shows them instead.
submit() {
    local file="$REPOSITORY/launch/slurm/$1.sbatch" output
    shift
    if [ -n "$dry_run" ]; then
        { printf '\n$ sbatch' && printf ' %q' "$@" "$file" "${arguments[@]}" && printf '\n' && cat "$file"; } >&2
        echo "$(basename "$file" .sbatch)-id"
        return
    fi
    output="$(sbatch --parsable "$@" "$file" "${arguments[@]}")" || return
    echo "${output%%;*}" # a cluster's name may follow
}

# Asks Slurm whether it would take such a job.
check_job() {
    local file="$REPOSITORY/launch/slurm/$1.sbatch" answer
    shift
    answer="$(sbatch --test-only "$@" "$file" "${arguments[@]}" 2>&1)" || fail "${answer//$'\n'/; }; nothing was submitted"
}
