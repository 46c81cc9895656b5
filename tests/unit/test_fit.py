"""Statistics of streamed models, against a plain forward of the whole model in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bot_dist.data.calibration_samples import Samples
from bot_dist.errors import InputError, SourceError
from bot_dist.events import Event
from bot_dist.events.calibrate import BlockDone
from bot_dist.fit.sites import default_wanted, sites
from bot_dist.fit.statistics import Statistics, statistics
from bot_dist.fit.streamed_model import StreamedModel, blocks_of, path_in
from bot_dist.formats.open import open_source
from bot_dist.formats.torch_out import transformers_model
from bot_dist.model import Model, model_of
from tests.conftest import Pico

MASK = 5
LANGUAGE: dict[str, dict[str, Any]] = {
    kind: {"kind": kind}
    for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neox", "bert")
}
LANGUAGE |= {
    "tied llama": {"kind": "llama", "tie_word_embeddings": True},
    "untied gpt2": {"kind": "gpt2", "tie_word_embeddings": False},
    "sequential gpt_neox": {"kind": "gpt_neox", "use_parallel_residual": False},
    "bare bert": {"kind": "bert", "model_class": "BertModel"},
    "bert with all heads": {"kind": "bert", "model_class": "BertForPreTraining"},
    "untied bert": {"kind": "bert", "tie_word_embeddings": False},
}


KINDS = LANGUAGE | {
    "vit": {"kind": "vit"},
    "bare vit": {"kind": "vit", "model_class": "ViTModel"},
    "deit": {"kind": "deit"},
}


@pytest.fixture(params=KINDS)
def any_pico(request: pytest.FixtureRequest, make_pico: Callable[..., Pico]) -> Pico:
    """A model of every family and kind."""
    return make_pico(**KINDS[request.param])


def samples(model: Model, n: int = 3) -> Samples:
    if model.family.objective != "image":
        return Samples.of_text(windows(n), model, MASK)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(n, 3, 12, 12, generator=generator)
    return Samples.of_images(pixels, torch.randint(7, (n,), generator=generator), model)


def windows(n: int = 3, context: int = 12, vocab: int = 64) -> torch.Tensor:
    return torch.randint(vocab, (n, context), generator=torch.Generator().manual_seed(3))


def plain(pico: Pico, model: Model, wanted: tuple[str, ...], shown: Samples) -> dict[str, Any]:
    """All statistics by hooks in the whole model, every sample at once, in float64."""
    module = copy.deepcopy(pico.model).double().eval()
    seen: dict[tuple[str, int], torch.Tensor] = {}
    for site in sites(model, wanted):
        for layer in range(site.layers):
            at = module.get_submodule(site.path.format(layer=layer))
            at.register_forward_hook(
                lambda m, args, out, key=(site.name, layer), tap=site.tap: seen.__setitem__(
                    key, out if tap == "output" else standard(args[0], m) if tap == "normalised" else args[0]
                )
            )
    around: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in module.get_submodule(path_in(model, blocks_of(model))):
        block.register_forward_hook(lambda m, args, out: around.append((args[0], out)))
    pixels = shown.inputs.is_floating_point()
    with torch.no_grad():
        found = module(**{"pixel_values": shown.inputs.double()} if pixels else {"input_ids": shown.inputs})
    logits = found.get("logits", found.get("prediction_logits"))
    flat = {key: x.reshape(-1, x.shape[-1]) for key, x in seen.items()}
    return {
        "moment": {key: (x.T @ x / len(x)).numpy() for key, x in flat.items()},
        "mean": {key: x.mean(0).numpy() for key, x in flat.items()},
        "similarity": [F.cosine_similarity(a, b, dim=-1).mean().item() for a, b in around],
        "change": [((b - a).norm(dim=-1) / a.norm(dim=-1)).square().mean().item() for a, b in around],
        "loss": None if logits is None else F.cross_entropy(logits.flatten(0, -2), shown.labels.flatten()).item(),
    }


def standard(x: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """A norm's input, normalised without its weight: what the module itself gives for weight one and bias zero."""
    bare = copy.deepcopy(module)
    bare._forward_hooks.clear()
    for name, parameter in bare.named_parameters():
        gemma = "Gemma" in type(module).__name__
        parameter.data.fill_(1.0 if name == "weight" and not gemma else 0.0)
    return bare(x)


def agree(found: Statistics, wanted: dict[str, Any]) -> None:
    for (name, layer), moment in wanted["moment"].items():
        assert np.abs(found.moment(name, layer) - moment).max() < 2e-5 * np.abs(moment).max(), (name, layer)
        mean = wanted["mean"][name, layer]
        assert np.abs(found.mean(name, layer) - mean).max() < 2e-5 * np.sqrt(np.abs(moment).max()), (name, layer)
    np.testing.assert_allclose(found.similarity, wanted["similarity"], atol=2e-6)
    np.testing.assert_allclose(found.change, wanted["change"], rtol=2e-5)
    if wanted["loss"] is None:
        assert found.loss is None
    else:
        assert found.loss == pytest.approx(wanted["loss"], rel=2e-6)


def test_they_are_those_of_the_whole_model(any_pico: Pico, tmp_path: Path) -> None:
    source = open_source(any_pico.url)
    model = model_of(source.config)
    wanted = default_wanted(model)
    assert {"mlp.norm", "mlp.down", "attn.out"} < {*wanted}
    found = statistics(source, model, samples(model), wanted, tmp_path / "statistics")
    assert found.tokens == samples(model).n_positions
    assert {*found.names} == {*wanted}
    agree(found, plain(any_pico, model, wanted, samples(model)))
    assert [path.name for path in (tmp_path / "statistics").iterdir()] == [found.url.rpartition("/")[2]], "scratch left"


def test_context_beyond_a_sliding_window(make_pico: Callable[..., Pico], tmp_path: Path) -> None:
    """Blocks of one model have different masks."""
    pico = make_pico("gemma3")
    source = open_source(pico.url)
    model = model_of(source.config)
    long = windows(2, 40)
    assert long.shape[1] > model.config["sliding_window"]
    agree(
        statistics(source, model, Samples.of_text(long, model), ["norm"], tmp_path),
        plain(pico, model, ("norm",), Samples.of_text(long, model)),
    )


def test_any_map_that_reads(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    pico = pico_llama(tied=False)
    source = open_source(pico.url)
    model = model_of(source.config)
    wanted = ("attn.q", "head", "mlp.up")
    agree(
        statistics(source, model, Samples.of_text(windows(), model), wanted, tmp_path),
        plain(pico, model, wanted, Samples.of_text(windows(), model)),
    )


def test_a_store_is_a_source_too(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    from bot_dist.pipeline.transfer import transfer
    from bot_dist.recipe import make_recipe

    pico = pico_llama()
    transfer(make_recipe({"source": pico.url, "output": str(tmp_path / "run"), "cluster": {"executor": "local"}}))
    folder, store = open_source(pico.url), open_source(str(tmp_path / "run" / "transferred.zarr"))
    model = model_of(store.config)
    of_store = statistics(store, model, Samples.of_text(windows(), model), ["mlp.down"], tmp_path / "a")
    of_folder = statistics(folder, model, Samples.of_text(windows(), model), ["mlp.down"], tmp_path / "a")
    assert of_store.url != of_folder.url
    np.testing.assert_array_equal(of_store.moment("mlp.down", 2), of_folder.moment("mlp.down", 2))
    assert of_store.loss == of_folder.loss


def test_computed_once(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    pico = pico_llama()
    source = open_source(pico.url)
    model = model_of(source.config)
    events: list[Event] = []

    def again(tokens: torch.Tensor, *wanted: str) -> tuple[Statistics, list[str]]:
        events.clear()
        found = statistics(source, model, Samples.of_text(tokens, model), wanted, tmp_path, on_event=events.append)
        return found, [event.kind for event in events]

    first, happened = again(windows(), "norm", "mlp.down")
    assert happened == ["start", "block", "block", "block", "committed"]
    assert [(e.block, e.of) for e in events if isinstance(e, BlockDone)] == [(0, 3), (1, 3), (2, 3)]
    second, happened = again(windows(), "mlp.down", "norm")
    assert happened == ["cached"]
    assert second.digest == first.digest
    assert again(windows(), "norm")[1][0] == "start"
    assert again(windows(4), "norm", "mlp.down")[1][0] == "start"


def test_what_an_interrupted_run_left_is_no_obstacle(
    pico_llama: Callable[..., Pico], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pico = pico_llama()
    source = open_source(pico.url)
    model = model_of(source.config)

    def stop(event: Event) -> None:
        if isinstance(event, BlockDone) and event.block == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        statistics(source, model, Samples.of_text(windows(), model), ["norm", "mlp.down"], tmp_path, on_event=stop)
    found = statistics(source, model, Samples.of_text(windows(), model), ["norm", "mlp.down"], tmp_path)
    agree(found, plain(pico, model, ("norm", "mlp.down"), Samples.of_text(windows(), model)))
    assert len([*tmp_path.glob("*.scratch")]) == 0


def test_weights_are_held_while_they_are_needed_only(pico_llama: Callable[..., Pico]) -> None:
    source = open_source(pico_llama().url)
    streamed = StreamedModel(source, model_of(source.config))
    hidden = streamed.before_blocks(windows()[0])
    assert [n for n, p in streamed.module.named_parameters() if not p.is_meta] == ["model.embed_tokens.weight"]
    streamed.free()
    streamed.load_block(1)
    present = [n for n, p in streamed.module.named_parameters() if not p.is_meta]
    assert len(present) == 9
    assert all(name.startswith("model.layers.1.") for name in present)
    streamed.block(1, hidden)
    streamed.free()
    assert all(p.is_meta for p in streamed.module.parameters())


def test_threads_build_and_read_models_at_once(pico_llama: Callable[..., Pico]) -> None:
    """Members of a family that end at once do so; a model without weights is built by changing what all modules do."""
    source = open_source(pico_llama().url)
    model = model_of(source.config)
    register = torch.nn.Module.register_parameter

    def build(_: int) -> StreamedModel:
        streamed = StreamedModel(source, model)
        for layer in range(2):
            streamed.load_block(layer)
        return streamed

    streamed = StreamedModel(source, model)
    with accelerate.init_empty_weights():  # as another thread may be doing
        streamed.load_block(0)
    assert not any(p.is_meta for p in streamed.blocks[0].parameters())
    with ThreadPoolExecutor(8) as threads:
        loading = [threads.submit(transformers_model, source) for _ in range(16)]
        several = [*threads.map(build, range(32))]
    assert not any(p.is_meta for one in loading for p in one.result().parameters())
    assert torch.nn.Module.register_parameter is register
    expected = [(name, p.is_meta) for name, p in several[0].module.named_parameters()]
    assert all([(name, p.is_meta) for name, p in one.module.named_parameters()] == expected for one in several)


class Altered:
    """A source with one element of one parameter replaced."""

    def __init__(self, source: Any, name: str, value: float) -> None:
        self._source, self._name, self._value = source, name, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, parameter: Any, box: Any) -> torch.Tensor:
        tensor = self._source.read(parameter, box)
        if parameter.name == self._name:
            tensor.view(-1)[0] = self._value
        return tensor


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.mlp.down_proj.weight", "block 1: activations hold NaN or infinity"),
        ("model.layers.0.input_layernorm.weight", "block 0: activations hold NaN or infinity"),
        ("model.norm.weight", "loss: it is NaN or infinity"),
    ],
)
def test_where_it_stops_being_finite_is_said(
    pico_llama: Callable[..., Pico], tmp_path: Path, name: str, message: str
) -> None:
    source: Any = Altered(open_source(pico_llama().url), name, float("nan"))
    model = model_of(source.config)
    with pytest.raises(InputError, match=message):
        statistics(source, model, Samples.of_text(windows(), model), ["norm"], tmp_path)


def test_a_bad_table_is_seen_before_the_blocks(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    source: Any = Altered(open_source(pico_llama().url), "model.embed_tokens.weight", float("inf"))
    model = model_of(source.config)
    with pytest.raises(InputError, match="before block 0: activations hold NaN or infinity"):
        statistics(source, model, Samples.of_text(torch.zeros(1, 4, dtype=torch.long), model), ["norm"], tmp_path)


def test_names_that_have_no_statistics(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    source = open_source(pico_llama().url)
    model = model_of(source.config)
    for name in ("mlp.dwon", "embed", "attn.q.norm"):
        with pytest.raises(InputError, match=f"statistics of '{name}' are wanted"):
            statistics(source, model, Samples.of_text(windows(), model), [name], tmp_path)
    found = statistics(source, model, Samples.of_text(windows(), model), ["mlp.down"], tmp_path)
    with pytest.raises(InputError, match=r"no statistics of 'mlp.up'; known: mlp.down"):
        found.moment("mlp.up")


def test_a_text_is_refused_where_images_are_wanted(make_pico: Callable[..., Pico]) -> None:
    model = model_of(open_source(make_pico("vit").url).config)
    with pytest.raises(InputError, match="'vit' takes images, no text"):
        Samples.of_text(windows(), model)


def test_nothing_to_calibrate_on(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    source = open_source(pico_llama().url)
    model = model_of(source.config)
    with pytest.raises(InputError, match="nothing to calibrate on"):
        statistics(source, model, Samples.of_text(windows(0), model), ["norm"], tmp_path)


def test_a_configuration_has_no_statistics(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    source = open_source(f"{pico_llama().url}/config.json")
    model = model_of(source.config)
    with pytest.raises(InputError, match="configuration without weights"):
        statistics(source, model, Samples.of_text(windows(), model), ["norm"], tmp_path)


def test_a_source_of_another_model(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    source = open_source(pico_llama().url)
    model = model_of({**source.config, "num_hidden_layers": 4})
    with pytest.raises(SourceError):
        statistics(source, model, Samples.of_text(windows(), model), ["norm"], tmp_path)
