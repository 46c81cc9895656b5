"""The keys about texts, which the sections ``train`` and ``calibrate`` share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bot_dist.recipe.values import Bytes, Config

DOCUMENT_LIMIT = 2**26
"""Bytes that a document may have where one is held whole."""


class TextConfig(Config):
    """Texts, and how their documents become tokens."""

    text: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Paths that all nodes see, fsspec URLs or ``package://PACKAGE/FILE``, globs allowed, of JSON lines (``.jsonl``,
    ``.json``, ``.jsonl.gz``), CSV (``.csv``, ``.tsv``), Parquet (``.parquet``) or plain text, a document each (all
    others); ``hf-datasets://NAME?split=train&config=…&revision=…`` of Hugging Face's ``datasets``, NAME a data set or a
    path."""
    column: str = "text"
    """Field of JSON lines, column of CSV, Parquet and data sets, that holds a document."""
    bos: str = "auto"
    """Stands before every document, and at the beginning of every window: ``auto``, what the model's tokenizer puts
    before a text (the BOS of Llama and Gemma, BERT's CLS; nothing for GPT-2); ``none``; or a token by name."""
    eos: str = "auto"
    """Stands behind every document: ``auto``, what the model's tokenizer puts behind a text, else ``<|endoftext|>``
    where it has that (the EOS of chat models ends a turn), else its EOS; ``none``; or a token by name."""
    document_limit: Bytes = DOCUMENT_LIMIT
    """Bytes that a line, or a document in one, may have, decompressed; files of plain text may be of any size. What is
    larger is refused."""
