"""Fits that follow the shrunk model: what is simulated is what the shrunk model computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bot_dist
from bot_dist.data.calibration_samples import CalibrationData, Samples
from bot_dist.events import ignore
from bot_dist.execute.lazy_source import TransformedSource
from bot_dist.fit import Adaptation
from bot_dist.fit.sequential_share import SequentialShare, SequentialWork
from bot_dist.formats.open import open_source
from bot_dist.model import Model, model_of
from bot_dist.pipeline.planning import known
from bot_dist.tensors import whole
from tests.integration.test_adaptive import with_quiet_norms

Factory = Callable[..., Any]
CONTEXT = 32
SMALLER = {
    "llama": {"layers": 2, "embed": 16, "mlp": 24, "heads": 2, "kv_heads": 1},
    "qwen3": {"layers": 2, "mlp": 24},
    "gemma": {"embed": 16, "mlp": 24},
    "gpt2": {"layers": 2, "embed": 16, "heads": 2, "mlp": 40},
    "gpt_neox": {"embed": 16, "heads": 2, "mlp": 24},
    "vit": {"layers": 2, "embed": 16, "heads": 2, "mlp": 24},
    "deit": {"embed": 16, "heads": 2},
}


def unsettled(model: torch.nn.Module) -> None:
    """Norm weights and biases that matter, and matrices that are large enough."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else 0.1))


def windows(n: int = 12, vocab: int = 64) -> torch.Tensor:
    return torch.randint(3, vocab, (n, CONTEXT), generator=torch.Generator().manual_seed(2))


def samples(model: Model, n: int = 12) -> Samples:
    if model.family.objective != "image":
        return Samples.of_text(windows(n), model)
    pixels = torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    return Samples.of_images(pixels, torch.zeros(n, dtype=torch.long), model)


def outputs(module: torch.nn.Module, sample: torch.Tensor) -> Any:
    return module(**{"pixel_values" if sample.is_floating_point() else "input_ids": sample[None]})


def adaptation(folder: Path, pico: Any, target: dict[str, int], **options: Any) -> Adaptation:
    data = {"source": pico.url, "output": str(folder), "target": target}
    recipe = bot_dist.make_recipe(data, {"cluster.executor": "local", **options})
    source = open_source(pico.url)
    model = model_of(source.config)
    return Adaptation(
        recipe,
        source,
        model,
        known(source, model),
        CalibrationData(fitted=samples(model), held_out=samples(model, 0)),
        operators_url=str(folder / "operators"),
        folder=str(folder / "calibration"),
        on_event=ignore,
    )


def shrunk(done: Adaptation) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model in ``transformers``, and its weights."""
    import transformers

    plan = done.plan()
    source, target = TransformedSource(plan, done.source), plan.target
    config = transformers.AutoConfig.for_model(**target.config)
    model = getattr(transformers, target.family.architecture(target.config))(config).eval()
    state, found = dict(model.named_parameters()), {}
    with torch.no_grad():
        for _, _, p in target.parameters():
            found[p.name] = source.read(p, whole(p.sizes)).reshape(p.shape)
            state[target.inside[p.name]].copy_(found[p.name])
    return model, found


@pytest.mark.parametrize("basis", ["rotation", "permutation"])
@pytest.mark.parametrize(
    ("kind", "but_the_first"), [*((kind, False) for kind in SMALLER), ("llama", True), ("gpt2", True), ("vit", True)]
)
def test_the_simulated_stream_is_the_shrunk_models(
    tmp_path: Path, make_pico: Factory, monkeypatch: pytest.MonkeyPatch, kind: str, basis: str, but_the_first: bool
) -> None:
    if but_the_first:
        monkeypatch.setattr(Adaptation, "_kept_layers", lambda self, similarity, n: (*range(1, n), len(similarity) - 1))
    pico = make_pico(kind)
    unsettled(pico.model)
    with_quiet_norms(pico.model)
    pico.model.save_pretrained(pico.folder)
    ends: list[torch.Tensor] = []
    close = SequentialShare.close

    def closing(share: SequentialShare) -> None:
        ends.extend(share._files["shrunk"][i] for i in range(len(share._inputs)))
        close(share)

    monkeypatch.setattr(SequentialShare, "close", closing)
    if "embed" not in SMALLER[kind]:  # the last write is not taken over where nothing is fitted after it
        monkeypatch.setattr(SequentialShare, "run", running_on(SequentialShare.run))
    done = adaptation(tmp_path, pico, SMALLER[kind], **{"transfer.basis": basis})
    done.run()
    assert done.done.sequential
    model, _ = shrunk(done)
    states: list[torch.Tensor] = []
    norm = next(
        m
        for name, m in model.named_modules()
        if name.endswith(("model.norm", "ln_f", "final_layer_norm", "t.layernorm"))
    )
    norm.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    with torch.no_grad():
        for sample in samples(done.model).inputs:
            outputs(model, sample)
    for simulated, real in zip(ends, states, strict=True):
        if done.model.family.norm == "layer":  # which does not see the mean, where writers' biases put something
            simulated, real = (x - x.mean(-1, keepdim=True) for x in (simulated, real[0]))
        torch.testing.assert_close(simulated, real.reshape(simulated.shape), rtol=1e-3, atol=1e-3)


def running_on(run: Callable[..., None]) -> Callable[..., None]:
    def go(share: SequentialShare, index: int, keep: bool = True) -> None:
        if index == share._work.steps - 1:
            write = share._work.sequence[index]
            fitted = share._work.fit(write)
            run(share, index, keep)
            close = share.close

            def settled() -> None:
                assert fitted.exists()
                share._settle(write)
                close()

            share.close = settled  # type: ignore[method-assign]
        else:
            run(share, index, keep)

    return go


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "vit"])
def test_what_loses_nothing_changes_nothing(tmp_path: Path, make_pico: Factory, kind: str) -> None:
    """Units that others tell exactly are dropped: same logits, although everything was fitted anew."""
    pico = make_pico(kind)
    unsettled(pico.model)
    with torch.no_grad():
        for name, parameter in pico.model.named_parameters():
            if any(f"{part}." in name for part in ("gate_proj", "up_proj", "c_fc", "dense_h_to_4h", "fc1")):
                units = parameter.T if kind == "gpt2" and parameter.dim() == 2 else parameter
                units[1::2] = units[::2]
    pico.model.save_pretrained(pico.folder)
    n = model_of(open_source(pico.url).config).sizes["mlp"]
    done = adaptation(tmp_path, pico, {"mlp": n // 2}, **{"transfer.ridge": 1e-6, "transfer.lifting": "least-squares"})
    done.run()
    model, _ = shrunk(done)
    with torch.no_grad():
        sample = samples(done.model).inputs[0]
        wanted = outputs(pico.model, sample).logits
        torch.testing.assert_close(
            outputs(model, sample).logits, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item()
        )


def test_any_number_of_shares_and_a_share_that_begins_anew(
    tmp_path: Path, make_pico: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pico = make_pico("llama")
    unsettled(pico.model)
    pico.model.save_pretrained(pico.folder)
    _, one = fitted(tmp_path / "one", pico)
    _, three = fitted(tmp_path / "three", pico, **{"cluster.data": 3})
    opened = SequentialWork.open

    def replayed(work: SequentialWork, share: int) -> Any:
        return Forgetful(work, opened)

    monkeypatch.setattr(SequentialWork, "open", replayed)
    _, again = fitted(tmp_path / "again", pico)
    for name, tensor in one.items():
        assert torch.equal(again[name], tensor), name
        torch.testing.assert_close(three[name], tensor, rtol=1e-3, atol=1e-4)


def fitted(folder: Path, pico: Any, **options: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    done = adaptation(folder, pico, SMALLER["llama"], **options)
    done.run()
    return shrunk(done)


class Forgetful:
    """Every few steps another share takes over, which does all steps anew without summing up."""

    def __init__(self, work: SequentialWork, opened: Callable[[SequentialWork, int], SequentialShare]) -> None:
        self._work, self._opened, self._share = work, opened, opened(work, 0)

    def run(self, step: int, keep: bool = True) -> None:
        if step % 5 == 4:
            self._share.close()
            self._share = self._opened(self._work, 0)
            for done in range(step):
                self._share.run(done, keep=False)
        self._share.run(step, keep)

    def close(self) -> None:
        self._share.close()
