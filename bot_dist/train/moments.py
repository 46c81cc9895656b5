"""AdamW's moments in stores: by their names beside the weights, and taken up where a transfer has carried them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from bot_dist.model import Model
from bot_dist.plan import moment_name
from bot_dist.recipe import TrainConfig
from bot_dist.store import CheckpointReader
from bot_dist.train.zero import Partition, State, begin_moments, partitions, read, writing


def array_name(name: str, state: State) -> str:
    """Name of the array that holds a state of a parameter."""
    return name if state == "weights" else moment_name(state, name)


def read_state(reader: CheckpointReader, part: Partition, state: State) -> torch.Tensor:
    """A partition's elements of a state that a store holds, flat."""
    parameter = reader.parameter(array_name(part.parameter.name, state))
    return read(reader, dataclasses.replace(part, parameter=parameter))


def steps_before(source: Any, train: TrainConfig) -> int:
    """The number of steps that AdamW has taken whose moments ``source`` has; 0 where none are to be taken up."""
    if train.moments == "none" or not isinstance(source, CheckpointReader):
        return 0
    return source.optimizer_step or 0


def fill_moments(module: torch.nn.Module, engine: Any, model: Model, source: CheckpointReader, step: int) -> int:
    """Begin AdamW with the moments of a store, after ``step`` steps; each rank reads only what it owns (a collective).
    Returns the bytes of that.

    Where operators have mixed second moments, they are at least the squares of the first, elementwise: no weight moves
    further than the learning rate then.
    """
    exact, read_bytes = source.moments_exact, 0
    begin_moments(engine, step)
    with writing(module, engine):
        for part in partitions(module, engine, model):
            if part.stop > part.start:
                first, second = (read_state(source, part, state) for state in ("exp_avg", "exp_avg_sq"))
                read_bytes += first.nbytes + second.nbytes
                part.set("exp_avg", first)
                part.set("exp_avg_sq", second if exact else torch.maximum(second, first.square()))
    return read_bytes
