"""One share of the samples, on their way through the source and, beside it, through the model that it shrinks to.

The source's stream X goes ahead block by block. The shrunk stream Z follows through the blocks that are kept, each made
of operators that are fitted where Z arrives: what a norm's readers see (``read``), which units are kept and what reads
them (``inner``), what is written (``write``). A map that writes aims at ``s · Q · X`` as X is after it, and the last of
a block as X is behind the blocks that are left out there; s = √(n_t/n_s). So a block makes up for what those before it
have lost.

Nothing of the shrunk model is built: its blocks are the source's, whose norms are made to put out what the shrunk
block's readers see of Z, in the source's width, and whose writers are interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file

from bot_dist.fit.sites import Moment, Site, normalised
from bot_dist.fit.standing_in import first_call, standing_in
from bot_dist.fit.statistics_share import SAMPLES, HiddenStates, Scratch, check_finite
from bot_dist.fit.streamed_model import StreamedModel
from bot_dist.formats.source import Source
from bot_dist.model import Model
from bot_dist.plan.fitted import norm_bias

ENTRY = "entry.safetensors"
"""File of ``s · Q``, ``(n_target, n_source)``, by which the stream is entered."""
CROSS, MOMENT, ENERGY = "cross", "moment", "energy"
"""Names of sums."""
MATRIX, KEPT, GAIN = "matrix", "kept", "gain"
"""Names of what is fitted."""

Kind = Literal["enter", "source", "read", "inner", "write"]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A map that writes into the residual stream."""

    site: Site
    norm: str
    """The norm whose output its sublayer reads."""
    splits: bool
    """Whether what it reads shrinks."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The part of a fit that all shares do before anything is fitted to it."""

    kind: Kind
    layer: int = -1
    """Layer of the source; -1 around the blocks."""
    name: str = ""
    """Names the norm or the writer."""


@dataclass(frozen=True, kw_only=True)
class SequentialWork(Scratch):
    """A sequential fit that is to be done, as a small and picklable description."""

    source: Source
    model: Model
    norms: tuple[Site, ...]
    """Norms of the residual stream, in the order in which a block comes to them."""
    writers: tuple[Writer, ...]
    layers: tuple[int, ...]
    """Layers of the source that are kept."""
    n_target: int
    """Width of the shrunk stream."""
    positions: int
    """Positions of a sample."""
    reads: bool
    """Whether the width shrinks, so that what reads it is fitted."""
    ahead: ClassVar[Literal[0, 1]] = 0
    """No step begins before what the one before asks for is fitted."""

    @cached_property
    def sequence(self) -> tuple[Step, ...]:
        steps = [Step(kind="enter")]
        for layer in self.layers:
            steps.append(Step(kind="source", layer=layer))
            for writer in self.writers:
                name, norm = writer.site.name, Step(kind="read", layer=layer, name=writer.norm)
                if self.reads and norm not in steps:
                    steps.append(norm)
                if writer.splits:
                    steps.append(Step(kind="inner", layer=layer, name=name))
                steps.append(Step(kind="write", layer=layer, name=name))
        if self.reads:
            steps += [Step(kind="read", name=site.name) for site in self.norms if not site.layered]
        return tuple(steps)

    @property
    def steps(self) -> int:
        return len(self.sequence)

    def behind(self, layer: int) -> range:
        """The blocks after one that are left out with nothing kept before them; ``-1``: those before all."""
        following = [kept for kept in self.layers if kept > layer]
        return range(layer + 1, following[0] if following else self.model.sizes["layer"])

    def fit(self, step: Step) -> Path:
        """The file with what was fitted to a step."""
        return Path(self.scratch) / f"fit-{step.layer}-{step.kind}-{step.name}.safetensors"

    def open(self, share: int) -> SequentialShare:
        return SequentialShare(self, share)


class SequentialShare:
    """Holds one block and one sample's activations at a time; streams and what is between steps are in files."""

    def __init__(self, work: SequentialWork, share: int) -> None:
        self._work, self._share = work, share
        self._inputs = load_file(Path(work.scratch) / SAMPLES)["inputs"][share :: work.shares]
        self._entry = load_file(Path(work.scratch) / ENTRY)[MATRIX]
        self._model = StreamedModel(work.source, work.model)
        self._loaded = -1
        self._put_out: dict[str, Any] = {}
        """The last result of the part of a block with a writer, by the writer's name, in whatever form the part gives
        it."""
        self._norms = {site.name: site for site in work.norms}
        self._writers = {writer.site.name: writer for writer in work.writers}
        self._files: dict[str, HiddenStates] = {}
        self._fit = lru_cache(maxsize=8)(lambda step: load_file(work.fit(step)))
        self._do: dict[Kind, Callable[[Step], dict[str, torch.Tensor]]] = {
            "enter": self._enter,
            "source": self._run_source,
            "read": self._read,
            "inner": self._inner,
            "write": self._write,
        }

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def run(self, index: int, keep: bool = True) -> None:
        """Do a step, the one after the last. Raises InputError when hidden states are not finite."""
        step, before = self._work.sequence[index], self._work.sequence[index - 1]
        if before.kind == "write" and index:
            self._settle(before)
        sums = self._do[step.kind](step)
        if keep:
            self._work.put(index, self._share, sums)

    def _enter(self, step: Step) -> dict[str, torch.Tensor]:
        x, z = self._file("source", self._work.model.sizes["embed"]), self._file("shrunk", self._work.n_target)
        for i, sample in enumerate(self._inputs):
            hidden = self._model.before_blocks(sample)
            check_finite(hidden, self._work.source, "before block 0")
            x[i], z[i] = hidden, hidden @ self._entry.T
        for layer in self._work.behind(-1):
            self._advance(layer)
        return {}

    def _advance(self, layer: int) -> None:
        """The source's stream through a block that is left out."""
        self._load(layer)
        for i in range(len(self._inputs)):
            self._files["source"][i] = self._model.block(layer, self._files["source"][i])

    def _run_source(self, step: Step) -> dict[str, torch.Tensor]:
        """The source's block: what its norms put out, and where what is written leads to, which the writers aim at."""
        work, layer, x = self._work, step.layer, self._files["source"]
        aims = {name: self._file(f"aim of {name}", work.n_target) for name in self._writers}
        begun = self._file("shrunk at the block", work.n_target)
        self._load(layer)
        for i in range(len(self._inputs)):
            begun[i] = self._files["shrunk"][i]
            before = x[i]
            with self._watched(layer) as (seen, written):
                after = self._model.block(layer, before)
            check_finite(after, work.source, f"block {layer}")
            for name, values in seen.items():
                self._file(name, values.shape[1])[i] = values
            for name, aim in aims.items():
                before = before + written[name]
                aim[i] = before @ self._entry.T
            x[i] = after
        for left_out in work.behind(layer):
            self._advance(left_out)
        last = [*aims.values()][-1]
        for i in range(len(self._inputs)):
            last[i] = x[i] @ self._entry.T
        return {}

    def _read(self, step: Step) -> dict[str, torch.Tensor]:
        """Sums for the regression of what the source's norm puts out on what the shrunk model's does."""
        sums = _Regression(self._work.model.sizes["embed"], self._work.n_target)
        site = self._norms[step.name]
        for i in range(len(self._inputs)):
            if site.layered:
                wanted = self._files[step.name][i]
            else:
                wanted = self._normalised(step.name, 0, self._files["source"][i])
            sums.add(wanted, self._normalised(step.name, step.layer, self._before(step)[i]))
        return sums.totals()

    def _inner(self, step: Step) -> dict[str, torch.Tensor]:
        """Sums of all that a writer would read in the shrunk model, if all of it were kept."""
        site = self._writers[step.name].site
        moment, file = Moment(site.size), self._file(f"into {step.name}", site.size)
        for i in range(len(self._inputs)):
            values = self._input(step, i)
            check_finite(values, self._work.source, f"block {step.layer}, shrunk")
            moment.add(values)
            file[i] = values
        return {MOMENT: moment.products()}

    def _write(self, step: Step) -> dict[str, torch.Tensor]:
        """Sums for the regression of what would lead to a writer's aim on what it puts out in the shrunk model, in the
        source's width."""
        writer, work = self._writers[step.name], self._work
        width = work.model.sizes["embed"]
        sums, written = _Regression(work.n_target, width), self._file("written", width)
        self._load(step.layer)
        module = self._module(writer.site, step.layer)
        if writer.splits:
            fitted = self._fit(Step(kind="inner", layer=step.layer, name=step.name))
            with torch.no_grad():
                bias = module(torch.zeros(1, writer.site.size))
                matrix = module(fitted[MATRIX]) - bias  # from what is kept to what is put out
        for i in range(len(self._inputs)):
            if writer.splits:
                out = self._files[f"into {step.name}"][i][:, fitted[KEPT]] @ matrix + bias
            else:
                with torch.no_grad():
                    out = module(self._input(step, i))
            written[i] = out
            sums.add(self._files[f"aim of {step.name}"][i] - self._files["shrunk"][i], out)
        return sums.totals()

    def _settle(self, step: Step) -> None:
        """Let what was written go into the shrunk stream, as it was fitted."""
        correction = self._fit(step)[MATRIX]
        for i in range(len(self._inputs)):
            self._files["shrunk"][i] = self._files["shrunk"][i] + self._files["written"][i] @ correction.T

    def _before(self, step: Step) -> HiddenStates:
        """The shrunk stream that a norm reads."""
        parallel = self._work.model.family.parallel(self._work.model.config) and step.layer >= 0
        return self._files["shrunk at the block" if parallel else "shrunk"]

    def _input(self, step: Step, i: int) -> torch.Tensor:
        """The values that a writer reads of a sample when its sublayer reads the shrunk stream, ``(positions, size)``.
        Of the block only its part is run: the others give back what they last did, which does not matter and takes
        time."""
        writer = self._writers[step.name]
        norm, layer = writer.norm, step.layer
        self._load(layer)
        module = self._module(self._norms[norm], layer)
        z = self._before(step)[i]
        if self._work.reads:
            fitted = self._fit(Step(kind="read", layer=layer, name=norm))
            biased = getattr(module, "bias", None) is not None
            bias = norm_bias(self._work.n_target) if biased else 0.0
            seen = (fitted[GAIN] * self._normalised(norm, layer, z) + bias) @ fitted[MATRIX]
        else:
            with torch.no_grad():
                seen = module(z)

        own = self._part(writer.site, layer)
        parts = {self._part(other.site, layer): self._put_out[name] for name, other in self._writers.items()}
        given = {module: seen[None]} | {part: out for part, out in parts.items() if part is not own}
        with standing_in({part: lambda *_, out=out, **__: out for part, out in given.items()}):
            nothing = torch.zeros(len(z), self._work.model.sizes["embed"])
            (read, *_), _ = first_call(self._module(writer.site, layer), lambda: self._model.block(layer, nothing))
        values: torch.Tensor = read
        return values.reshape(len(z), -1)

    @contextmanager
    def _watched(self, layer: int) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        """Record what norms put out, normalised but without weight and bias, and what writers put out, while a block
        runs."""
        seen: dict[str, torch.Tensor] = {}
        written: dict[str, torch.Tensor] = {}
        hooks: list[Any] = []
        for site in self._norms.values():
            if site.layered and self._work.reads:

                def norm_hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...], name: str = site.name) -> None:
                    seen[name] = self._normalised(name, layer, args[0][0])

                hooks.append(self._module(site, layer).register_forward_pre_hook(norm_hook))
        for writer in self._writers.values():

            def writer_hook(_: torch.nn.Module, args: Any, out: torch.Tensor, name: str = writer.site.name) -> None:
                written[name] = out.reshape(-1, out.shape[-1])

            def part_hook(_: torch.nn.Module, args: Any, out: Any, name: str = writer.site.name) -> None:
                self._put_out[name] = out

            hooks.append(self._module(writer.site, layer).register_forward_hook(writer_hook))
            hooks.append(self._part(writer.site, layer).register_forward_hook(part_hook))
        try:
            yield seen, written
        finally:
            for hook in hooks:
                hook.remove()

    def _normalised(self, norm: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        site = self._norms[norm]
        return normalised(x, self._module(site, layer), site.norm)

    def _module(self, site: Site, layer: int) -> torch.nn.Module:
        return self._model.module.get_submodule(site.path.format(layer=layer))

    def _part(self, site: Site, layer: int) -> torch.nn.Module:
        """The child of a block that a module of it is in, or is."""
        blocks = site.path.partition("{layer}")[0]
        child = site.path[len(blocks) + len("{layer}.") :].partition(".")[0]
        part: torch.nn.Module = self._model.blocks[layer].get_submodule(child)
        return part

    def _load(self, layer: int) -> None:
        if self._loaded != layer:
            self._model.free()
            self._model.load_block(layer)
            self._loaded = layer

    def _file(self, name: str, width: int) -> HiddenStates:
        """The file of what is kept under a name between steps: ``(positions, width)`` per sample."""
        if name not in self._files:
            path = Path(self._work.scratch) / f"{name.replace(' ', '-')}-{self._share}-{os.getpid()}"
            self._files[name] = HiddenStates(path, self._work.positions, width)
        return self._files[name]


class _Regression:
    """Sums over tokens for a linear map from x to y, in float64."""

    def __init__(self, y: int, x: int) -> None:
        self._cross, self._moment = torch.zeros(y, x, dtype=torch.float64), Moment(x)
        self._energy = torch.zeros(1, dtype=torch.float64)

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        self._cross += y.T @ x
        self._moment.add(x)
        self._energy += y.double().square().sum()

    def totals(self) -> dict[str, torch.Tensor]:
        return {CROSS: self._cross, MOMENT: self._moment.products(), ENERGY: self._energy}
