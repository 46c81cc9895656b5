"""Windows of a text's tokens, to calibrate a language model on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bot_dist.data.encoder import Encoder
from bot_dist.data.excerpts import Excerpt, excerpts
from bot_dist.data.texts import TextFile
from bot_dist.errors import InputError

if TYPE_CHECKING:
    import torch

OPENING = 4
"""One window of so many begins as a document does: what a model computes at its first position, where a token stands
that ends or begins documents, is like nothing else."""


class Place(NamedTuple):
    """The place that a window is taken from."""

    run: Run
    start: int
    stop: int
    """First place at which the next window may start."""


class Run:
    """Tokens that follow one another: whole documents, but for the last."""

    def __init__(self, parts: Sequence[Excerpt]) -> None:
        self.tokens = np.concatenate([part.tokens for part in parts])
        starts = np.cumsum([0, *(len(part.tokens) for part in parts)])
        self.begins = starts[:-1][[part.begins for part in parts]]
        """Places at which documents begin."""


def windows(
    texts: Sequence[TextFile],
    encoder: Encoder,
    fitted: int,
    held_out: int,
    context: int,
    *,
    masked: bool = False,
    withheld: Mapping[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """LongTensors ``(fitted, context)`` and ``(held_out, context)``: windows that lie evenly over the texts. Those held
    out are of other documents than those to fit to, where there are enough.

    Where something stands before documents, every window begins with it; else one of ``OPENING`` begins with what
    stands behind them. These begin where a document does, if one does nearby. ``masked`` windows end as the
    tokenizer ends a text. ``withheld`` tokens at the ends of texts, by URL, are in no window.

    Raises InputError when there are no windows, a text can't be read or is no text, or they have too few tokens.
    """
    import torch

    tokens = (fitted + held_out) * context
    if fitted < 1 or context < 2:
        raise InputError(
            f"{fitted * context} calibration tokens are no windows of {context}; use at least 2 tokens for a window, "
            f"and at least one window"
        )
    every = excerpts(texts, encoder, tokens, context, withheld or {})
    drawn = _drawn(every, fitted, held_out, context)
    if drawn is None:
        apart = sum((withheld or {}).values())
        besides = f" before the last {apart}, which train.held_out keeps" if apart else ""
        raise InputError(
            f"{encoder.section}.text: {sum(len(e.tokens) for e in every)} tokens in {len(texts)} file(s){besides}, "
            f"wanted at least {tokens}; give more text, or calibrate on fewer tokens"
        )
    shown, measured = (_taken(places, encoder, context, masked=masked) for places in drawn)
    return torch.from_numpy(shown), torch.from_numpy(measured)


def _drawn(
    every: Sequence[Excerpt], fitted: int, held_out: int, context: int
) -> tuple[list[Place], list[Place]] | None:
    """Places of the windows to fit to, and of those held out; None where there is not enough."""
    for other in _held_documents(every, fitted * context, held_out * context):
        shown = _places([e for e in every if e.document not in other], fitted, context)
        measured = _places([e for e in every if e.document in other], held_out, context)
        if shown is not None and measured is not None:
            return shown, measured
    if (places := _places(every, fitted + held_out, context)) is None:
        return None
    held = {i * len(places) // held_out for i in range(held_out)}
    return [p for i, p in enumerate(places) if i not in held], [p for i, p in enumerate(places) if i in held]


def _held_documents(every: Sequence[Excerpt], fitted: int, held_out: int) -> Iterator[set[tuple[int, ...]]]:
    """Documents to hold out, for so many tokens to fit to and so many held out: such as lie evenly among all, or else
    the smallest that do."""
    sizes: dict[tuple[int, ...], int] = {}
    for excerpt in every:
        sizes[excerpt.document] = sizes.get(excerpt.document, 0) + len(excerpt.tokens)
    share = held_out / (fitted + held_out)
    spread: set[tuple[int, ...]] = set()
    seen = held = 0
    for document, size in sizes.items():
        seen += size
        if held + size / 2 < share * seen:
            spread.add(document)
            held += size
    yield spread
    smallest, held = set[tuple[int, ...]](), 0
    for document in sorted(sizes, key=sizes.__getitem__):
        if sizes[document] >= held_out:
            yield {document}
            break
        if held < held_out:
            smallest.add(document)
            held += sizes[document]
    yield smallest


def _places(parts: Sequence[Excerpt], n: int, context: int) -> list[Place] | None:
    """Places that lie evenly over all excerpts, none over another; None where there are not so many."""
    runs: list[list[Excerpt]] = [[]]
    for part in parts:
        runs[-1].append(part)
        if not part.ends:
            runs.append([])
    made = [Run(run) for run in runs if run]
    room = np.cumsum([len(run.tokens) // context for run in made])
    if n > (int(room[-1]) if made else 0):
        return None
    chosen = [int(np.searchsorted(room, i * int(room[-1]) // n, side="right")) for i in range(n)]
    counts = [chosen.count(number) for number in range(len(made))]
    return [
        Place(run, i * len(run.tokens) // many, (i + 1) * len(run.tokens) // many)
        for run, many in zip(made, counts, strict=True)
        for i in range(many)
    ]


def _taken(places: Sequence[Place], encoder: Encoder, context: int, *, masked: bool) -> NDArray[np.int64]:
    """The windows at these places, ``(len(places), context)``."""
    windows = np.empty((len(places), context), np.int64)
    for i, (window, (run, start, stop)) in enumerate(zip(windows, places, strict=True)):
        first = encoder.before
        if i % OPENING == 0:
            first = first or encoder.behind
            nearest = run.begins[np.searchsorted(run.begins, start) :][:1]
            start = int(nearest[0]) if len(nearest) and nearest[0] <= stop - context else start
        if start in run.begins:
            start += len(encoder.before)
        window[: len(first)] = first[:context]
        window[len(first) :] = run.tokens[start : start + context - len(first)]
        if masked:
            window[context - len(encoder.closing) :] = encoder.closing
    return windows
