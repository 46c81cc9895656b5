"""The recipe of a comparison: one source, one target, several ways to get there, all trained alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from bot_dist.baselines import baseline
from bot_dist.errors import RecipeError, nearest
from bot_dist.recipe import (
    CalibrateConfig,
    ClusterConfig,
    Config,
    Folder,
    InsertedConfig,
    Sizes,
    TrainConfig,
    TransferConfig,
    labelled,
    read_yaml,
    validated,
)

Rate = Annotated[float, Field(gt=0)]

SCRATCH = "scratch"
"""The model that every method is measured against; always there."""
UNTIED_SCRATCH = f"{SCRATCH}, head untied"
"""The model that methods are measured against which untie the head, where other methods don't."""
SOURCE = "source"
"""The source as it is, whose loss is measured beside them."""


class PretrainConfig(Config):
    """A source that is made first: a model of a known family, trained from scratch."""

    model_type: str
    """Model type of ``transformers``, such as ``gpt2`` or ``llama``."""
    sizes: Sizes
    """Sizes of the model: ``layers``, ``embed``, ``mlp``, ``heads``, … (those that the family has)."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """Other fields of its ``transformers`` configuration, such as ``resid_pdrop: 0.0``."""
    tokenizer: str = "bytes"
    """``bytes``: one token per byte; else a checkpoint or folder with a tokenizer."""
    train: TrainConfig
    """Its text, steps, learning rate and seed; with ``save_every``, of which the steps are a multiple, methods may
    carry AdamW's moments along (``transfer.moments: auto``)."""


class MethodTrainConfig(Config):
    """Keys of ``train`` that a method may have of its own; where they are None, the comparison's hold."""

    use_factors: bool | None = None
    """Whether learning rates follow the change of size, as in ``train``. The model that a baseline makes has no
    factors."""
    inserted: InsertedConfig | None = None
    """Training of blocks that ``depth: identity`` has put in, as in ``train``."""
    warmup: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up, as in ``train``."""


class MethodConfig(Config):
    """One way to make the target: a transfer of ours, or a baseline."""

    target: Sizes | None = None
    """Sizes of the method's own; ``{}`` is the source as it is, trained on. None: the comparison's."""
    transfer: TransferConfig = TransferConfig()
    """Keys of ``transfer``, as in the recipe of a run."""
    calibrate: CalibrateConfig = CalibrateConfig()
    """Keys that are to be others than the comparison's."""
    baseline: str | None = None
    """A published rule in the place of ours, by its name: one, or one about widths joined to one about layers
    (``hypercloning+stack``)."""
    seeds: int | None = Field(default=None, ge=1)
    """How many of the comparison's seeds, the first of them, it is trained with; None: all."""
    train: MethodTrainConfig = MethodTrainConfig()
    """Keys of ``train`` that are to be others than the comparison's."""

    @model_validator(mode="after")
    def _one_of_two(self) -> MethodConfig:
        if self.baseline is None:
            return self
        try:
            baseline(self.baseline)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        if self.transfer.model_fields_set or self.calibrate.model_fields_set:
            raise ValueError(f"baseline {self.baseline!r} builds its own operators; leave transfer and calibrate out")
        return self


class ComparisonRecipe(Config):
    """One comparison: a source, taken or pretrained; a target; methods. The target is trained from scratch too."""

    source: str | None = None
    """Checkpoint to start from, as in the recipe of a run; or ``pretrain``."""
    pretrain: PretrainConfig | None = None
    """The source that is made first; or ``source``."""
    output: Folder
    """Folder of the comparison (a path that all nodes see). What is there and was made alike is taken again."""
    target: Sizes
    """New sizes, as in the recipe of a run."""
    methods: dict[str, MethodConfig] = Field(min_length=1)
    """Ways to make the target, each under a name for tables and pictures."""
    only: tuple[str, ...] = ()
    """Names of methods that are trained and shown for now; empty: all. What they share with a run of all is kept."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    """Seeds of data order, scratch initialisation and noise; every method is trained once with each."""
    learning_rates: tuple[Rate, ...] = ()
    """The grid that every method is tuned on alike, scratch too: with the first seed each is trained at every one, with
    the others at the one where its held-out loss ended lowest. Empty: ``train.learning_rate`` for all."""
    train: TrainConfig
    """Training of the target, the same for all methods: text or images, budget of steps, learning rate."""
    calibrate: CalibrateConfig = CalibrateConfig()
    """The text of methods that take statistics; ``train.text`` where it names none."""
    target_loss: float | None = Field(default=None, gt=0)
    """Held-out loss at which FLOPs are compared; None: what the model from scratch ends at. Where that never reaches
    it, all of its FLOPs count."""
    cluster: ClusterConfig = ClusterConfig()

    def methods_with(self, seed: int) -> dict[str, MethodConfig]:
        """Those that are trained with a seed."""
        place = self.seeds.index(seed)
        chosen = {name: self.methods[name] for name in self.only or self.methods}
        return {name: m for name, m in chosen.items() if m.seeds is None or place < m.seeds}

    @property
    def of_target(self) -> list[str]:
        """Methods that make the comparison's target."""
        return [name for name in self.only or self.methods if self.methods[name].target is None]

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that methods are tuned on."""
        return self.learning_rates or (self.train.learning_rate,)

    @model_validator(mode="after")
    def _consistent(self) -> ComparisonRecipe:
        if (self.source is None) == (self.pretrain is None):
            raise ValueError("give a source: a checkpoint (source), or a model to train first (pretrain); not both")
        if taken := {SCRATCH, UNTIED_SCRATCH, SOURCE} & {*self.methods}:
            raise ValueError(f"methods: {min(taken)!r} is always there; leave it out, or give the method another name")
        if unknown := [name for name in self.only if name not in self.methods]:
            raise ValueError(f"only: there is no method {unknown[0]!r}; {nearest(unknown[0], self.methods)}")
        if not self.of_target:
            raise ValueError("methods: all have targets of their own; give at least one the comparison's")
        if self.learning_rates and "learning_rate" in self.train.model_fields_set:
            raise ValueError("give learning_rates, or train.learning_rate for all methods; not both")
        for key, values in (("learning_rates", self.learning_rates), ("seeds", self.seeds)):
            if len({*values}) < len(values):
                raise ValueError(f"{key}: one is named twice; leave it out")
        if self.train.steps == 0:
            raise ValueError("train.steps is 0; give the budget that all methods are trained for")
        if self.pretrain is not None and self.pretrain.train.steps == 0:
            raise ValueError("pretrain.train.steps is 0; say how long the source is trained")
        for name, method in self.methods.items():
            carries = "moments" in method.transfer.model_fields_set and method.transfer.moments == "auto"
            if carries and self.pretrain is not None and not _saved_at_the_end(self.pretrain.train):
                raise ValueError(
                    f"methods: {name!r} carries AdamW's moments along, and the source is saved without them: give "
                    f"pretrain.train.save_every, and steps that it divides"
                )
        for where, train in (("train", self.train), ("pretrain.train", self.pretrain and self.pretrain.train)):
            own = {"scratch", "source_loss"} | ({"seed"} if where == "train" else set())
            if train and (found := sorted(own & train.model_fields_set)):
                raise ValueError(f"{where}.{found[0]} is not for comparisons; " + SAID_BY[found[0]])
        return self

    def public(self) -> dict[str, Any]:
        """The keys that were set as plain data, which makes the same recipe again; URLs without secrets."""
        dumped = self.model_dump(mode="json", exclude={"cluster": {"address"}}, exclude_unset=True)
        data: dict[str, Any] = labelled(dumped)
        return data


def _saved_at_the_end(train: TrainConfig) -> bool:
    """Whether a training state is saved after the last step."""
    return bool(train.save_every) and train.steps % train.save_every == 0


SAID_BY = {
    "scratch": "the target from scratch is always trained",
    "source_loss": "the source's loss is always measured",
    "seed": "give seeds",
}
"""Keys of a run's training that a comparison has no use for, and why."""


def load_comparison(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> ComparisonRecipe:
    """Read a YAML recipe and apply overrides, as ``load_recipe`` does. Raises RecipeError."""
    data = read_yaml(path)
    if "methods" not in data:
        raise RecipeError(f"{path} is no recipe of a comparison: it has no methods; write: bot_dist run {path}")
    return validated(ComparisonRecipe, data, overrides, str(path))
