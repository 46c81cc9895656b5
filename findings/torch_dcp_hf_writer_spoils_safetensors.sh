#!/usr/bin/env bash
# torch 2.13.0: DCP's Hugging Face writer makes a .safetensors file that nothing can read, if the state has a number.
# Where: torch/distributed/checkpoint/filesystem.py lines 416-468, _write_files_from_queue. What is not a tensor is put
# at the head of the same stream as bytes of torch.save, and the safetensors file is written behind it.
# Expected: an error at saving, as the format holds tensors only, or a file with the tensors. The name, the index and
# the success of the call all say that it is a safetensors file.
# Seen: saving {"weight": tensor, "step": 3} succeeds; the file begins with PK (a zip archive with a pickle), and both
# safetensors and torch's own HuggingFaceStorageReader fail on it. Without "step" the file is good.
# Run: bash findings/torch_dcp_hf_writer_spoils_safetensors.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu safetensors==0.8.0 numpy==2.4.6
cd "$scratch"
venv/bin/python - <<'PYTHON'
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open

warnings.simplefilter("ignore")


def read_back(name, state):
    Path(name).mkdir()
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(name), no_dist=True)
    file = next(Path(name).glob("*.safetensors"))
    try:
        with safe_open(file, "pt") as opened:
            return file.read_bytes()[:2], list(opened.keys())
    except SafetensorError as error:
        return file.read_bytes()[:2], str(error)


weight = torch.arange(4.0)
good, bad = read_back("good", {"weight": weight}), read_back("bad", {"weight": weight, "step": 3})
print(good, bad)
assert good[1] == ["weight"], "this version writes no readable file at all"
assert bad[0] == b"PK" and "header" in bad[1], "this version behaves otherwise"
PYTHON
