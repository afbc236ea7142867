# Sourced by torchrun.sh, deepspeed.sh, accelerate.sh and the Slurm jobs: environment, options, exit statuses.
# shellcheck shell=bash disable=SC2034 # the scripts read what is set here

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Without an active environment: the one that environment.sh makes.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -d "${VENV:-$REPOSITORY/.venv}" ]; then
    PATH="${VENV:-$REPOSITORY/.venv}/bin:$PATH"
fi
export PATH PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"

# Exit status: training stopped on a signal after a checkpoint; the same command goes on from there.
PREEMPTED=85

fail() {
    echo "error: $*" >&2
    exit 2
}

# The comment at the top of the script.
usage() {
    sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$0"
    exit 0
}

# Splits the arguments: what the launchers share, `passed` (other launcher options), `command` (stage and its arguments).
parse_launcher_options() {
    processes="" nodes=1 master="" node_rank="${SLURM_NODEID:-0}" hostfile="" passed=()
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage ;;
            --processes | --nodes | --master | --node-rank | --hostfile)
                [ $# -ge 2 ] || fail "$1 needs a value; see --help"
                set_option "$1" "$2"
                shift
                ;;
            --processes=* | --nodes=* | --master=* | --node-rank=* | --hostfile=*) set_option "${1%%=*}" "${1#*=}" ;;
            -*) passed+=("$1") ;;
            *) break ;;
        esac
        shift
    done
    [ $# -gt 0 ] || fail "no stage given; see --help"
    command=("$@")
    if [ "$nodes" -gt 1 ] && [ -z "$master" ]; then fail "--nodes $nodes needs --master HOST[:PORT], the node of rank 0"; fi
    master_port="${master##*:}"
    [ "$master_port" != "$master" ] || master_port=29500
    master_address="${master%:*}"
    processes="${processes:-$(gpus)}"
    [ "$processes" -gt 0 ] || processes=1
    share_cores
}

set_option() {
    local name="${1#--}"
    case "$name" in
        processes | nodes | node-rank) [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 is '$2', which is not a number" ;;
        hostfile) [ -r "$2" ] || fail "--hostfile: '$2' cannot be read" ;;
    esac
    printf -v "${name//-/_}" %s "$2"
}

gpus() {
    python -c 'import torch; print(torch.cuda.device_count())'
}

# Each rank its share of the cores: the launchers would choose differently, and sums over threads with them.
share_cores() {
    local share=$(($(nproc) / processes))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((share > 1 ? share : 1))}"
}

# Runs a launcher, hands SIGTERM on to it, and exits with its status, or with 85 where training was told to stop:
# torchrun and accelerate turn any status of a rank into 1.
launch() {
    local child status
    # SIGUSR1 is for the ranks, which save and stop (train.preemption_signals). A launcher would die of it, or, if told to
    # hand it on, kill the ranks 30 seconds later.
    trap '' USR1
    # A shell makes what it starts in the background deaf to Ctrl-C, and takes its standard input.
    (trap - INT && exec "$@") <&0 &
    child=$!
    # Slurm signals every process of a step itself, and torchrun takes a second SIGTERM badly.
    if [ -n "${SLURM_STEP_ID:-}" ]; then trap : TERM; else trap 'kill -TERM "$child" 2>/dev/null' TERM; fi
    trap : INT
    while kill -0 "$child" 2>/dev/null; do wait "$child" || :; done # a signal ends `wait` early
    wait "$child" && exit 0
    status=$?
    if was_preempted "${LTUNE_RUN_DIR:-$(run_dir "${command[@]}")}"; then status=$PREEMPTED; fi
    exit "$status"
}

# Did training in this run directory end on a signal, after a checkpoint? (The next start removes the file.)
was_preempted() {
    [ -n "$1" ] && [ -f "$1/PREEMPTED" ]
}

# The run directory that a stage with these arguments writes to; empty for commands without a config.
run_dir() {
    config_value run.dir "$@"
}

# The value of a config key for a stage with these arguments. A wrong config is told as the stage would.
config_value() {
    python - "$@" <<'PY'
import sys
from operator import attrgetter
from pipeline.cli import build_parser
from pipeline.config import load_config
from pipeline.core.errors import UserError

options = build_parser().parse_args(sys.argv[2:])
try:
    print(attrgetter(sys.argv[1])(load_config(options.config, options.overrides)) if "config" in options else "")
except UserError as error:
    sys.exit(f"error: {error}")
PY
}
