"""AdamW's moments through a transfer, against dense pseudo-inverses; and a training that goes on with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bot_dist
from bot_dist.data.batches import Batches
from bot_dist.events.training import MomentsTaken
from bot_dist.execute import create_executor
from bot_dist.formats.open import open_source
from bot_dist.formats.tokenizer import save_tokenizer
from bot_dist.model import model_of
from bot_dist.operators import OperatorSpec, build_operator, origins
from bot_dist.pipeline.planning import Planning
from bot_dist.plan import MOMENTS, ModulePlan, moment_name
from bot_dist.recipe import Recipe, TrainConfig
from bot_dist.store import CheckpointReader, CheckpointWriter, read_rows, store_layout
from bot_dist.tensors import whole
from bot_dist.train.objectives import objective_of
from bot_dist.train.results import RunResult, TrainRun, run_result
from tests.integration.ranks import on_ranks
from tests.integration.test_adaptive import unsettled, with_quiet_norms, with_tokenizer
from tests.integration.test_trainer import BATCH, text

Factory = Callable[..., Any]
GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 3}
WIDER = {"embed": 48, "mlp": 80, "kv_heads": 4, "heads": 8, "layers": 6}
SMALLER = {"embed": 16, "mlp": 24, "kv_heads": 1, "heads": 2, "layers": 2}
STEP = 7


def state_of(url: str, target: Path) -> str:
    """A training state with the weights of ``url``, its moments drawn."""
    source, rng = open_source(url), np.random.default_rng(0)
    model = model_of(source.config)
    parameters = [p for _, _, p in model.parameters()]
    layouts = [
        store_layout(dataclasses.replace(p, name=name), 1.0)
        for p in parameters
        for name in (p.name, moment_name("exp_avg", p.name), moment_name("exp_avg_sq", p.name))
    ]
    writer = CheckpointWriter.create(str(target), layouts, config=source.config, attempt="drawn")
    save_tokenizer(url, f"{writer.url}/tokenizer")
    digests = {}
    for p in parameters:
        first = torch.from_numpy(rng.standard_normal(p.sizes, dtype=np.float32))
        second = torch.from_numpy(rng.chisquare(1, p.sizes).astype(np.float32))
        digests[p.name] = writer.write_array(p.name, source.read(p, whole(p.sizes)).float())
        digests[name] = writer.write_array(name := moment_name("exp_avg", p.name), first)
        digests[name] = writer.write_array(name := moment_name("exp_avg_sq", p.name), second)
    writer.commit(digests, {"training": {"step": STEP - 2, "optimizer_step": STEP}})
    return str(target)


def recipe(source: str, folder: Path, target: dict[str, int], **overrides: Any) -> Recipe:
    made = {"source": source, "output": str(folder), "target_url": f"{folder}.zarr", "target": target}
    return bot_dist.make_recipe(made, {"cluster.executor": "local", **overrides})


def transfer(made: Recipe) -> CheckpointReader:
    bot_dist.transfer(made)
    return CheckpointReader(made.transferred_url)


def arrays(reader: CheckpointReader) -> dict[str, torch.Tensor]:
    return {name: reader.read(s.parameter, whole(s.parameter.sizes)) for name, s in reader.manifest.parameters.items()}


def dense(spec: OperatorSpec, layer: int) -> np.ndarray:
    if not spec.fitted:
        return build_operator(spec).dense()
    if spec.takes_nothing:
        return np.zeros((spec.n_target, spec.n_source))
    matrix = np.zeros((spec.n_target, spec.n_source))
    indices, taps = read_rows(spec, (0, spec.n_target), layer)
    np.add.at(matrix, (np.arange(spec.n_target)[:, None], indices), taps)
    return matrix


def taken(spec: OperatorSpec, layer: int, squared: bool) -> np.ndarray:
    """The matrix that moments take, ``(n_target, n_source)``."""
    matrix = np.linalg.pinv(dense(spec, layer), rcond=1e-5).T
    matrix[np.abs(matrix).max(1) < 1e-12] = 0
    if not squared:
        return matrix
    empty, matrix = ~matrix.any(axis=1), matrix**2
    matrix[empty] = np.eye(spec.n_source)[origins(spec.n_source, spec.n_target)][empty]
    return matrix


def expected(weight: ModulePlan, values: np.ndarray, *, squared: bool, inserts: bool) -> np.ndarray:
    """Of all layers of a module, ``values`` being those of its source."""
    axes = [*weight.axes] if weight.layered else [None, *weight.axes]
    for i, a in enumerate(axes):
        if a is not None and a.centred and not squared:
            values = values - values.mean(axis=i, keepdims=True)
    for i in reversed(range(len(axes))):  # the layers last
        a = axes[i]
        if a is None or a.spec is None or a.spec.is_identity:
            continue
        spec = dataclasses.replace(a.spec, speaks="first") if i == 0 and inserts and not a.spec.mutes else a.spec
        shape, n = values.shape, [b.n_target for b in axes[i : i + a.spans] if b is not None]
        joined = np.moveaxis(values.reshape(*shape[:i], spec.n_source, *shape[i + a.spans :]), i, 0)
        if i and spec.per_layer:
            joined = np.stack([np.tensordot(taken(spec, j, squared), joined[:, j], 1) for j in range(shape[0])], 1)
        else:
            joined = np.tensordot(taken(spec, 0, squared), joined, 1)
        values = np.moveaxis(joined, 0, i).reshape(*shape[:i], *n, *shape[i + a.spans :])
    return values / weight.scale ** (2 if squared else 1)


CASES: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "haar, identity": ("llama", WIDER, {"transfer.depth": "identity"}),
    "copy, db2": ("llama", {**WIDER, "embed": 32}, {"transfer.width": "copy", "transfer.wavelet": "db2"}),
    "bior2.2, tied": ("gemma", {"embed": 48, "mlp": 80, "layers": 6}, {"transfer.wavelet": "bior2.2"}),
    "lazy, centred": ("gpt2", {"embed": 48, "heads": 6, "mlp": 120}, {"transfer.width": "lazy"}),
    "post-norm": ("bert", {"embed": 48, "heads": 6, "layers": 6}, {"transfer.depth": "identity"}),
    "coif1 down": ("llama", SMALLER, {"transfer.wavelet": "coif1"}),
    "area down": ("gpt2", {"embed": 16, "heads": 2, "layers": 2}, {"transfer.gain": "orthonormal"}),
    "fitted": ("llama", SMALLER, {"calibrate.passes": "one"}),
    "fitted, centred": ("gpt_neox", {"embed": 16, "heads": 2, "mlp": 24}, {"calibrate.passes": "one"}),
    "spread": ("llama", {"embed": 36, "mlp": 50}, {"transfer.width": "spread"}),
    "lazy, rotated": ("llama", {"embed": 48}, {"transfer.width": "lazy", "transfer.basis": "rotation"}),
    "block by block": ("llama", SMALLER, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_moments_are_those_of_dense_pseudo_inverses(
    case: str, tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str
) -> None:
    kind, target, options = CASES[case]
    pico = make_pico(kind, **(GROUPED if kind == "llama" and "copy" in case else {}))
    unsettled(pico.model)
    with_quiet_norms(pico.model)
    pico.model.save_pretrained(pico.folder)
    state = state_of(with_tokenizer(pico, pico_tokenizer), tmp_path / "state")
    text = [shakespeare] if case == "block by block" else []  # else the model writes one, where something is fitted
    few = {"calibrate.text": text, "calibrate.tokens": 512, "calibrate.context": 32, "calibrate.held_out": 0}
    made = recipe(state, tmp_path / "one", target, **few, **options, **{"calibrate.allow_mismatch": True})
    store, source = transfer(made), arrays(CheckpointReader(state))
    assert store.optimizer_step == STEP
    assert store.manifest.provenance["moments"] == {"optimizer_step": STEP, "exact": False}
    found, before = arrays(store), Planning(made)._model
    plan, _ = Planning(made).fitted(create_executor(made.cluster), lambda event: None)
    inserts = options.get("transfer.depth") == "identity"
    for module in plan.modules:
        if module.derived:
            continue
        names = [p.name for p in plan.written(module)]
        layers = [before.parameter(module.origin, i).name for i in range(before.weight_layers(module.origin))]
        for moment, squared in (("exp_avg", False), ("exp_avg_sq", True)):
            values = np.stack([source[f"{MOMENTS}{moment}/{name}"].double().numpy() for name in layers])
            wanted = expected(module, values, squared=squared, inserts=inserts)
            got = np.stack([found[f"{MOMENTS}{moment}/{name}"].numpy() for name in names])
            np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=f"{moment} {module.name}")
            assert not squared or got.min() >= 0

    # Those of a growth are the least that give the source's gradients back: ⟨w', m'⟩ = ⟨w, m⟩.
    if case == "haar, identity":
        products = []
        for every in (found, source):
            pairs = [(w, every[moment_name("exp_avg", n)]) for n, w in every.items() if not n.startswith(MOMENTS)]
            products.append(math.fsum(float((w.double() * m.double()).sum()) for w, m in pairs))
        assert products[0] == pytest.approx(products[1], rel=1e-5)


def test_shards_write_the_same_moments_and_an_import_every_byte(tmp_path: Path, pico_llama: Factory) -> None:
    state = state_of(pico_llama(tied=False).url, tmp_path / "state")
    options = {"transfer.depth": "identity", "transfer.wavelet": "bior2.2"}
    target = {"embed": 48, "mlp": 80, "kv_heads": 4, "heads": 8, "layers": 6}
    one = arrays(transfer(recipe(state, tmp_path / "one", target, **options)))
    meshed = {"cluster.tensor": 2, "cluster.data": 2, "transfer.memory_limit": 90_000}
    two = arrays(transfer(recipe(state, tmp_path / "two", target, **options, **meshed)))
    assert one.keys() == two.keys()
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())

    copy = transfer(recipe(state, tmp_path / "copy", {}))
    assert copy.manifest.provenance["moments"] == {"optimizer_step": STEP, "exact": True}
    same = arrays(copy)
    assert all(torch.equal(same[name], tensor) for name, tensor in arrays(CheckpointReader(state)).items())
    assert not transfer(recipe(f"{tmp_path}/one.zarr", tmp_path / "again", {})).moments_exact
    without = transfer(recipe(state, tmp_path / "without", {}, **{"transfer.moments": "none"}))
    assert without.optimizer_step is None
    assert not any(name.startswith(MOMENTS) for name in without.manifest.parameters)


TRAIN = TrainConfig(
    steps=5, batch=BATCH, learning_rate=3e-3, evaluate_every=9, save_every=2, keep=3, schedule="stable", decay=1
)


def train_on_rank(url: str, folder: str, train: TrainConfig, first: int) -> Any:
    """The result, on the batches from the ``first`` on; and what was told of moments."""
    from bot_dist.train.worker import Place, Trainer

    class Later(Batches[Any]):
        def batch(self, step: int, rank: int, world: int) -> Any:
            return super().batch(first + step, rank, world)

    data, told = text(), []
    config = open_source(url).config
    trainer = Trainer(
        TrainRun(name="run", config=config, url=url, steps=train.steps),
        train=train,
        data=dataclasses.replace(data, batches=Later(data.batches._samples, BATCH, seed=0)),
        objective=objective_of(model_of(config), seed=train.seed, masking=None),
        tokenizer_url="",
        on_event=told.append,
        device="cpu",
        states=Place(url=folder, data="drawn"),
    )
    return dataclasses.asdict(trainer.run()), [event.step for event in told if isinstance(event, MomentsTaken)]


def train_on(world: int, url: str, folder: Path, first: int = 0, **changes: Any) -> tuple[RunResult, list[int]]:
    found, told = on_ranks(world, train_on_rank, url, str(folder), TRAIN.model_copy(update=changes), first)[0]
    return run_result(found), told


@pytest.mark.deepspeed
@pytest.mark.parametrize(("stage", "tensor"), [(2, 2), (3, 1)])
def test_a_training_goes_on_as_if_nothing_had_been_transferred(
    stage: int, tensor: int, pico_llama: Factory, tmp_path: Path
) -> None:
    how = {"stage": stage, "tensor": tensor}
    url = pico_llama(num_hidden_layers=1).url
    undisturbed, told = train_on(2, url, tmp_path / "run", **how)
    assert told == []
    copy = transfer(recipe(str(tmp_path / "run" / "step-00000002"), tmp_path / "copy", {}))
    after, told = train_on(2, copy.url, tmp_path / "after", first=2, **how)
    assert told == [2]
    assert [s.loss for s in after.losses[:3]] == [s.loss for s in undisturbed.losses[2:]]
    cold, told = train_on(2, copy.url, tmp_path / "cold", first=2, moments="none", **how)
    assert told == []
    assert cold.losses[0].loss == undisturbed.losses[2].loss
    assert cold.losses[1].loss != undisturbed.losses[3].loss

    # Its own states count all steps, and are gone on with.
    ours, theirs = (CheckpointReader(str(tmp_path / name / "step-00000002")) for name in ("after", "run"))
    assert (ours.optimizer_step, theirs.optimizer_step) == (4, 2)
    same = CheckpointReader(str(tmp_path / "run" / "step-00000004"))
    assert ours.manifest.digests == same.manifest.digests
    (tmp_path / "after" / "step-00000004" / "manifest.json").unlink()
    again, told = train_on(2, copy.url, tmp_path / "after", first=2, **how)
    assert told == []
    assert [s.loss for s in again.losses] == [s.loss for s in after.losses]
    assert again.trained_digest == after.trained_digest


def fill(url: str, stage: int) -> Any:
    """First and second moments that this rank has begun with, and bytes that it asked for and owns."""
    from bot_dist.train.moments import fill_moments
    from tests.integration.test_zero import Engine

    made = Engine(url, stage)
    asked = fill_moments(made.module, made.engine, made.model, made.source, STEP)
    whole = made.everything()
    owned = sum(8 * (p.stop - p.start) for p in made.partitions)
    steps = {float(state["step"]) for state in made.engine.optimizer.optimizer.state.values()}
    made.stop()
    return whole, asked, owned, steps


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [1, 3])
def test_every_rank_reads_its_own_and_second_moments_have_a_floor(
    stage: int, tmp_path: Path, pico_llama: Factory
) -> None:
    state = state_of(pico_llama(tied=False, num_hidden_layers=1).url, tmp_path / "state")
    grown = transfer(recipe(state, tmp_path / "one", {"mlp": 80}, **{"transfer.wavelet": "db2"}))
    stored = arrays(grown)
    for whole_state, asked, owned, steps in on_ranks(2, fill, grown.url, stage):
        assert asked == owned
        assert steps == {STEP}
        for (name, kind), values in whole_state.items():
            if kind == "weights":
                continue
            first, second = (stored[moment_name(m, name)].flatten() for m in ("exp_avg", "exp_avg_sq"))
            assert torch.equal(values, first if kind == "exp_avg" else torch.maximum(second, first.square()))
