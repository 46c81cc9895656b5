#!/usr/bin/env bash
# Makes .venv and installs the project with pinned versions: bash launch/setup.sh [EXTRAS]   (default: gguf)
# Reuses what is installed while the pins, pyproject.toml and the folder are the same. PYTHON names another interpreter.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:-gguf}
python=${PYTHON:-python3.11}

if [[ $PWD == *[[:space:]]* ]]; then # ray 2.60 leaves the path unquoted, and its workers never start
    echo "setup: Ray cannot start its workers from a path with spaces: move '$PWD' to one without" >&2
    exit 1
fi

wanted=$(cat launch/constraints.txt launch/inputs.txt pyproject.toml <(pwd) | sha256sum)
for stamp in ".venv/installed-$extras" ".venv/installed-gguf,dev"; do
    if [[ -e $stamp && $(<"$stamp") == "$wanted" ]] && .venv/bin/python -c "" 2>/dev/null; then exit 0; fi
done

if ! "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup: '$python' is no Python 3.11 with venv; install it (Debian, Ubuntu: python3.11 and python3.11-venv)" \
        "or name one: PYTHON=/path/to/python3.11 bash launch/..." >&2
    exit 1
fi
clear=() # a .venv that was left half-installed, or was moved here, is made anew
if [[ -e .venv/installing ]] || { [[ -e .venv ]] && ! grep -qF "$PWD/.venv/" .venv/bin/pip; }; then clear=(--clear); fi
echo "setup: installing into $PWD/.venv (about 2 GB, some minutes)"
SECONDS=0
"$python" -m venv "${clear[@]}" .venv
touch .venv/installing
rm -f .venv/installed-*
# Given by the environment, the pins also hold for what pip builds with.
export PIP_CONSTRAINT=launch/constraints.txt PIP_BUILD_CONSTRAINT=launch/constraints.txt
.venv/bin/python -m pip install -qq --disable-pip-version-check -e ".[$extras]"
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r launch/inputs.txt
echo "$wanted" >".venv/installed-$extras"
rm .venv/installing
echo "setup: installed in $SECONDS s"
