"""Building and ending a DeepSpeed ZeRO engine. Imported by workers only: it loads DeepSpeed and transformers."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch

from bot_dist.errors import InputError
from bot_dist.formats.configuration import RUN, transformers_config
from bot_dist.model import Model
from bot_dist.recipe import TrainConfig
from bot_dist.train.optimizers import DEFAULT, OPTIMIZERS, Optimizer
from bot_dist.train.parameter_groups import parameter_groups

Device = Literal["cpu", "cuda"]

BUCKET = 2**24
"""Elements of gradients that are reduced at a time."""


def connect(device: Device) -> None:
    """Put DeepSpeed on the process group that Ray Train has opened."""
    os.environ["DS_ACCELERATOR"] = device
    # DeepSpeed calls collectives by names that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.", category=FutureWarning)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if device == "cpu":
        # DeepSpeed would compile this op with a C++ compiler, under a lock that a killed worker leaves behind for ever.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    forget_releases_with_traces()
    deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo", verbose=False)


def forget_releases_with_traces() -> None:
    """Have ZeRO-3 decide anew what it may release, when it drops the trace of modules that it decided by.

    DeepSpeed 0.19.8 keeps for good what is released after each module: ``__params_to_release`` of the
    ``PartitionedParameterCoordinator`` (``deepspeed/runtime/zero/partitioned_param_coordinator.py``) is an
    ``lru_cache`` within another decorator. After a measurement, which has no backward pass to keep weights for, every
    training step would gather all of them twice. Warns of a version that is made otherwise.
    """
    import deepspeed
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    clear = Coordinator._clear_trace_structures
    if hasattr(clear, "__wrapped__"):  # done before in this process
        return
    decide = vars(Coordinator).get("_PartitionedParameterCoordinator__params_to_release")
    cached: Any = decide and inspect.getclosurevars(decide).nonlocals.get("func")
    if not hasattr(cached, "cache_clear"):
        warnings.warn(
            f"DeepSpeed {deepspeed.__version__} does not decide what ZeRO-3 releases as 0.19.8 does: training may be "
            f"slow after a measurement; see forget_releases_with_traces in {__name__}",
            RuntimeWarning,
            stacklevel=2,
        )
        return

    @functools.wraps(clear)
    def clear_all(coordinator: Any) -> None:
        clear(coordinator)
        cached.cache_clear()

    Coordinator._clear_trace_structures = clear_all


def start(
    model: Model,
    train: TrainConfig,
    *,
    world: int,
    device: Device,
    trains: bool,
    factors: Mapping[str, float] | None = None,
    inserted: Iterable[int] = (),
) -> tuple[torch.nn.Module, Any]:
    """The ``transformers`` model of ``model`` under ZeRO and its engine; the weights are not set yet.

    Without ``trains`` there is no optimizer and no state of one, and weights are partitioned (stage 3) whatever
    ``train.stage`` is. ``factors`` and ``inserted``: see ``parameter_groups``. Raises InputError for what this machine
    can't do.
    """
    import deepspeed

    dtype = dtype_of(model, train, device)
    chosen = OPTIMIZERS[DEFAULT] if trains else None
    ds_config = _ds_config(train, dtype, world=world, optimizer=chosen)
    module = _build(model, ds_config, dtype)
    if train.checkpointing and trains:
        enable: Any = module.gradient_checkpointing_enable
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = None
    if chosen is not None:
        groups = parameter_groups(module, model, train, factors=factors or {}, inserted=inserted)
        optimizer = chosen.make(groups, train)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config)
    if train.compile and trains:
        _check_compiler(device)
        engine.compile()
    return module, engine


def stop(module: torch.nn.Module, engine: Any) -> None:
    """Free what an engine holds. The caller drops its own references too."""
    engine.destroy()
    for p in module.parameters():
        p.grad = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def dtype_of(model: Model, train: TrainConfig, device: Device) -> torch.dtype:
    """The type that a model is computed in. Raises InputError when the device has no bfloat16 and ``train.precision``
    wants it."""
    own = str(model.config.get("dtype") or model.config.get("torch_dtype")).removeprefix("torch.")
    has_bfloat16 = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if train.precision == "bfloat16" and not has_bfloat16:
        name = torch.cuda.get_device_name()
        raise InputError(f"train.precision is bfloat16, which {name} does not compute; use train.precision=float32")
    wanted = train.precision == "bfloat16" or (train.precision == "auto" and device == "cuda" and own == "bfloat16")
    return torch.bfloat16 if wanted and has_bfloat16 else torch.float32


def _check_compiler(device: Device) -> None:
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device == "cpu" and not any(map(shutil.which, compilers)):
        raise InputError(
            f"train.compile needs a C++ compiler on every node that trains on CPUs, and none of {', '.join(compilers)} "
            f"is there; install one or use train.compile=false"
        )


def _ds_config(train: TrainConfig, dtype: torch.dtype, *, world: int, optimizer: Optimizer | None) -> dict[str, Any]:
    trains = optimizer is not None
    zero: dict[str, Any] = {"stage": train.stage if trains else 3, "reduce_bucket_size": BUCKET}
    if train.offload != "none" and trains:
        zero["offload_optimizer"] = {"device": "cpu"}
    if train.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.batch * train.tensor // (world * train.accumulate),
        "gradient_accumulation_steps": train.accumulate,
        "gradient_clipping": train.clip,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": zero,
        "steps_per_print": 2**31,
    }
    if train.tensor > 1:
        config["tensor_parallel"] = {"autotp_size": train.tensor, "vocab_parallel_lm_head": False}  # logits are whole
    if dtype == torch.bfloat16 and train.accumulate > 1:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        if train.stage == 1:  # sums all parts before it sends them, and would round the sum to bfloat16
            config["communication_data_type"] = "fp32"
    return _merged(config, optimizer.deepspeed) if optimizer is not None else config


def _merged(config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with more of them; of a section that both have, the keys of both."""
    return {**config, **{k: _merged(config.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in more.items()}}


def _build(model: Model, ds_config: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    import deepspeed
    import transformers
    from transformers.initialization import no_init_weights
    from transformers.integrations.deepspeed import prevent_arange_dtype_change

    config = transformers_config(model.config, **RUN)
    architecture: Any = getattr(transformers, model.family.architecture(model.config))
    partitioned = (
        deepspeed.zero.Init(config_dict_or_path=ds_config)
        if ds_config["zero_optimization"]["stage"] == 3
        else contextlib.nullcontext()
    )
    with no_init_weights(), prevent_arange_dtype_change(), partitioned:
        module: torch.nn.Module = architecture._from_config(config, dtype=dtype)  # it chooses the attention it has
    module.tie_weights()  # type: ignore[operator]  # no_init_weights has skipped it
    return module
