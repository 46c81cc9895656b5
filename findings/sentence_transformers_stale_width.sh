#!/usr/bin/env bash
# sentence-transformers 6.2.0 tells the old width of an encoder that was resized, and does not notice the other one.
# Where: sentence_transformers/sentence_transformer/modules/pooling.py lines 112 and 340. The width that a model tells
# (model.py line 1151, get_embedding_dimension) is a number from 1_Pooling/config.json, which is a file beside the
# encoder's own configuration; neither loading nor pooling compares it with the encoder.
# Expected: an error at loading, or the width of the vectors. The docstring says "the number of dimensions in the output
# of encode", and a vector database makes its index of that number.
# Seen: an encoder of width 32 put in the place of one of 64: it loads, tells 64 and gives vectors of 32.
# Run: bash findings/sentence_transformers_stale_width.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu sentence-transformers==6.2.0 transformers==5.23.0 numpy==2.4.6
cd "$scratch"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizer


def encoder(width):
    return BertModel(BertConfig(vocab_size=7, hidden_size=width, num_hidden_layers=1, num_attention_heads=2))


words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
Path("vocab.txt").write_text("\n".join(words))
encoder(64).save_pretrained("encoder")
BertTokenizer("vocab.txt").save_pretrained("encoder")
SentenceTransformer(modules=[Transformer("encoder"), Pooling(64)], device="cpu").save("model")
encoder(32).save_pretrained("model")  # the resized encoder takes the place of the old one

model = SentenceTransformer("model", device="cpu")
told, given = model.get_embedding_dimension(), model.encode(["hello world"]).shape[1]
print(f"told: {told}, given: {given}")
assert (told, given) == (64, 32), "this version behaves otherwise"
PYTHON
