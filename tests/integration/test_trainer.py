"""Every objective, stage and option of training against the same training in plain PyTorch, on ranks without Ray."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bot_dist.data.batches import Batches
from bot_dist.events import ignore
from bot_dist.model import model_of
from bot_dist.recipe import TrainConfig
from bot_dist.train.objectives import HELD_OUT, Data, Stacked, objective_of
from bot_dist.train.optimizers.adamw import BETAS
from bot_dist.train.results import RunResult, TrainRun, run_result
from tests.conftest import Pico
from tests.integration.ranks import on_ranks

pytestmark = pytest.mark.deepspeed

STEPS, BATCH = 3, 12
TRAIN = TrainConfig(steps=STEPS, batch=BATCH, learning_rate=3e-3, evaluate_every=2)
MASKING = {"mask": 3, "special": [0, 1, 2]}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Memory:
    """Samples that are in memory."""

    samples: Stacked

    def __len__(self) -> int:
        return STEPS * BATCH

    def read(self, numbers: Sequence[int]) -> Stacked:
        if isinstance(self.samples, torch.Tensor):
            return self.samples[list(numbers)]
        pixels, classes = self.samples
        return pixels[list(numbers)], classes[list(numbers)]


def text() -> Data:
    drawn = torch.randint(3, 64, (5 + STEPS * BATCH, 16), generator=torch.Generator().manual_seed(0))
    drawn[5::2, :9] = 0  # special: BERT's masks are not all of one size
    return Data(batches=Batches(Memory(drawn[5:]), BATCH, seed=0), held_out=drawn[:5], tokens_per_sample=16)


def images() -> Data:
    """Of seven classes, each a pattern under noise."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(7, (35 + STEPS * BATCH,), generator=generator)
    pixels = torch.randn(7, 3, 12, 12, generator=generator)[classes]
    pixels += 0.3 * torch.randn(pixels.shape, generator=generator)
    batches = Batches(Memory((pixels[35:], classes[35:])), BATCH, seed=0)
    return Data(batches=batches, held_out=(pixels[:35], classes[:35]), tokens_per_sample=10)


def train_on_rank(pico_url: str, config: dict[str, Any], data: Data, trains: list[TrainConfig]) -> Any:
    from bot_dist.train.worker import Trainer

    return [
        dataclasses.asdict(
            Trainer(
                TrainRun(name="run", config=config, url=pico_url, steps=train.steps),
                train=train,
                data=data,
                objective=objective_of(model_of(config), seed=train.seed, masking=MASKING),
                tokenizer_url="",
                on_event=ignore,
                device="cpu",
            ).run()
        )
        for train in trains
    ]


def train_on(world: int, pico: Pico, data: Data, trains: Sequence[TrainConfig]) -> list[RunResult]:
    config = json.loads((pico.folder / "config.json").read_text())
    first, *others = on_ranks(world, train_on_rank, pico.url, config, data, list(trains))
    for other in others:
        assert [run["held_out"] for run in other] == [run["held_out"] for run in first]
    return [run_result(run) for run in first]


def train_alone(pico: Pico, data: Data, train: TrainConfig) -> tuple[list[float], list[float]]:
    """Losses of the steps and held-out losses before and after, as ``transformers`` computes them."""
    model = pico.model
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = model_of(json.loads((pico.folder / "config.json").read_text()))
    objective = objective_of(made, seed=train.seed, masking=MASKING)
    tables = {made.inside[p.name] for weight, _, p in made.parameters() if weight.kind == "table"}
    decays = {name for name, p in model.named_parameters() if p.ndim > 1} | tables
    groups = [
        {"params": [p for n, p in model.named_parameters() if (n in decays) == kind], "weight_decay": decay}
        for kind, decay in ((True, train.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, betas=BETAS)

    def loss_of(samples: Stacked, step: int) -> torch.Tensor:
        examples = objective.examples(samples, step=step, first=0)
        labels = samples if made.family.objective == "causal" else examples.labels  # transformers shifts them
        loss: torch.Tensor = model(**examples.inputs, labels=labels).loss
        return loss

    held_out, losses = [loss_of(data.held_out, HELD_OUT).item()], []
    model.train()
    for step in range(STEPS):
        loss = loss_of(data.batches.batch(step, 0, 1), step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * (1, 0.55, 0.1)[step]  # half a cosine, down to a tenth
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    held_out.append(loss_of(data.held_out, HELD_OUT).item())
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(kept[name])
    return losses, held_out


def assert_same(result: RunResult, expected: tuple[list[float], list[float]], tolerance: float = 1e-4) -> None:
    losses, held_out = expected
    assert [step.loss for step in result.losses] == pytest.approx(losses, abs=tolerance)
    assert [result.held_out[0].loss, result.held_out[-1].loss] == pytest.approx(held_out, abs=tolerance)


def test_every_stage_and_option_trains_as_one_process_does(pico_llama: Any) -> None:
    pico, data = pico_llama(num_hidden_layers=1), text()
    options: dict[str, dict[str, Any]] = {
        "stage 1": {"stage": 1, "accumulate": 3},
        "stage 2": {"stage": 2, "accumulate": 2, "checkpointing": True},
        "stage 3": {"stage": 3, "accumulate": 6},
        "offloaded": {"stage": 3, "offload": "all", "checkpointing": True},
        "offloaded optimizer": {"stage": 1, "offload": "optimizer"},
        "bfloat16, stage 1": {"stage": 1, "precision": "bfloat16"},
        "bfloat16, stage 2": {"stage": 2, "precision": "bfloat16", "accumulate": 2},
        "bfloat16, stage 3": {"stage": 3, "precision": "bfloat16", "accumulate": 2},
        "bfloat16, stage 1, accumulated": {"stage": 1, "precision": "bfloat16", "accumulate": 2},
    }
    expected = train_alone(pico, data, TRAIN)
    trains = [TRAIN.model_copy(update=option) for option in options.values()]
    results = dict(zip(options, train_on(2, pico, data, trains), strict=True))
    for name, result in results.items():
        assert_same(result, expected, 0.02 if "bfloat16" in name else 1e-4)
    assert len({result.digest for result in results.values()}) == 1
    assert results["bfloat16, stage 1"].trained_digest != results["stage 1"].trained_digest


def gathers_on_rank(*args: Any) -> list[int]:
    """How often weights were gathered in each backward pass that gathered any."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    counts: list[int] = []
    gather, reset = Coordinator._PartitionedParameterCoordinator__all_gather_params, Coordinator.reset_step

    def counting(coordinator: Any, params: Any, forward: bool) -> None:
        counts[-1] += not forward
        gather(coordinator, params, forward)

    def beginning(coordinator: Any) -> None:
        counts.append(0)
        reset(coordinator)

    Coordinator._PartitionedParameterCoordinator__all_gather_params, Coordinator.reset_step = counting, beginning
    train_on_rank(*args)
    return [count for count in counts if count]


def test_a_measurement_does_not_make_later_steps_gather_all_weights_twice(pico_llama: Any) -> None:
    """The first step drops the trace of the measurement, the second makes one of its own, the third goes by it."""
    pico, data = pico_llama(num_hidden_layers=1, intermediate_size=5000), text()  # smaller matrices are never released
    config = json.loads((pico.folder / "config.json").read_text())
    assert [len(counts) for counts in on_ranks(2, gathers_on_rank, pico.url, config, data, [TRAIN])] == [2, 2]


def graphs_on_rank(*args: Any) -> tuple[Any, int]:
    from torch._dynamo.utils import counters

    return train_on_rank(*args), counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_a_compiled_model_trains_alike(pico_llama: Any) -> None:
    pico, data = pico_llama(num_hidden_layers=1), text()
    config = json.loads((pico.folder / "config.json").read_text())
    trains = [TRAIN.model_copy(update={"compile": True, "stage": 2})]
    for runs, graphs in on_ranks(2, graphs_on_rank, pico.url, config, data, trains):
        assert_same(run_result(runs[0]), train_alone(pico, data, TRAIN))
        assert 0 < graphs < 5


def test_gemma2_trains_with_its_soft_caps(make_pico: Any) -> None:
    pico, data = make_pico("gemma2", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]), text()
    assert_same(train_on(1, pico, data, [TRAIN])[0], train_alone(pico, data, TRAIN))


def test_bert_is_trained_on_what_is_masked_however_it_is_shared(pico_bert: Any) -> None:
    pico, data = pico_bert(num_hidden_layers=1, **NO_DROPOUT), text()
    expected = train_alone(pico, data, TRAIN)
    shared = [TRAIN.model_copy(update={"stage": stage, "accumulate": 3}) for stage in (1, 3)]
    for result in [*train_on(2, pico, data, shared), *train_on(1, pico, data, [TRAIN])]:
        assert_same(result, expected, 2e-5)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_images_are_classified(make_pico: Any, kind: str) -> None:
    pico = make_pico(kind, {"deit": "DeiTForImageClassification"}.get(kind), num_hidden_layers=1, **NO_DROPOUT)
    data = images()
    expected = train_alone(pico, data, TRAIN)
    result = train_on(2, pico, data, [TRAIN])[0]
    assert_same(result, expected)
    assert result.tokens_per_step == BATCH * 10
    assert result.held_out[-1].accuracy is not None
    assert 0 < result.held_out[-1].accuracy <= 1


TENSOR = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "gpt_neox": {"num_attention_heads": 4, "attention_dropout": 0.0, "hidden_dropout": 0.0},
    "gemma2": {"layer_types": ["full_attention"]},
    "bert": {"num_attention_heads": 4, **NO_DROPOUT},
}


SELDOM = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt_neox", "gemma2")]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "bert", *SELDOM])
def test_tensor_parallel_ranks_train_as_one_process_does(make_pico: Any, kind: str) -> None:
    pico, data = make_pico(kind, num_hidden_layers=1, **TENSOR[kind]), text()
    trains = [TRAIN.model_copy(update={"tensor": 2, "stage": stage, "accumulate": 2}) for stage in (1, 2, 3)]
    trains.append(TRAIN.model_copy(update={"tensor": 2, "steps": 0}))
    expected = train_alone(pico, data, TRAIN)
    *results, measured = train_on(4, pico, data, trains)
    for result in results:
        assert_same(result, expected)
    assert measured.held_out[0].loss == pytest.approx(expected[1][0], abs=1e-5)
    (whole,) = train_on(1, pico, data, [TRAIN])
    assert {result.digest for result in (*results, measured)} == {whole.digest}
