#!/usr/bin/env bash
# The whole test suite, on a CPU, in the environment of quickstart.sh with the tests' tools. Arguments go to pytest:
#
#   bash launch/test.sh tests/data -k labels
#   bash launch/test.sh --faults                the long fault campaign (half an hour) and its figures
#   bash launch/test.sh --hostile               the campaign of hostile inputs (some ten minutes) and its figures
#   bash launch/test.sh --families              the campaign over types of backbones (some minutes)
set -euo pipefail
REQUIREMENTS=requirements-dev.txt
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$REPOSITORY"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
case "${1:-}" in
    --faults | --hostile | --families)
        campaign=${1#--}
        shift
        exec python -m pytest "tests/$campaign" -m "$campaign" "$@"
        ;;
esac
if [ "$#" -gt 0 ]; then
    exec python -m pytest "$@"
fi
# loadfile: what the tests of one file share is made once. Those that come first (tests/conftest.py) wait for one another's
# processes half of the time, so there is a process more than cores.
python -m pytest --numprocesses "${TEST_PROCESSES:-3}" --dist loadfile --no-loadscope-reorder
