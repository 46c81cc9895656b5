#!/usr/bin/env bash
# Everything a change must pass: bash launch/test.sh [pytest options, such as -m slow, tests/unit or --cov]
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/setup.sh" gguf,dev
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
"$python" -m ruff check
"$python" -m ruff format --check
"$python" -m mypy
markers="not slow and not gpu"
several_machines() { unshare --net --pid --fork true && hash ip rsync ssh && [[ -x /usr/sbin/sshd ]]; } 2>/dev/null
if [[ ! ${CI:-} ]] && ! several_machines; then
    echo "test: without the launch tests of several machines: they need root, iproute2, openssh-server and rsync"
    markers+=" and not namespaces"
fi
exec "$python" -m pytest -m "$markers" "$@"
