# Sourced by the other scripts: a virtual environment in .venv with requirements.txt installed, made once.
# PYTHON=python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'fedbsd_dist: %s\n' "$*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.10 or newer is needed${PYTHON:+ (PYTHON=$PYTHON is not)}. Install it, or set PYTHON to its path."
}

set_up() {
    # a stamp that changes with the requirements, and is written last: an interrupted set-up starts again
    local wanted python
    wanted="$(cksum requirements.txt)"
    if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
        python="$(find_python)"
        echo "Setting up .venv with $("$python" --version); the first time this downloads several GB of PyTorch."
        [ -x .venv/bin/pip ] || { rm -rf .venv; "$python" -m venv .venv; } ||
            fail "$python cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"
        .venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt ||
            fail "installing requirements.txt failed; the reason is above. Run this again when it is mended."
        echo "$wanted" > .venv/installed
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}

set_up
