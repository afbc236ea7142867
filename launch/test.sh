#!/usr/bin/env bash
# The whole test suite, on a CPU, in the environment of quickstart.sh. Arguments go to pytest:
#
#   bash launch/test.sh tests/data -k labels
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$REPOSITORY"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# loadgroup: the tests on one Slurm cluster stay in one process.
exec python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadgroup "$@"
