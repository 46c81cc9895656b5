#!/usr/bin/env bash
# transformers 5.23.0 reads a Llama GGUF file as if its rotary embedding were not scaled, whatever the file states.
# Where: transformers/integrations/ggml.py line 33, the table of "llama": of the keys rope.* it has dimension_count and
# freq_base only. A key without an entry is told at the level INFO (modeling_gguf_pytorch_utils.py line 694), which is
# not shown; rope.scaling.* is read for gpt-oss alone (line 739).
# Expected: rope_parameters of type linear with factor 4, which both llama.cpp and transformers know, or an error. A
# model with a stretched context loads, has the right shapes, and computes another function.
# Seen: the file states linear scaling by 4; the configuration says rope_type "default", and the frequencies of the
# model that is made of it are 4 times those of the scaled one.
# Run: bash findings/transformers_gguf_drops_rope_scaling.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu transformers==5.23.0 gguf==0.19.0 numpy==2.4.6
cd "$scratch"
venv/bin/python - <<'PYTHON'
import copy

from gguf import GGUFWriter, RopeScalingType
from transformers import AutoConfig, LlamaModel

writer = GGUFWriter("model.gguf", "llama")
writer.add_context_length(256)
writer.add_block_count(1)
writer.add_embedding_length(16)
writer.add_feed_forward_length(32)
writer.add_head_count(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(8)
writer.add_rope_freq_base(10000.0)
writer.add_rope_scaling_type(RopeScalingType.LINEAR)
writer.add_rope_scaling_factor(4.0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.close()

read = AutoConfig.from_pretrained(".", gguf_file="model.gguf")
stated = copy.deepcopy(read)
stated.rope_parameters = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
ratio = (LlamaModel(read).rotary_emb.inv_freq / LlamaModel(stated).rotary_emb.inv_freq).tolist()
print(read.rope_parameters, ratio)
assert read.rope_parameters["rope_type"] == "default" and ratio == [4.0] * 4, "this version reads the scaling"
PYTHON
