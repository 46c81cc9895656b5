#!/usr/bin/env bash
# Makes .venv and installs the project with pinned versions: bash launch/setup.sh [EXTRAS]   (default: gguf)
# Takes the newest Python from 3.11 to 3.13 that it finds (PYTHON names another), and uv where it is installed, which
# also checks digests; else pip. Reuses what is installed while the pins, the folder and the project's own part of
# pyproject.toml, which is what stands before the settings of tools, are the same.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:-gguf}

if [[ $PWD == *[[:space:]]* ]]; then # ray 2.60 leaves the path unquoted, and its workers never start
    echo "setup: Ray cannot start its workers from a path with spaces: move '$PWD' to one without" >&2
    exit 1
fi

pins=(launch/constraints.txt launch/hashes.txt launch/inputs.txt)
wanted=$(cat "${pins[@]}" <(sed '/^\[tool\.ruff/,$d' pyproject.toml) <(pwd) | sha256sum)
for stamp in ".venv/installed-$extras" ".venv/installed-gguf,dev"; do
    if [[ -e $stamp && $(<"$stamp") == "$wanted" ]] && .venv/bin/python -c "" 2>/dev/null; then exit 0; fi
done

fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
python=
for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c "$fits" 2>/dev/null && { hash uv || "$candidate" -c 'import ensurepip, venv'; } 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [[ ! $python ]]; then
    echo "setup: ${PYTHON:+'$PYTHON' is }no Python from 3.11 to 3.13 with venv${PYTHON:+}; install one (Debian," \
        "Ubuntu: python3 and python3-venv), or name one: PYTHON=/path/to/python3.12 bash launch/..." >&2
    exit 1
fi

version=$("$python" -c 'import platform; print(platform.python_version())')
echo "setup: installs into $PWD/.venv with Python $version and $(hash uv 2>/dev/null && echo uv || echo pip): downloads" \
    "$(grep -c == launch/constraints.txt) pinned packages, 0.9 GB with PyTorch's CPU build and 3 GB more with a CUDA" \
    "build (what a plain index gives), 0.2 GB of models and texts among them; takes 2 GB of disk, or 6"
clear=() # a .venv that was left half-installed, or was moved here, is made anew
if [[ -e .venv/installing ]] || { [[ -e .venv ]] && ! grep -qF "$PWD/.venv" .venv/bin/activate; }; then clear=(--clear); fi
SECONDS=0
if hash uv 2>/dev/null; then
    uv venv --quiet --seed --allow-existing "${clear[@]}" --python "$python" .venv
    install=(uv pip install --quiet --python .venv/bin/python --constraints launch/hashes.txt)
else
    "$python" -m venv "${clear[@]}" .venv
    install=(.venv/bin/python -m pip install -qq --disable-pip-version-check)
fi
touch .venv/installing
rm -f .venv/installed-*
# Given by the environment, the pins also hold for what pip and uv build with.
export PIP_CONSTRAINT=launch/constraints.txt PIP_BUILD_CONSTRAINT=launch/constraints.txt
export UV_CONSTRAINT=launch/constraints.txt UV_BUILD_CONSTRAINT=launch/constraints.txt
"${install[@]}" -e ".[$extras]"
"${install[@]}" --no-deps -r launch/inputs.txt
echo "$wanted" >".venv/installed-$extras"
rm .venv/installing
echo "setup: installed in $SECONDS s"
