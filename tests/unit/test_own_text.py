"""A text that a model writes itself: what is written, by whom, and what a plan says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bot_dist
from bot_dist.errors import InputError, PlanError, RecipeError
from bot_dist.events.calibrate import OWN_TEXT, CalibrateEvent
from bot_dist.execute import ALONE
from bot_dist.fit.calibration_data import calibration_amount, calibration_data, data_for, writing
from bot_dist.fit.own_text import DRAWN, WritingWork, random_tokens, sampled, write_text
from bot_dist.fit.own_text_cost import GROUP, Writing, plan_writing
from bot_dist.formats.open import open_source
from bot_dist.model import model_of
from bot_dist.pipeline.planning import open_checked
from bot_dist.pipeline.transfer import plan_transfer
from bot_dist.recipe import Recipe, make_recipe
from bot_dist.tensors.random import uniform
from tests.conftest import Pico

Maker = Callable[..., Pico]
CAUSAL = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3", "mistral")


def work_of(pico: Pico, folder: Path, **options: Any) -> WritingWork:
    source = open_source(pico.url)
    folder.mkdir(exist_ok=True)
    usual = {"begin": 1, "sequences": 5, "length": 12, "group": 2, "held": 3, "shares": 1, "scratch": str(folder)}
    return WritingWork(source=source, model=model_of(source.config), **{**usual, **options})


def written(work: WritingWork) -> torch.Tensor:
    """By all shares, one after the other."""
    found = torch.full((work.sequences, work.length), -1)
    shares = [work.open(share) for share in range(work.shares)]
    for step in range(work.steps):
        for number, share in enumerate(shares):
            share.run(step)
            if work.ends_group(step):
                rows = work.rows(step, number)
                found[rows.start : rows.stop] = load_file(work.part(step, number))["tokens"]
    return found


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_token_is_sampled_from_what_the_model_predicts(tmp_path: Path, make_pico: Maker, kind: str) -> None:
    """The oracle reads the whole text at once, without a cache."""
    pico = make_pico(kind)
    work = work_of(pico, tmp_path / "scratch")
    text = written(work)
    assert text[:, 0].tolist() == [1] * 5
    drawn = torch.from_numpy(uniform(DRAWN, text.shape, ((0, 5), (0, 12)))).double()
    with torch.no_grad():
        logits = pico.model(text).logits
    for i in range(11):
        assert torch.equal(sampled(logits[:, i], drawn[:, i + 1, None])[:, 0], text[:, i + 1])


@pytest.mark.parametrize("options", [{"shares": 2}, {"shares": 3}, {"held": 0}, {"held": 1, "shares": 2}])
def test_the_text_does_not_depend_on_who_writes_it(tmp_path: Path, pico_llama: Maker, options: dict[str, int]) -> None:
    pico = pico_llama()
    text = written(work_of(pico, tmp_path / "alone"))
    assert len({tuple(row) for row in text.tolist()}) == len(text)
    assert torch.equal(written(work_of(pico, tmp_path / "others", **options)), text)


def test_who_takes_over_a_share_goes_on_where_the_last_one_died(
    tmp_path: Path, pico_llama: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot_dist.fit.own_text.CHUNK", 4)
    work = work_of(pico_llama(), tmp_path / "scratch")
    text = written(work)
    other = work.open(0)
    for step in range(work.steps):
        other.run(step, keep=step >= 4)  # the first group is done, and so is part of the second
        if work.ends_group(step) and step >= 4:
            rows = work.rows(step, 0)
            assert torch.equal(other._tokens, text[rows.start : rows.stop])


def test_blocks_that_are_not_held_let_go_of_their_weights(tmp_path: Path, pico_llama: Maker) -> None:
    share = work_of(pico_llama(), tmp_path / "scratch", held=1).open(0)
    share.run(0)
    loaded = [not any(p.is_meta for p in block.parameters()) for block in share._model.blocks]
    assert loaded == [True, False, False]


def test_a_choice_follows_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).expand(4000, 4)
    found = sampled(logits, torch.linspace(0, 1, 4001)[:-1, None].double())
    share = torch.bincount(found[:, 0], minlength=4) / 4000
    assert torch.allclose(share, logits[0].softmax(-1), atol=1e-3)
    assert sampled(logits[:1], torch.tensor([[1.0]], dtype=torch.float64)).item() == 3


def test_a_text_is_written_once_and_kept(tmp_path: Path, pico_llama: Maker) -> None:
    source, folder = open_source(pico_llama().url), tmp_path / "calibration"
    model, events = model_of(source.config), []
    writing = plan_writing(model, sequences=6, window=15, places=1, memory_limit=2**30, stored_bytes=1)
    for begin in (1, 1, None):
        text = write_text(source, model, writing, begin, folder, executor=ALONE, on_event=events.append)
        assert text.shape == (6, 16)
    assert [e.kind for e in events if e.kind != "writing"] == ["written", "cached", "written"]
    assert {path.suffix for path in folder.iterdir()} == {".safetensors"}  # nothing is left of what was between
    assert len({*text[:, 0].tolist()}) > 1, "without a token that begins documents, any one does"


def test_a_text_that_was_torn_is_written_again(tmp_path: Path, pico_llama: Maker) -> None:
    source = open_source(pico_llama().url)
    planned = plan_writing(model_of(source.config), sequences=2, window=3, places=1, memory_limit=2**30, stored_bytes=1)

    def write() -> torch.Tensor:
        return write_text(source, model_of(source.config), planned, 1, tmp_path / "c", executor=ALONE)

    text = write()
    (path,) = (tmp_path / "c").iterdir()
    whole = path.read_bytes()
    for torn in (whole[:-5], b""):
        path.write_bytes(torn)
        assert torch.equal(write(), text)
        assert path.read_bytes() == whole


def test_weights_that_are_not_finite_write_nothing(tmp_path: Path, pico_llama: Maker) -> None:
    pico = pico_llama()
    path = pico.folder / "model.safetensors"
    save_file({name: tensor * torch.nan for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(InputError, match="logits: activations hold NaN or infinity"):
        written(work_of(pico, tmp_path / "scratch"))


def test_random_tokens_are_the_same_however_many(pico_llama: Maker) -> None:
    model = model_of(open_source(pico_llama().url).config)
    many = random_tokens(model, 40, 32)
    assert torch.equal(random_tokens(model, 8, 32), many[:8])
    assert (many.min() >= 0, many.max() < 64, many.unique().numel() > 60) == (True, True, True)


def test_what_is_held_and_written_at_once_fits_the_memory(pico_llama: Maker) -> None:
    model = model_of(open_source(pico_llama().url).config)

    def planned(limit: int, places: int = 1) -> Writing:
        return plan_writing(model, sequences=40, window=32, places=places, memory_limit=limit, stored_bytes=10**5)

    roomy = planned(2**30)
    assert (roomy.group, roomy.held, roomy.shares) == (GROUP, 3, 1)
    assert roomy.read_bytes == 10**5, "all blocks stay in memory"
    shared = planned(2**30, places=8)
    assert (shared.shares, shared.group, shared.held) == (2, GROUP, 3)
    assert shared.seconds < roomy.seconds
    limits = range(roomy.share_bytes - 1, 48_000, -4096)
    tight = [planned(limit) for limit in limits]
    assert all(writing.share_bytes <= limit for writing, limit in zip(tight, limits, strict=True))
    assert [w.held for w in tight] == sorted((w.held for w in tight), reverse=True)
    assert (tight[0].held, tight[-1].held, tight[0].group < GROUP) == (3, 0, True), "weights are held first"
    assert tight[-1].read_bytes > 50 * roomy.read_bytes
    with pytest.raises(PlanError, match=r"writes itself takes .* use calibrate.memory_limit=1GiB, name a text in"):
        planned(1000)


def recipe_of(pico: Pico, tmp_path: Path, target: dict[str, int], **options: Any) -> Recipe:
    usual = {"cluster.executor": "local", "calibrate.tokens": 256, "calibrate.held_out": 64, "calibrate.context": 16}
    made = {"source": pico.url, "output": str(tmp_path / "run"), "target": target}
    return make_recipe(made, {**usual, **options})


WIDTHS = {"layers": 2, "embed": 12, "mlp": 20}
HEADS = {"layers": 2, "embed": 16, "heads": 2, "mlp": 20}


@pytest.mark.parametrize(
    ("kind", "target", "options", "data", "note"),
    [
        ("llama", WIDTHS, {}, "written", "a text that the model writes itself, 20 × 16 tokens at temperature 1; text"),
        ("llama", {"layers": 2}, {}, "random", "fitted to random tokens, which do where whole blocks alone go"),
        ("llama", {"layers": 2}, {"calibrate.text": "self"}, "written", "a text that the model writes itself, 20 × 16"),
        ("llama", WIDTHS, {"train.text": ["a"], "calibrate.text": ["self"]}, "written", "text of your own domain is"),
        ("llama", WIDTHS, {"train.text": ["a"]}, "text", "shrinking is fitted to the source along"),
        ("bert", HEADS, {}, "random", "fitted to random tokens, for such a model writes no text"),
        ("bert", {"layers": 2}, {}, "random", "fitted to random tokens, for such a model writes no text"),
        ("vit", HEADS, {}, None, "the weights alone, for there is no train.images"),
        ("llama", {"embed": 32}, {"transfer.width": "spread"}, "written", "growing is fitted to the source along"),
        ("llama", WIDTHS, {"transfer.wavelet": "db2"}, "written", "averaged, not fitted to the source, for wavelet"),
    ],
)
def test_a_plan_says_what_it_is_fitted_to(
    tmp_path: Path,
    make_pico: Maker,
    kind: str,
    target: dict[str, int],
    options: dict[str, Any],
    data: str | None,
    note: str,
) -> None:
    recipe = recipe_of(make_pico(kind), tmp_path, target, **options)
    _, model = open_checked(recipe)
    assert data_for(recipe, model) == data
    plan = plan_transfer(recipe)
    assert any(note in line for line in plan.notes), plan.notes
    fitted = "transfer.wavelet" not in options
    writes = any(line.startswith("writing it takes ") for line in plan.notes)
    assert writes == (data == "written" and fitted), plan.notes
    assert not (tmp_path / "run").exists()


def test_a_plan_says_what_is_read_again_for_every_token(pico_llama: Maker, tmp_path: Path) -> None:
    source = pico_llama(num_hidden_layers=12)
    plan = plan_transfer(recipe_of(source, tmp_path, {"embed": 12, "mlp": 20}, **{"calibrate.memory_limit": 100_000}))
    (line,) = (line for line in plan.notes if line.startswith("writing it takes "))
    assert re.fullmatch(
        r"writing it takes \S+ kB of memory, \S+ MFLOP and \S+ MB read: \S+ s at 20.0 GB/s of memory; "
        r"\d+ of 12 blocks are read again for every token",
        line,
    )


@pytest.mark.parametrize(
    ("kind", "target", "loss"), [("llama", WIDTHS, True), ("llama", {"layers": 2}, False), ("bert", HEADS, False)]
)
def test_shrinking_without_a_text_is_fitted(
    tmp_path: Path, make_pico: Maker, kind: str, target: dict[str, int], loss: bool
) -> None:
    """A held-out loss is only measured on what the model writes, that on random tokens means nothing; and what was
    written is found by the next command."""
    pico, events, kept = make_pico(kind), [], {"calibrate.folder": str(tmp_path / "calibration")}
    for name, length in (("one", 32), ("two", 24)):
        sizes = {**target, "mlp": length} if "mlp" in target else target
        recipe = recipe_of(pico, tmp_path, sizes, target_url=str(tmp_path / name), **kept)
        stages = bot_dist.transfer(recipe, events.append).calibrate
        assert [stage.axes for stage in stages if stage.axes] == [(*axes_of(target),)]
        assert all((stage.loss is not None) == loss for stage in stages)
        assert not bot_dist.verify(str(tmp_path / name)).damaged
    written = [e.kind for e in events if isinstance(e, CalibrateEvent) and e.purpose == OWN_TEXT]
    made = [event for event in written if event != "writing"]
    assert made == (["written", "cached"] if loss else [])


def axes_of(target: dict[str, int]) -> list[str]:
    return [axis for axis in ("layer", "embed", "heads", "mlp") if {"layer": "layers"}.get(axis, axis) in target]


def test_growing_writes_nothing_where_nothing_is_fitted(tmp_path: Path, pico_llama: Maker) -> None:
    recipe = recipe_of(pico_llama(), tmp_path, {"embed": 48, "layers": 4})
    assert data_for(recipe, open_checked(recipe)[1]) is None
    assert not any("fitted" in note for note in plan_transfer(recipe).notes)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_model_that_writes_nothing_is_not_asked_to(tmp_path: Path, make_pico: Maker, kind: str) -> None:
    recipe = recipe_of(make_pico(kind), tmp_path, HEADS, **{"calibrate.text": "self"})
    with pytest.raises(InputError, match=f"calibrate.text is self, and a model of family '{kind}' can't write a text"):
        plan_transfer(recipe)


def test_self_is_no_file(tmp_path: Path, pico_llama: Maker) -> None:
    with pytest.raises(RecipeError, match=r"stands alone; write \./self for a file"):
        recipe_of(pico_llama(), tmp_path, WIDTHS, **{"calibrate.text": ["self", "a.txt"]})
    assert recipe_of(pico_llama(), tmp_path, WIDTHS, **{"calibrate.text": ["./self"]}).calibrate.text == ("./self",)


@pytest.mark.parametrize(
    ("ids", "begins", "options", "first", "every"),
    [
        ({"bos_token_id": 5, "eos_token_id": [7, 8]}, None, {}, 5, True),
        ({"bos_token_id": None, "eos_token_id": [7, 8]}, None, {}, 7, False),
        ({"bos_token_id": 5, "eos_token_id": 7}, False, {}, 2, False),
        ({"bos_token_id": 5, "eos_token_id": 7}, True, {}, 1, True),
        ({"bos_token_id": 5, "eos_token_id": 7}, True, {"train.bos": "</s>"}, 2, True),
    ],
    ids=["BOS of the configuration", "its EOS", "EOS of a tokenizer without BOS", "BOS of one that puts it", "named"],
)
def test_windows_begin_as_those_of_other_texts_do(
    tmp_path: Path,
    pico_llama: Maker,
    ids: dict[str, Any],
    begins: bool | None,
    options: dict[str, Any],
    first: int,
    every: bool,
) -> None:
    """``begins``: whether there is a tokenizer, and it puts BOS before texts. Where something stands before documents,
    it stands before each window, else what stands behind them before some."""
    pico = pico_llama()
    path = pico.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **ids}))
    if begins is not None:
        save_tokenizer(pico.folder, begins=begins)
    recipe = recipe_of(pico, tmp_path, WIDTHS, **options)
    source, model = open_checked(recipe)
    data = calibration_data(recipe, source, model, writing(recipe, model, 1), str(tmp_path), ALONE, lambda event: None)
    assert data is not None
    assert data.named == "", "a model need not understand what it writes"
    amount = calibration_amount(recipe, model)
    assert (len(data.fitted), len(data.held_out), data.fitted.positions) == (amount.fitted, amount.held_out, 16)
    (text,) = (load_file(path)["tokens"] for path in tmp_path.glob("written-*"))
    assert text[:, 0].tolist() == [first] * (amount.fitted + amount.held_out)
    windows = torch.cat([data.fitted.inputs, data.held_out.inputs])
    for i, window in enumerate(windows):
        assert torch.equal(window, text[i, :-1] if every or i % 4 == 0 else text[i, 1:])


def save_tokenizer(folder: Path, *, begins: bool) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    if begins:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
