"""The device that transforms, and the way there and back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Device:
    """The device ``cpu`` or ``cuda``. On CUDA every thread has a stream of its own, and copies go through pinned
    memory: one thread's copies run while another's kernels do. On CPU they are the tensors themselves."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pinned = torch.device(name).type == "cuda"
        self._transforming = threading.Lock()
        self._local = threading.local()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A host tensor to read into."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.pinned)

    @contextmanager
    def transforming(self, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
        """The host tensor on the device, for the time of a block that no other thread is in; what is queued in it has
        not run yet when it ends on CUDA."""
        if not self.pinned:
            with self._transforming:
                yield tensor.to(self.name)
            return
        with torch.cuda.stream(self._stream()):
            moved = tensor.to(self.name, non_blocking=True)
            with self._transforming:
                yield moved

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the device as one of the host, when it is ready."""
        if not self.pinned:
            return tensor.cpu()
        with torch.cuda.stream(self._stream()):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            self._stream().synchronize()
        return host

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self.name)
        stream: torch.cuda.Stream = self._local.stream
        return stream
