"""The section ``calibrate`` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bot_dist.recipe.texts import TextConfig
from bot_dist.recipe.values import Bytes

OWN_TEXT = ("self",)
"""``calibrate.text`` that asks for a text that the model writes itself."""


def _own_text(value: object) -> object:
    if value == OWN_TEXT[0]:
        return OWN_TEXT
    if isinstance(value, list | tuple) and len(value) > 1 and OWN_TEXT[0] in value:
        raise ValueError("'self' is a text that the model writes itself, and stands alone; write ./self for a file")
    return value


class CalibrateConfig(TextConfig):
    """The data that adaptive shrinking takes its statistics from: a text, or, for a model of images, those of
    ``train.images`` that are not held out."""

    text: Annotated[tuple[str, ...], BeforeValidator(_own_text)] = ()
    """Files to fit to, named as in ``train.text``; where none is, ``train.text`` itself, with the keys of ``train``
    about texts. ``self``, and the default without any: a text that a causal model writes itself, at temperature 1, from
    the token that begins its documents; by default, random tokens take its place where whole blocks alone go, and for
    masked models, which write none. Text of one's own domain is far better."""
    tokens: int = Field(default=8192, ge=1)
    """How many tokens are run through the source; an image counts as its patches and the tokens before them. Up to some
    ten times the residual width, more of them make a better start; training soon evens out what fewer cost."""
    context: int = Field(default=512, ge=2)
    """Tokens per window."""
    passes: Literal["auto", "sequential", "one", "each"] = "auto"
    """``sequential``: block by block, all axes at once, to what the model that is shrunk so far computes beside the
    source, correcting what blocks write; takes two passes over the text, and ``one`` where it can't be done (norms
    after sublayers, axes that change by other means, no data). ``one``: everything to the source in one pass.
    ``auto``: these two are tried, and the fit with the least loss on what is held out is kept; the first untried, where
    nothing is. ``each``: FFN, heads, width and blocks in this order, each to the model that the ones before have
    shrunk; takes a pass for each, and loses more than the others."""
    held_out: int = Field(default=4096, ge=0)
    """Further tokens, on which the loss is measured after every stage and fits are ranked; 0: neither is done."""
    allow_mismatch: bool = False
    """Go on where the source predicts the text (or the images' classes) hardly better than a uniform guess does, or
    worse: then its tokenizer is another model's, or it was never trained."""
    memory_limit: Bytes = 2**33
    """Bytes of tensors that one process may hold meanwhile: a block of the source, the moments of what it reads, and
    what is fitted to them. What takes more is refused."""
    folder: str | None = None
    """Folder that keeps statistics for the next time (a path that all nodes see); None: ``calibration`` in the output,
    or beside ``target_url``."""
