"""A tokenizer as GGUF's metadata: byte-level BPE, and the BPE with byte fallback that SentencePiece makes.

llama.cpp has its own code for either, and knows splitting rules by name only: what it would do otherwise than the
tokenizer does is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bot_dist.errors import InputError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SPLITS: dict[str, list[Any]] = {
    "gpt-2": ["ByteLevel"],
    "smollm": ["Digits", "ByteLevel"],
    "llama-bpe": [_CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST],
    "qwen2": [_CONTRACTIONS + _WORDS + r"|\p{N}" + _REST],
}
"""The steps of a byte-level tokenizer that split a text, as ``_split`` reads them, by llama.cpp's name for them
(``tokenizer.ggml.pre``)."""

PRE, TEMPLATE = "tokenizer.ggml.pre", "tokenizer.chat_template."
"""Keys: how texts are split; and, with its name behind it, a chat template beside the default one."""

_WAY_OUT = "export safetensors, and convert them with llama.cpp's own convert_hf_to_gguf.py"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


def add_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int, pre: str | None = None
) -> None:
    """Add tokens, types, merges or scores, ids of special tokens and the chat template.

    ``pre``: how a GGUF file that the tokenizer comes from names its splitting. Raises InputError where llama.cpp would
    split texts otherwise, or where there are more tokens than ``vocab_size``.
    """
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer ({type(tokenizer).__name__}) has no tokenizer.json; {_WAY_OUT}")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if parts["model"]["type"] != "BPE":
        raise InputError(f"the tokenizer is of kind {parts['model']['type']}, and BPE is written to GGUF; {_WAY_OUT}")
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in parts["model"]["merges"]]
    tokens, types = _tokens(tokenizer, parts["model"], vocab_size)
    if parts["model"]["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre(pre or "default")
        writer.add_token_scores(_scores(tokens, types, merges))
        writer.add_add_space_prefix(_prefixes_space(parts))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre or _split_name(parts))
        writer.add_token_merges([f"{a} {b}" for a, b in merges])
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for kind in ("bos", "eos", "unk", "sep", "pad", "mask"):
        if (token_id := getattr(tokenizer, f"{kind}_token_id")) is not None:
            getattr(writer, f"add_{kind}_token_id")(token_id)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id)
    if template := tokenizer.chat_template:
        writer.add_chat_template(
            [{"name": name, "template": text} for name, text in template.items()]
            if isinstance(template, dict)
            else template
        )


def begin(tokenizer: PreTrainedTokenizerBase, metadata: Mapping[str, Any]) -> None:
    """Let a tokenizer that ``transformers`` has made of a GGUF file begin and end texts as the file says, which it does
    not look at; where it says nothing, as llama.cpp does: with BOS, where SentencePiece has made it."""
    own: Any = tokenizer
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        return
    begins = own.bos_token is not None and bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"))
    ends = own.eos_token is not None and bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    plain, whole = (own("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    if whole != [own.bos_token_id] * begins + plain + [own.eos_token_id] * ends:
        own.add_bos_token, own.add_eos_token = begins, ends


def restore(tokenizer: PreTrainedTokenizerBase, metadata: Mapping[str, Any], n_tokens: int) -> None:
    """Let a tokenizer that ``transformers`` has made of a GGUF file be what the file says: without tokens of its own
    that the file's ``n_tokens`` have not (GPT-2's ``<|endoftext|>``), splitting texts by its name for that (of those in
    ``SPLITS`` it does not know all), and with all chat templates."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    own: Any = tokenizer
    parts = json.loads(own.backend_tokenizer.to_str())
    if any(token["id"] >= n_tokens for token in parts["added_tokens"]):
        parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] < n_tokens]
        known = {token for token, i in own.get_vocab().items() if i < n_tokens}
        for name, token in own.special_tokens_map.items():
            if str(token) not in known:
                setattr(own, name, None)
        own._tokenizer = Tokenizer.from_str(json.dumps(parts))
    if (steps := SPLITS.get(str(metadata.get(PRE)))) and metadata.get("tokenizer.ggml.model") == "gpt2":
        made: list[Any] = []
        for step in steps:
            if step == "Digits":
                made.append(pre_tokenizers.Digits(individual_digits=True))
            elif step != "ByteLevel":
                made.append(pre_tokenizers.Split(Regex(step), "isolated"))
        made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="ByteLevel" in steps))
        own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(made)
    templates = {k.removeprefix(TEMPLATE): text for k, text in metadata.items() if k.startswith(TEMPLATE)}
    named = {name: text for name, text in templates.items() if re.fullmatch(r"\w+", name, re.ASCII)}  # files, one day
    if named and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = {"default": tokenizer.chat_template, **named}


def add_no_tokenizer(writer: GGUFWriter, config: dict[str, Any]) -> None:
    """Say that there is none, and the ids that the model's configuration names."""
    writer.add_tokenizer_model("none")
    for kind in ("bos", "eos", "pad"):
        if isinstance(token_id := config.get(f"{kind}_token_id"), int):
            getattr(writer, f"add_{kind}_token_id")(token_id)


def _tokens(tokenizer: PreTrainedTokenizerBase, model: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Tokens by id, and their types; ids that the tokenizer has not are filled up."""
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    if by_id and max(by_id) >= vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {max(by_id)}, and the model a vocabulary of {vocab_size}: they don't belong "
            f"together"
        )
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for i in range(vocab_size):
        token = by_id.get(i)
        if token is None:
            kind = _UNUSED
        elif model["byte_fallback"] and i == tokenizer.unk_token_id:
            kind = _UNKNOWN
        elif i in added:
            kind = _CONTROL if added[i].special else _USER_DEFINED
        elif model["byte_fallback"] and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            kind = _BYTE
        else:
            kind = _NORMAL
        tokens.append(f"[PAD{i}]" if token is None else token)
        types.append(kind)
    return tokens, types


def _scores(tokens: list[str], types: list[int], merges: list[list[str]]) -> list[float]:
    """The scores of SentencePiece's tokens. llama.cpp merges the pair that makes the token of the highest score. That
    is the order of the merges where all that make one token follow each other, and every token of several characters is
    made. Raises InputError for other merges."""
    ranks: dict[str, int] = {}
    last = ""
    for a, b in merges:
        if a + b != last and a + b in ranks:
            raise InputError(f"the tokenizer's merges are not in an order that scores of tokens give; {_WAY_OUT}")
        last = a + b
        ranks.setdefault(last, len(ranks))
    unmade = [t for t, kind in zip(tokens, types, strict=True) if kind == _NORMAL and len(t) > 1 and t not in ranks]
    if unmade:
        raise InputError(
            f"the tokenizer has no merge that makes {unmade[0]!r}, and llama.cpp would make it; {_WAY_OUT}"
        )
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the sequence that it is."""
    if part is None:
        return []
    return [step for p in part[inner] for step in _steps(p, inner)] if part["type"] == "Sequence" else [part]


def _split_name(parts: dict[str, Any]) -> str:
    """The name that llama.cpp has for the way in which a byte-level tokenizer splits a text. It normalises nothing; NFC
    is let pass, as llama.cpp does."""
    odd = [step["type"] for step in _steps(parts["normalizer"], "normalizers") if step["type"] != "NFC"]
    splits = [_split(step) for step in _steps(parts["pre_tokenizer"], "pretokenizers")]
    for name, steps in SPLITS.items():
        if not odd and [split for split in splits if split is not None] == steps:
            return name
    raise InputError(
        f"llama.cpp has no name for how the tokenizer splits a text ({json.dumps(odd or parts['pre_tokenizer'])}); "
        f"known: {', '.join(SPLITS)}; {_WAY_OUT}"
    )


def _split(step: dict[str, Any]) -> Any:
    """A step in the words of ``SPLITS``; None where it splits nothing, the step itself where it is something else."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return "ByteLevel" if regex else None
        case {"type": "Digits", "individual_digits": True}:
            return "Digits"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return pattern
    return step


def _prefixes_space(parts: dict[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before a text. Raises InputError where it normalises otherwise.

    Before a text that begins with a space, too, as llama.cpp and SentencePiece do it; ``transformers`` may not.
    """
    before = False
    for step in _steps(parts["normalizer"], "normalizers") + _steps(parts["pre_tokenizer"], "pretokenizers"):
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                before = True
            case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": scheme}:
                before = scheme != "never"
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
                pass  # Gemma's: of a text whose spaces are replaced already
            case _:
                raise InputError(
                    f"llama.cpp does not do what the tokenizer does to a text first ({json.dumps(step)}); {_WAY_OUT}"
                )
    return before
