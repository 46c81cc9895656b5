"""Running a part of a model: functions that stand in for modules, and the call at which a run ends.

Both rest on what ``torch.nn.Module`` does when it is called (``_call_impl`` in ``torch/nn/modules/module.py``, torch
2.13): it looks ``forward`` up on the instance, and an exception of a hook passes through whatever called the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Module = torch.nn.Module


@contextmanager
def standing_in(forwards: Mapping[Module, Callable[..., Any]]) -> Iterator[None]:
    """Let functions stand in for the ``forward`` of modules, which are not run themselves in this context."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def first_call(module: Module, run: Callable[[], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and keywords of the first call of ``module`` that ``run`` makes; what would come after it is not
    computed. Raises RuntimeError where it makes none."""

    def reached(_: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ReachedError(args, kwargs)

    hook = module.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        run()
    except _ReachedError as call:
        return call.arguments
    finally:
        hook.remove()
    raise RuntimeError(f"{type(module).__name__} was not called: this version of transformers computes it otherwise")


class _ReachedError(Exception):
    """The module was called: there is nothing more to see."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__("the module was reached")
        self.arguments = arguments
