#!/usr/bin/env bash
# The main job on a real model, from nothing: bash launch/quickstart.sh [bot_dist run options, such as --set train.steps=4]
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec .venv/bin/bot_dist run configs/quickstart.yaml "$@"
