#!/usr/bin/env bash
# torch 2.13.0: what fails in a distributed checkpoint (DCP) is not an Exception, so `except Exception` lets it through.
# Where: torch/distributed/checkpoint/api.py line 30, "class CheckpointException(BaseException)". Even in one process a
# ValueError of the planner, such as that of a tensor of another size, is wrapped into it.
# Expected: an Exception. BaseException is for what is to end the program (SystemExit, KeyboardInterrupt), and a loop
# that tries the next older checkpoint after `except Exception` ends here at the first bad one.
# Seen: loading 4 saved values into a tensor of 5, as after a change of the model's size, passes `except Exception` and
# reaches `except BaseException` as CheckpointException with the ValueError inside.
# Run: bash findings/torch_dcp_errors_pass_except_exception.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu numpy==2.4.6
cd "$scratch"
venv/bin/python - <<'PYTHON'
import warnings

import torch
import torch.distributed.checkpoint as dcp

warnings.simplefilter("ignore")
dcp.save({"weight": torch.zeros(4)}, checkpoint_id="saved", no_dist=True)
try:
    dcp.load({"weight": torch.zeros(5)}, checkpoint_id="saved", no_dist=True)
    seen = "nothing"
except Exception as error:
    seen = f"except Exception: {type(error).__name__}"
except BaseException as error:
    inside = [type(wrapped).__name__ for wrapped, _ in error.failures.values()]
    seen = f"except BaseException: {type(error).__name__} of {inside}"
print(seen)
assert seen == "except BaseException: CheckpointException of ['ValueError']", "this version behaves otherwise"
PYTHON
