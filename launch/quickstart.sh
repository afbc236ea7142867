#!/usr/bin/env bash
# From nothing to a trained label classifier, on a CPU, in a few minutes:
#
#   bash launch/quickstart.sh                      embedded data set, MiniLM encoder, LT-prefix
#   bash launch/quickstart.sh method.name=lt_prompt run.dir=runs/mine
#   bash launch/quickstart.sh --llm                the same with SmolLM2, a real LLM (a download of 98 MB)
#
# Makes .venv, then runs all stages. A second run finds everything current.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$REPOSITORY"
export HF_HUB_OFFLINE=1
recipe=quickstart
if [ "${1:-}" = --llm ]; then
    shift
    recipe=quickstart_llm
    python launch/smollm2.py models/smollm2
fi
exec python -m pipeline run --config "launch/recipes/$recipe.yaml" "$@"
