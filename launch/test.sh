#!/usr/bin/env bash
# Everything a change must pass: bash launch/test.sh [pytest options, such as -m slow or tests/unit]
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/setup.sh" gguf,dev
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
"$python" -m ruff check
"$python" -m ruff format --check
"$python" -m mypy
exec "$python" -m pytest -m "not slow and not gpu" --cov --cov-report=term "$@"
