"""Whether something can be fitted to what a model is calibrated on: there is enough of it, and the model understands
it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bot_dist.errors import InputError
from bot_dist.model import Model
from bot_dist.urls import label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNIFORM = {"tokens": 0.8, "classes": 0.95}
"""Share of a uniform guess's loss from which on a model is taken not to understand what it reads. Of SmolLM2-135M it is
0.26 on a play, 0.44 on Chinese characters at random, 0.52 on base64, 0.81 on the play with every token's id one too
high, and 1.02 with ids permuted; about 0.6 is that of a model which knows no more than how frequent each token is. A
classifier of few classes may know more than chance and still be near it."""
PER_COORDINATE = 8
"""Tokens for each coordinate that tells others, from which on more of them make a fit hardly better
(``configs/README.md``)."""


def check_understood(loss: float | None, model: Model, source_url: str, named: str) -> None:
    """Raise InputError where the ``loss`` of a source, in nats, is about that of a uniform guess, or above; None is
    of a model that predicts nothing. ``named`` is the key that names the data, and what it names; empty where these are
    not expected to be understood."""
    if not named or loss is None:
        return
    what = "classes" if model.family.objective == "image" else "tokens"
    n = model.sizes["class" if what == "classes" else "vocab"]
    if loss <= UNIFORM[what] * math.log(n):
        return
    whose = "the classes or the images are" if what == "classes" else "the tokenizer or the text is"
    read = "" if what == "classes" else f", as the tokenizer of {label(source_url)} cuts it"
    raise InputError(
        f"{named}: the source's loss on it is {loss:.2f}{read}, and a uniform guess over {n:,} {what} has "
        f"{math.log(n):.2f}: {whose} not this model's; give those that are, or insist with "
        f"calibrate.allow_mismatch=true"
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: Model, source_url: str) -> None:
    """Raise InputError where a tokenizer has more tokens than the model, those left out that were added to it."""
    if tokenizer.vocab_size > model.sizes["vocab"]:
        raise InputError(
            f"the tokenizer of {label(source_url)} has {tokenizer.vocab_size:,} tokens, but the model's vocabulary has "
            f"{model.sizes['vocab']:,}; the tokenizer does not belong to this model: give the one that does"
        )


def coordinates_told_by(model: Model, target: Model, axes: Sequence[str], *, sequential: bool) -> dict[str, int]:
    """The number of coordinates, by axis, from which the others of it are told by least squares, or, where the fit is
    ``sequential``, what is written is."""
    kept = {"embed": target.sizes["embed"], "mlp": target.sizes.get("mlp", 0), "heads": target.attention_width}
    written = {"embed": model.sizes["embed"]} if sequential else {}
    return {axis: n for axis, n in kept.items() if axis in axes} | written


def check_enough(tokens: int, coordinates: dict[str, int]) -> str | None:
    """A note for the user where so many tokens are few for what ``coordinates_told_by`` gave; None where they are
    enough. Raises InputError where there are fewer than coordinates, so that they are told apart by chance."""
    axis = max(coordinates, key=lambda name: coordinates[name], default="")
    n = coordinates.get(axis, 0)
    if tokens < n:
        raise InputError(
            f"calibrate.tokens: {tokens:,} tokens can't tell {n:,} coordinates of '{axis}' apart; use "
            f"calibrate.tokens={n} at least, better {PER_COORDINATE * n}"
        )
    if tokens < PER_COORDINATE * n:
        return (
            f"calibrate.tokens: {tokens:,} are {tokens / n:.1f} for each of {n:,} coordinates of '{axis}', and fewer "
            f"than {PER_COORDINATE} fit what is accidental in the text, too: calibrate.tokens={PER_COORDINATE * n} is "
            f"better"
        )
    return None
