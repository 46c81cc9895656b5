"""Samples of what models write: a short text of the source and of the target, for the report."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from bot_dist.errors import PlanError
from bot_dist.events import Event, OnEvent
from bot_dist.fit.calibration_data import document_token
from bot_dist.model import model_of
from bot_dist.recipe import Recipe
from bot_dist.urls import absolute

if TYPE_CHECKING:
    from bot_dist.formats.source import Source

SEQUENCES, TOKENS = 2, 80


def sample_texts(recipe: Recipe, target_url: str, folder: str, on_event: OnEvent) -> dict[str, list[str]]:
    """Texts that the ``source`` and the ``target`` write at temperature 1, from the token that begins documents and
    with the same random numbers; a model that does not fit ``calibrate.memory_limit`` is left out, and both are where
    there is no tokenizer, or no causal model. What is written is kept in ``folder``."""
    from bot_dist.formats.open import open_source
    from bot_dist.formats.tokenizer import has_tokenizer, load_tokenizer

    url = absolute(recipe.source)
    source = open_source(url)
    if model_of(source.config).family.objective != "causal" or not has_tokenizer(url):
        return {}
    tokenizer, (first, _) = load_tokenizer(url), document_token(recipe, source)
    texts = {}
    for name, writer in {"source": source, "target": open_source(target_url)}.items():
        if tokens := _written(writer, first, recipe.calibrate.memory_limit, folder, on_event):
            texts[name] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts


def _written(source: Source, first: int | None, memory_limit: int, folder: str, on_event: OnEvent) -> list[list[int]]:
    """Tokens of each sequence; empty where the model does not fit."""
    from bot_dist.execute import ALONE
    from bot_dist.fit.own_text import write_text
    from bot_dist.fit.own_text_cost import plan_writing

    model = model_of(source.config)
    try:
        writing = plan_writing(
            model, sequences=SEQUENCES, window=TOKENS, places=1, memory_limit=memory_limit, stored_bytes=0
        )
    except PlanError:
        return []
    if writing.held < model.sizes["layer"]:
        return []

    def of_samples(event: Event) -> None:
        on_event(dataclasses.replace(event, stage="samples"))

    tokens = write_text(source, model, writing, first, folder, executor=ALONE, on_event=of_samples)
    sequences: list[list[int]] = tokens.tolist()
    return sequences
