"""Every fitted operator belongs to the map that reads or writes: a family may have several along one axis."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bot_dist.baselines.rules.minitron_activation import _reader
from bot_dist.errors import FamilyError, PlanError
from bot_dist.fit.stages import Adaptation
from bot_dist.model import Model, Weight
from bot_dist.model.families.llama import BLOCK, FAMILY
from bot_dist.model.parts import FROM_WIDTH, INTO_WIDTH, UNITS_IN, UNITS_OUT, matrix
from bot_dist.plan import FittedName, SourceModule, adaptive, operators, sequential_refused
from bot_dist.recipe import TransferConfig, make_recipe
from bot_dist.store import read_rows
from bot_dist.tensors import Box
from bot_dist.tensors.axes import Parameter

CONFIG = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
}


def ffn(name: str, down: str = "down", **options: Any) -> tuple[Weight, ...]:
    path = f"{BLOCK}{name}."
    return (
        matrix(f"{name}.gate", f"{path}gate_proj", UNITS_OUT, FROM_WIDTH),
        matrix(f"{name}.up", f"{path}up_proj", UNITS_OUT, FROM_WIDTH),
        matrix(f"{name}.{down}", f"{path}{down}_proj", INTO_WIDTH, UNITS_IN, **{"into_residual": True, **options}),
    )


def family_with(*weights: Weight) -> Model:
    """Llama, whose blocks have these in place of their FFN."""
    others = tuple(w for w in FAMILY.weights if not w.name.startswith("mlp.") or w.name == "mlp.norm")
    return Model(dataclasses.replace(FAMILY, weights=(*others, *weights)), CONFIG)


@pytest.fixture
def experts() -> Model:
    """Two FFNs in every block, side by side."""
    return family_with(*ffn("mlp.experts.0"), *ffn("mlp.experts.1"))


class Mirrored:
    """Random weights, but those of expert 1 are expert 0's with the units in reverse."""

    url = "random:"
    whole_rows = False

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def provenance(self) -> dict[str, Any]:
        return {"url": self.url}

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        name = parameter.name.replace("experts.1", "experts.0")
        values = torch.from_numpy(np.random.default_rng([*name.encode()]).standard_normal(parameter.sizes))
        if "experts.1" in parameter.name:
            values = values.flip(parameter.axes.index("mlp"))
        return values[tuple(slice(*side) for side in box)].float()


def names(table: Any, axis: str = "mlp") -> dict[str, set[str]]:
    return {
        module: found
        for module, places in table.items()
        if (found := {spec.name for spec in places.values() if spec.name.startswith(f"{axis}.")})
    }


def test_each_reader_has_operators_of_its_own(experts: Model) -> None:
    table = adaptive(experts, experts.resized({"mlp": 6, "heads": 2, "kv_heads": 1}), "rotation", ["mlp", "heads"])
    expected = {}
    for expert in ("mlp.experts.0", "mlp.experts.1"):
        expected[f"{expert}.gate"] = expected[f"{expert}.up"] = {f"mlp.kept.{expert}.down"}
        expected[f"{expert}.down"] = {f"mlp.read.{expert}.down"}
    assert names(table) == expected
    assert names(table, "heads")["attn.v"] == {"heads.keyvalue.attn.out"}
    grown = adaptive(experts, experts.resized({"mlp": 16}), "permutation", ["mlp"])
    assert names(grown)["mlp.experts.1.up"] == {"mlp.spread.mlp.experts.1.down"}


def test_a_family_with_experts_is_fitted_expert_by_expert(experts: Model, tmp_path: Path) -> None:
    recipe = make_recipe(
        {"source": "random", "output": str(tmp_path), "target": {"mlp": 6}, "transfer": {"analysis": "adaptive"}}
    )
    source: Any = Mirrored(experts.config)
    modules = {w.name: SourceModule(nbytes=4, dtype="float32") for w in experts.weights}
    adaptation = Adaptation(
        recipe,
        source,
        experts,
        modules,
        None,
        operators_url=str(tmp_path / "operators"),
        folder=str(tmp_path / "statistics"),
        on_event=lambda event: None,
    )
    done = adaptation.run()
    adaptation.plan().validate()
    assert {*done.stored} == {f"mlp.{part}.mlp.experts.{e}.down" for part in ("kept", "read") for e in (0, 1)}
    for layer in range(2):
        kept = [read_rows(done.stored[f"mlp.kept.mlp.experts.{e}.down"], (0, 6), layer)[0][:, 0] for e in (0, 1)]
        assert kept[1].tolist() == (9 - kept[0][::-1]).tolist()
    assert {*done.stages[0].facts["mlp"]["errors"]} == {"mlp.experts.0.down", "mlp.experts.1.down"}


def test_two_readers_without_operators_of_their_own_are_named() -> None:
    both = family_with(*ffn("mlp"), ffn("mlp", "aside")[2])
    with pytest.raises(
        FamilyError, match=r"'llama': what mlp\.gate puts out along mlp is read by mlp\.down, mlp\.aside"
    ):
        adaptive(both, both.resized({"mlp": 6}), "rotation", ["mlp"])
    with pytest.raises(PlanError, match=r"'mlp' is read by mlp\.down, mlp\.aside, and one map alone"):
        _reader(both, "mlp")
    assert _reader(both, "kv_heads").name == "attn.out"


def test_one_name_for_two_operators_is_refused(experts: Model) -> None:
    table = adaptive(experts, experts.resized({"mlp": 6}), "rotation", ["mlp"])
    (place,) = table["mlp.experts.0.down"]
    mixed = {
        "mlp.experts.0.down": table["mlp.experts.0.down"],
        "mlp.experts.1.down": {place: dataclasses.replace(table["mlp.experts.0.down"][place], n_target=5)},
    }
    with pytest.raises(PlanError, match=r"mlp\.experts\.0\.down and mlp\.experts\.1\.down take one fitted operator"):
        operators(mixed)


def test_a_fit_block_by_block_wants_readers_that_write_into_the_stream(experts: Model) -> None:
    target, config = {"mlp": 6}, TransferConfig()
    assert sequential_refused(experts, experts.resized(target), config) is None
    aside = family_with(*ffn("mlp", into_residual=False))
    refused = sequential_refused(aside, aside.resized(target), config)
    assert refused == "mlp.down would read less, and not write into the residual stream"


@pytest.mark.parametrize("name", ["embed.write", "mlp.kept.mlp.experts.3.down", "heads.query.attn.out"])
def test_names_are_what_they_are_made_of(name: str) -> None:
    assert str(FittedName.parse(name)) == name
    assert FittedName.parse(name).owner == ".".join(name.split(".")[2:])
