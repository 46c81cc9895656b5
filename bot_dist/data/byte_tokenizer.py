"""The tokenizer that needs no training: one token per byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"


def save_byte_tokenizer(folder: str | Path, *, masks: bool = False) -> None:
    """Save a tokenizer of 257 tokens, a byte each and the end of a text, where ``load_tokenizer`` finds it; ``masks``:
    with one more, for what is masked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # what GPT-2 writes for each byte
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast  # has no annotations
    special = {"eos_token": END_OF_TEXT, **({"mask_token": MASK} if masks else {})}
    make(tokenizer_object=tokenizer, **special).save_pretrained(str(folder))
