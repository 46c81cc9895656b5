#!/usr/bin/env bash
# deepspeed 0.19.8 gives GPT-2's embeddings to Muon, and overwrites `use_muon` where one has set it oneself.
# Where: deepspeed/__init__.py lines 367-372, set_optimizer_flags, called by initialize. It sets `use_muon` of every
# parameter: True for all of two axes or more whose name holds neither "embed" nor "lm_head". What was set before is
# lost, though the error in runtime/engine.py line 2447 tells one to set "param.use_muon = True / False".
# Expected: that a flag that is set stays, and that embeddings, which Muon is not made for, are found by what they are:
# GPT-2 calls them transformer.wte and transformer.wpe, and its head is tied to wte.
# Seen: wte and wpe have use_muon=False before deepspeed.initialize and True after it, and are in the Muon group.
# Run: bash findings/deepspeed_muon_overwrites_flags.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu deepspeed==0.19.8 transformers==5.23.0 numpy==2.4.6
cd "$scratch"
LOCAL_RANK=0 DS_ACCELERATOR=cpu venv/bin/python - <<'PYTHON' 2>&1 | grep '^seen\|Error'
import torch

torch.distributed.init_process_group("gloo", init_method="file:///proc/self/cwd/group", rank=0, world_size=1)
import deepspeed
from transformers import GPT2Config, GPT2LMHeadModel

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # so that nothing has to be compiled
sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 16}
model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
for name, parameter in model.named_parameters():
    parameter.use_muon = ".h." in name and parameter.ndim == 2
settings = {"type": "Muon", "params": {"lr": 0.01, "torch_adam": True}}  # torch's AdamW beside Muon: nothing compiled
config = {"train_batch_size": 1, "optimizer": settings}
optimizer = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)[1]

with_muon = {id(p) for group in optimizer.param_groups if group["use_muon"] for p in group["params"]}
tables = {"wte": model.transformer.wte.weight, "wpe": model.transformer.wpe.weight}
seen = {name: (table.use_muon, id(table) in with_muon) for name, table in tables.items()}
print("seen: flag, in the Muon group:", seen)
assert seen == {"wte": (True, True), "wpe": (True, True)}, "this version behaves otherwise"
PYTHON
