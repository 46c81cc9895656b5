"""What a recipe gives to run through its source, for what is fitted to it: a text, or images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bot_dist.errors import InputError
from bot_dist.families import Model
from bot_dist.recipe import Recipe, TrainConfig
from bot_dist.urls import absolute, label

if TYPE_CHECKING:
    from bot_dist.calibrate import CalibrationData
    from bot_dist.convert.texts import TextFile


def _calibration_text(recipe: Recipe) -> tuple[str, ...]:
    return recipe.calibrate.text or recipe.train.text


def names_data(recipe: Recipe) -> bool:
    """Whether the recipe names a text or images, whatever its source takes."""
    return bool(_calibration_text(recipe)) or recipe.train.images is not None


def has_data(recipe: Recipe, model: Model) -> bool:
    """Whether there is a text or there are images to run through the model."""
    if model.family.objective == "image":
        return recipe.train.images is not None
    return bool(_calibration_text(recipe))


def notes_on_text(recipe: Recipe) -> list[str]:
    """What the user should know of how the text to calibrate on is read."""
    from bot_dist.convert.texts.delimited import DELIMITERS

    section, named = ("calibrate", recipe.calibrate) if recipe.calibrate.text else ("train", recipe.train)
    tables = [label(name) for name in named.text if name.lower().endswith((*DELIMITERS,))]
    return [f"{section}.text: of {', '.join(tables)} the column '{named.column}' is read"] if tables else []


def check_kind_of_data(recipe: Recipe, model: Model) -> None:
    """Raise InputError where a text is named for a model of images, or images for one of text."""
    name, text = model.family.name, _calibration_text(recipe)
    if model.family.objective == "image" and text:
        key = "calibrate.text" if recipe.calibrate.text else "train.text"
        raise InputError(f"family '{name}' takes images, and {key} is '{label(text[0])}'; name images in train.images")
    if model.family.objective != "image" and recipe.train.images is not None:
        images = label(recipe.train.images)
        raise InputError(f"family '{name}' takes text, and train.images is '{images}'; name a text in train.text")


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is run through a model."""

    positions: int
    """Of a sample's hidden states: tokens of a window, or of an image."""
    fitted: int
    """Samples that operators are fitted to."""
    held_out: int
    """Further samples, which the loss is measured on."""


def calibration_amount(recipe: Recipe, model: Model) -> Amount:
    """What ``calibrate.tokens`` and ``calibrate.held_out`` come to in whole samples."""
    config = recipe.calibrate
    if model.family.objective == "image":
        positions = model.sizes["position"]
        return Amount(
            positions=positions, fitted=-(-config.tokens // positions), held_out=-(-config.held_out // positions)
        )
    context = min(config.context, int(model.config.get(model.family.context_field) or config.context))
    return Amount(positions=context, fitted=-(-config.tokens // context), held_out=config.held_out // context)


def calibration_data(recipe: Recipe, model: Model) -> CalibrationData | None:
    """Read; None where the recipe names none for such a model. Raises InputError where there is less than
    ``calibrate.tokens`` and ``calibrate.held_out``."""
    if not has_data(recipe, model):
        return None
    return _images(recipe, model) if model.family.objective == "image" else _text(recipe, model)


def _images(recipe: Recipe, model: Model) -> CalibrationData:
    """Of those that may be trained on, which are in an order of their own."""
    from bot_dist.calibrate import CalibrationData, Samples
    from bot_dist.train.images import prepare_images

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
    from bot_dist.calibrate import CalibrationData, Samples, check_tokenizer, windows
    from bot_dist.convert.text import Encoder
    from bot_dist.convert.texts import open_texts
    from bot_dist.convert.tokenizer import load_tokenizer

    config = recipe.calibrate
    section, named = ("calibrate", config) if config.text else ("train", recipe.train)
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
    """How many tokens at the ends of those texts, by URL, training measures its held-out loss on."""
    from bot_dist.convert.excerpts import tokens_at_ends
    from bot_dist.convert.text import Encoder
    from bot_dist.convert.texts import open_texts

    if not train.text:
        return {}
    trained = open_texts(train.text, train.column, "train", train.document_limit)
    same = {(absolute(text.url), text.kind) for text in trained} & {(absolute(text.url), text.kind) for text in texts}
    if not same:
        return {}
    encoder = Encoder(tokenizer, "train", train.bos, train.eos)
    found = tokens_at_ends(trained, encoder, train.held_out * train.context)
    held = {absolute(url): n for url, n in found.items()}
    return {text.url: held.get(absolute(text.url), 0) for text in texts if (absolute(text.url), text.kind) in same}
