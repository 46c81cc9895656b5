"""The samples that are run through a recipe's source for what is fitted to it: a text or images that the recipe names,
or else a text that the source writes itself, or random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bot_dist.errors import InputError
from bot_dist.events import OnEvent
from bot_dist.model import Model, model_of
from bot_dist.plan import growing, shrinking
from bot_dist.recipe import OWN_TEXT, CalibrateConfig, Recipe, TextConfig, TrainConfig
from bot_dist.urls import absolute, label

if TYPE_CHECKING:
    from bot_dist.data.calibration_samples import CalibrationData
    from bot_dist.data.texts import TextFile
    from bot_dist.execute import Executor
    from bot_dist.fit.own_text_cost import Writing
    from bot_dist.formats.source import Source
Data = Literal["images", "text", "written", "random"]
"""Kinds of data: ``written`` is a text by the source itself, ``random`` stands for random tokens."""


def _named_text(recipe: Recipe) -> tuple[str, TextConfig]:
    """The section of the recipe that says which text is calibrated on, and how its documents become tokens."""
    return ("calibrate", recipe.calibrate) if recipe.calibrate.text else ("train", recipe.train)


def _calibration_text(recipe: Recipe) -> tuple[str, ...]:
    return _named_text(recipe)[1].text


def names_data(recipe: Recipe) -> bool:
    """Whether the recipe names a text or images, whatever its source takes."""
    return bool(_calibration_text(recipe)) or recipe.train.images is not None


def data_for(recipe: Recipe, model: Model) -> Data | None:
    """The kind of data that there is to fit to: what the recipe names; else a text that a causal model writes itself,
    or random tokens, which tell as much of whole blocks, and of a masked model more than its weights do; None where
    there is nothing."""
    if model.family.objective == "image":
        return "images" if recipe.train.images is not None else None
    if recipe.calibrate.text == OWN_TEXT:
        return "written"
    if _calibration_text(recipe):
        return "text"
    target = model.resized(recipe.target)
    axes = {*shrinking(model, target, recipe.transfer), *growing(model, target, recipe.transfer)}
    if not axes:
        return None
    return "written" if model.family.objective == "causal" and axes - {"layer"} else "random"


def has_data(recipe: Recipe, model: Model) -> bool:
    """Whether there is something to run through the model."""
    return data_for(recipe, model) is not None


def notes_on_text(recipe: Recipe) -> list[str]:
    """Notes for the user on how the text to calibrate on is read."""
    from bot_dist.data.texts.formats.delimited import DELIMITERS

    section, named = _named_text(recipe)
    tables = [label(name) for name in named.text if name.lower().endswith((*DELIMITERS,))]
    return [f"{section}.text: of {', '.join(tables)} the column '{named.column}' is read"] if tables else []


def check_kind_of_data(recipe: Recipe, model: Model) -> None:
    """Raise InputError where a text is named for a model of images, or images for one of text, or where a model is to
    write a text that can't."""
    name, text, objective = model.family.name, _calibration_text(recipe), model.family.objective
    if recipe.calibrate.text == OWN_TEXT and objective != "causal":
        data = "images in train.images" if objective == "image" else "a text in calibrate.text"
        raise InputError(f"calibrate.text is self, and a model of family '{name}' can't write a text; name {data}")
    if objective == "image" and text:
        key = "calibrate.text" if recipe.calibrate.text else "train.text"
        raise InputError(f"family '{name}' takes images, and {key} is '{label(text[0])}'; name images in train.images")
    if objective != "image" and recipe.train.images is not None:
        images = label(recipe.train.images)
        raise InputError(f"family '{name}' takes text, and train.images is '{images}'; name a text in train.text")


def calibration(recipe: Recipe, model: Model) -> CalibrateConfig:
    """The settings by which the recipe calibrates such a model: windows are no longer than it takes, and shorter where
    it writes them itself; nothing is held out of random tokens, on which no loss means anything."""
    config, data = recipe.calibrate, data_for(recipe, model)
    if data == "random":
        config = config.model_copy(update={"held_out": 0})
    if data in (None, "images"):
        return config
    from bot_dist.fit.own_text_cost import WINDOW

    longest = int(model.config.get(model.family.context_field) or config.context)
    context = min(config.context, longest, WINDOW) if data == "written" else min(config.context, longest)
    return config.model_copy(update={"context": context})


@dataclass(frozen=True, kw_only=True)
class Amount:
    """The amount of data that is run through a model."""

    positions: int
    """Positions of a sample's hidden states: tokens of a window, or of an image."""
    fitted: int
    """Samples that operators are fitted to."""
    held_out: int
    """Further samples, which the loss is measured on."""


def calibration_amount(recipe: Recipe, model: Model) -> Amount:
    """The whole samples that ``calibrate.tokens`` and ``calibrate.held_out`` come to."""
    config = calibration(recipe, model)
    if model.family.objective == "image":
        positions = model.sizes["position"]
        return Amount(
            positions=positions, fitted=-(-config.tokens // positions), held_out=-(-config.held_out // positions)
        )
    context = config.context
    return Amount(positions=context, fitted=-(-config.tokens // context), held_out=config.held_out // context)


def writing(recipe: Recipe, model: Model, stored_bytes: int) -> Writing | None:
    """The plan by which the model, which takes ``stored_bytes`` on storage, writes a text; None where it writes none.
    Raises PlanError where that does not fit into memory."""
    from bot_dist.fit.own_text_cost import plan_writing

    if data_for(recipe, model) != "written":
        return None
    amount = calibration_amount(recipe, model)
    return plan_writing(
        model,
        sequences=amount.fitted + amount.held_out,
        window=amount.positions,
        places=recipe.cluster.tensor * recipe.cluster.data,
        memory_limit=recipe.calibrate.memory_limit,
        stored_bytes=stored_bytes,
    )


def calibration_data(
    recipe: Recipe,
    source: Source,
    model: Model,
    writing: Writing | None,
    folder: str,
    executor: Executor,
    on_event: OnEvent,
) -> CalibrationData | None:
    """The data to calibrate on, read or made; None where there is none for such a model. A text is written as
    ``writing`` says, by the ``executor``, and kept in ``folder``. Raises InputError where there is less than
    ``calibrate.tokens`` and ``calibrate.held_out``.
    """
    from bot_dist.data.calibration_samples import CalibrationData, Samples
    from bot_dist.fit.own_text import random_tokens, write_text, written_windows

    amount = calibration_amount(recipe, model)
    match data_for(recipe, model):
        case "images":
            return _images(recipe, model)
        case "text":
            return _text(recipe, model)
        case "written":
            assert writing is not None
            first, every = document_token(recipe, source)
            text = write_text(source, model, writing, first, folder, executor=executor, on_event=on_event)
            tokens = written_windows(text, every=every)
            fitted, held_out = (Samples.of_text(part, model) for part in tokens.split([amount.fitted, amount.held_out]))
            return CalibrationData(fitted=fitted, held_out=held_out)
        case "random":
            tokens = random_tokens(model, amount.fitted, amount.positions)
            return CalibrationData(fitted=Samples.unlabelled(tokens), held_out=Samples.unlabelled(tokens[:0]))
    return None


def document_token(recipe: Recipe, source: Source) -> tuple[int | None, bool]:
    """The token that documents begin with, or else stand behind, and whether every text begins with it; None where
    nothing tells of one."""
    from bot_dist.data.encoder import Encoder
    from bot_dist.formats.tokenizer import has_tokenizer, load_tokenizer

    url = absolute(recipe.source)
    if has_tokenizer(url):
        section, named = _named_text(recipe)
        encoder = Encoder(load_tokenizer(url), section, named.bos, named.eos)
        before, behind = encoder.before, encoder.behind
    else:
        before, behind = (
            (*found,) if isinstance(found := source.config.get(f"{name}_token_id"), list) else (found,)
            for name in ("bos", "eos")
        )
    size = model_of(source.config).sizes["vocab"]
    first, *_ = (*(token for token in (*before, *behind) if token is not None and token < size), None)
    return first, first in before


def _images(recipe: Recipe, model: Model) -> CalibrationData:
    """Images out of those that may be trained on, which are in an order of their own."""
    from bot_dist.data.calibration_samples import CalibrationData, Samples
    from bot_dist.data.images import prepare_images

    images = prepare_images(recipe.train, absolute(recipe.source), model.config).train()
    amount = calibration_amount(recipe, model)
    n = amount.fitted + amount.held_out
    if len(images) < n:
        raise InputError(
            f"calibrate.tokens and calibrate.held_out are {n:,} images of {amount.positions} tokens, "
            f"and train.images has {len(images):,} that may be trained on; lower them, or give more images"
        )
    pixels, classes = images.read(range(n))
    fitted, held_out = (
        Samples.of_images(pixels[part], classes[part], model)
        for part in (slice(amount.fitted), slice(amount.fitted, None))
    )
    named = f"train.images '{label(recipe.train.images or '')}'"
    return CalibrationData(fitted=fitted, held_out=held_out, named=named)


def _text(recipe: Recipe, model: Model) -> CalibrationData:
    """Windows that lie evenly over the text, none of what training holds out of it."""
    from bot_dist.data.calibration_samples import CalibrationData, Samples
    from bot_dist.data.calibration_windows import windows
    from bot_dist.data.encoder import Encoder
    from bot_dist.data.texts import open_texts
    from bot_dist.fit.suitable import check_tokenizer
    from bot_dist.formats.tokenizer import load_tokenizer

    section, named = _named_text(recipe)
    tokenizer = load_tokenizer(absolute(recipe.source))
    check_tokenizer(tokenizer, model, recipe.source)
    amount = calibration_amount(recipe, model)
    texts = open_texts(named.text, named.column, section, named.document_limit)
    parts = windows(
        texts,
        Encoder(tokenizer, section, named.bos, named.eos),
        amount.fitted,
        amount.held_out,
        amount.positions,
        masked=model.family.objective == "masked",
        withheld=_held_from_training(recipe.train, texts, tokenizer),
    )
    shown, measured = (
        Samples.of_text(part, model, tokenizer.mask_token_id, tokenizer.all_special_ids) for part in parts
    )
    more = f" and {len(named.text) - 1} more" if len(named.text) > 1 else ""
    what = f"{section}.text '{label(named.text[0])}'{more}"
    return CalibrationData(fitted=shown, held_out=measured, named=what)


def _held_from_training(train: TrainConfig, texts: Sequence[TextFile], tokenizer: Any) -> dict[str, int]:
    """The number of tokens at the ends of those texts, by URL, that training measures its held-out loss on."""
    from bot_dist.data.encoder import Encoder
    from bot_dist.data.excerpts import tokens_at_ends
    from bot_dist.data.texts import open_texts

    if not train.text:
        return {}
    trained = open_texts(train.text, train.column, "train", train.document_limit)
    same = {(absolute(text.url), text.kind) for text in trained} & {(absolute(text.url), text.kind) for text in texts}
    if not same:
        return {}
    encoder = Encoder(tokenizer, "train", train.bos, train.eos)
    at_ends = tokens_at_ends(trained, encoder, train.held_out * train.context)
    held = {absolute(url): n for url, n in at_ends.items()}
    return {text.url: held.get(absolute(text.url), 0) for text in texts if (absolute(text.url), text.kind) in same}
