#!/usr/bin/env bash
# transformers 5.23.0 adds a token to the vocabulary of a byte-level GGUF file that has no <|endoftext|>.
# Where: transformers/integrations/gguf/gguf_tokenizer_mapping.py line 162, byte_level_tokenizer. It makes a
# GPT2Tokenizer without naming special tokens, whose defaults are all <|endoftext|> (models/gpt2/tokenization_gpt2.py
# line 99), and these are added behind the last id. The result's own unk_token is None, as the file states none.
# Expected: as many tokens as the file has rows in its embedding; the module says itself that a token too many "would
# push the vocabulary past the size the model expects" and skips other tokens for that reason.
# Seen: 259 tokens in the file, 260 in the tokenizer; the text "<|endoftext|>" becomes the id 259, for which the model
# has no row, and a model that is resized to len(tokenizer) gets a row that no file has.
# Run: bash findings/transformers_gguf_adds_a_token.sh
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
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

tokens = [*bytes_to_unicode().values(), "<s>", "he", "lo"]
writer = GGUFWriter("tokenizer.gguf", "llama")
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("llama-bpe")
writer.add_token_list(tokens)
writer.add_token_types([1] * 256 + [3, 1, 1])  # <s> is a control token
writer.add_token_merges(["h e", "l o"])
writer.add_bos_token_id(256)
writer.add_eos_token_id(256)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.close()

tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="tokenizer.gguf")
ids = tokenizer("<|endoftext|>", add_special_tokens=False)["input_ids"]
print(f"{len(tokens)} tokens in the file, {len(tokenizer)} in the tokenizer; <|endoftext|> is {ids}")
assert (tokenizer.bos_token, tokenizer.unk_token) == ("<s>", None)
assert (len(tokens), len(tokenizer), ids) == (259, 260, [259]), "this version behaves otherwise"
PYTHON
