#!/usr/bin/env bash
# Everything a change must pass: bash launch/test.sh [--long] [--cov] [pytest options, such as tests/unit or -k WORDS]
# --long: what is marked slow as well, and all examples of the properties; before a release (.github/workflows/long.yaml).
# --cov: which lines and branches ran, in Ray's workers too; it takes twice as long, and is told at the end.
set -euo pipefail
markers="not slow and not gpu" profile=short coverage=
while [[ ${1:-} == --long || ${1:-} == --cov ]]; do
    if [[ $1 == --long ]]; then markers="not gpu" profile=long; else coverage=1; fi
    shift
done
bash "$(dirname "${BASH_SOURCE[0]}")/setup.sh" gguf,dev
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
"$python" -m ruff check
"$python" -m ruff format --check
"$python" -m mypy
NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict --quiet --config-file docs/mkdocs.yml # to .cache/docs
several_machines() { unshare --net --pid --fork true && hash ip rsync ssh && [[ -x /usr/sbin/sshd ]]; } 2>/dev/null
if [[ ! ${CI:-} ]] && ! several_machines; then
    echo "test: without the launch tests of several machines: they need root, iproute2, openssh-server and rsync"
    markers="($markers) and not namespaces"
fi
processes=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # of each process: they share the cores
command=("$python" -m pytest -n "$((processes < 2 ? 2 : processes < 4 ? processes : 4))" --dist loadfile --no-loadscope-reorder
    -m "$markers" --hypothesis-profile "$profile" "$@")
[[ $coverage ]] || exec "${command[@]}"

rc=tests/coverage/coveragerc
export COVERAGE_FILE=${COVERAGE_FILE:-$PWD/.coverage} # absolute: the processes have folders of their own
rm -f "$COVERAGE_FILE"*
export PYTHONPATH=$PWD/tests/coverage${PYTHONPATH:+:$PYTHONPATH}
COVERAGE_PROCESS_START=$PWD/$rc "${command[@]}" || status=$?
"$python" -m coverage combine --quiet --rcfile=$rc
"$python" -m coverage report --rcfile=$rc
exit "${status:-0}"
