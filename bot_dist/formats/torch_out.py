"""Any source in memory: as a state dict, or as a model of ``transformers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bot_dist.formats.configuration import BUILDING, transformers_config
from bot_dist.formats.hf_config import huggingface_config
from bot_dist.formats.source import Source, read_flat
from bot_dist.model import model_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel as PreTrainedModel  # for those who hand the model on


def state_dict(source: Source) -> dict[str, torch.Tensor]:
    """Every parameter by its name in ``transformers``' files, on the CPU, with the shape and dtype that it has there.

    A tied head is not in it. Raises SourceError where the source lacks a parameter of its family, and CheckpointError
    where a chunk is damaged.
    """
    model = model_of(source.config)
    source.check(model)
    parameters = [parameter for _, _, parameter in model.parameters()]
    return {p.name: read_flat(source, p, 0, p.size).reshape(p.shape) for p in parameters}


def transformers_model(source: Source) -> PreTrainedModel:
    """The model with its weights, in evaluation mode, in a dtype that holds all of them. Raises as ``state_dict``.

    It is the same that ``from_pretrained`` makes of an export, without files in between.
    """
    import functools

    import torch
    import transformers

    model = model_of(source.config)
    weights = state_dict(source)
    config = transformers_config(huggingface_config(model))
    architecture: Any = getattr(transformers, model.family.architecture(source.config))
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in weights.values()})
    with BUILDING:
        made: PreTrainedModel = architecture.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype
        ).eval()
    return made
