#!/usr/bin/env bash
# transformers 5.23.0 takes the feed-forward width and the context of a GPT-2 GGUF file into names that nothing reads.
# Where: transformers/integrations/ggml.py, the table of "gpt2" (line 201): context_length becomes "n_ctx" and
# feed_forward_length stays "feed_forward_length". GPT2Config knows neither: its names are n_positions and n_inner
# (models/gpt2/configuration_gpt2.py line 71 on), and an unknown name is kept as an attribute without a word.
# Expected: the sizes of the file. A GPT-2 of the usual sizes (1024 positions, a width of 4 times the embedding) loads,
# so the fault shows only once a size has been changed: then from_pretrained ends with a mismatch of shapes.
# Seen: of a file with 32 positions and a feed-forward width of 48, a model with 1024 positions and a width of 64.
# Run: bash findings/transformers_gguf_gpt2_sizes.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu transformers==5.23.0 gguf==0.19.0 numpy==2.4.6
cd "$scratch"
venv/bin/python - <<'PYTHON'
from gguf import GGUFWriter
from transformers import AutoConfig, GPT2Model

writer = GGUFWriter("model.gguf", "gpt2")
writer.add_context_length(32)
writer.add_block_count(1)
writer.add_embedding_length(16)
writer.add_feed_forward_length(48)
writer.add_head_count(2)
writer.add_layer_norm_eps(1e-5)
writer.add_token_list(["a", "b"])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.close()

config = AutoConfig.from_pretrained(".", gguf_file="model.gguf")
model = GPT2Model(config)
positions, width = model.wpe.weight.shape[0], model.h[0].mlp.c_fc.weight.shape[1]
print(f"read: n_ctx {config.n_ctx}, feed_forward_length {config.feed_forward_length}, n_inner {config.n_inner}")
print(f"made: {positions} positions (32 in the file), a feed-forward width of {width} (48 in the file)")
assert (positions, width) == (1024, 64), "this version reads the sizes"
PYTHON
