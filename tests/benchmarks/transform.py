"""How fast operators are applied, next to copying the same bytes, PyWavelets and ptwt (``pip install ptwt``).

``python -m tests.benchmarks.transform [--quick]``. A case's speed is bytes in and out per second. It is divided by that
of ``Tensor.copy_`` between two tensors of the module's size and dtype, timed in turn with it, both on targets that are
already in memory (``reused``) and on fresh ones (``fresh``: allocated within the time, in huge pages for both, as
``apply_operators`` does it). Other loads on the machine take from both sides of a ratio.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pywt
import torch

from bot_dist import kernels as implementation
from bot_dist.kernels import Stage, apply_operators
from bot_dist.operators import Resample, build_operator

THREADS = 2
MODULE = (24, 1024, 4096)
MEMORY_BAR_MIB = 64


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]
    stages: list[Stage]
    bar: float | None = None
    """Of the copy's speed, in float32; half of it in bfloat16."""
    gmac: float | None = None
    """Of a dense operator."""


def stage(along: int, n_source: int, n_target: int, wavelet: str = "haar", *, orthonormal: bool = False) -> Stage:
    gain = math.sqrt(n_source / n_target) if orthonormal else 1.0
    operator = build_operator(Resample(n_source=n_source, n_target=n_target, gain=gain, wavelet=wavelet))
    return Stage(along, operator.indices, operator.taps)


def scaling(shape: tuple[int, ...], wavelet: str, *, grow: bool, orthonormal: bool = False) -> list[Stage]:
    """Every axis by 2: down the innermost first, up the innermost last."""
    order = range(len(shape)) if grow else reversed(range(len(shape)))
    return [stage(d, n := shape[d], 2 * n if grow else n // 2, wavelet, orthonormal=orthonormal) for d in order]


def cases(layers: int) -> list[Case]:
    module = (layers, *MODULE[1:])
    copies = Stage(2, np.arange(768)[:, None] * 576 // 768, np.ones((768, 1)))
    dense = np.random.default_rng(0).standard_normal((384, 576)), np.broadcast_to(np.arange(576), (384, 576))
    gmac = layers * 1024 * 576 * 384 / 1e9
    attention = (layers // 2, 4, 4, 64, 2048)
    return [
        Case("haar down", module, scaling(module, "haar", grow=False), 0.7),
        Case("haar up", module, scaling(module, "haar", grow=True), 0.5),
        Case("coif3 down", module, scaling(module, "coif3", grow=False), 0.25),
        Case("bior6.8 up", module, scaling(module, "bior6.8", grow=True), 0.25),
        Case("copy 576→768, columns", (layers, 1024, 576), [copies]),
        Case("copy 576→768, rows", (layers, 576, 1024), [Stage(1, copies.indices, copies.taps)]),
        Case("area 576→768, columns", (layers, 1024, 576), [stage(2, 576, 768)]),
        Case("area 768→576, columns", (layers, 1024, 768), [stage(2, 768, 576)]),
        Case("area 768→576, rows", (layers, 768, 1024), [stage(1, 768, 576)]),
        Case("dense 576→384, columns", (layers, 1024, 576), [Stage(2, dense[1], dense[0])], gmac=gmac),
        Case("dense 576→384, rows", (layers, 576, 1024), [Stage(1, dense[1], dense[0])], gmac=gmac),
        Case(
            "query 5-D up",
            attention,
            [stage(0, attention[0], layers), stage(1, 4, 8), stage(2, 4, 8), stage(4, 2048, 4096)],
        ),
        Case(
            "query 5-D down",
            attention,
            [stage(4, 2048, 1024), stage(2, 4, 2), stage(1, 4, 2), stage(0, attention[0], attention[0] // 2)],
        ),
        Case(
            "output 5-D down",
            (layers // 2, 2048, 4, 4, 64),
            [stage(3, 4, 2), stage(2, 4, 2), stage(1, 2048, 1024), stage(0, attention[0], attention[0] // 2)],
        ),
    ]


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def in_turn(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """The best time of each, run one after the other."""
    times = [[seconds(run) for run in runs] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_mib(run: Callable[[], torch.Tensor]) -> float:
    """Of resident memory while it runs, without what was there before and what it returns."""
    ctypes.CDLL(None).malloc_trim(0)  # else freed memory that is used again would not count
    before = status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = run()
    return (status_kib("VmHWM") - before - result.nbytes / 1024) / 1024


def measure(case: Case, dtype: torch.dtype, copied: torch.Tensor, repeats: int) -> None:
    x = torch.randn(case.shape).to(dtype)
    memory = peak_mib(lambda: apply_operators(x, case.stages, dtype).tensor)
    target = apply_operators(x, case.stages, dtype).tensor
    copy = torch.empty_like(copied).copy_(copied)

    def fresh_copy() -> torch.Tensor:
        return implementation._allocate(list(copied.shape), dtype).copy_(copied)

    copy_s, reused_s, fresh_copy_s, fresh_s = in_turn(
        repeats,
        lambda: copy.copy_(copied),
        lambda: implementation._into(target, x, case.stages),
        fresh_copy,
        lambda: apply_operators(x, case.stages, dtype),
    )
    moved, copied_bytes = (x.nbytes + target.nbytes) / 1e9, 2 * copied.nbytes / 1e9
    ratio = moved / reused_s / (copied_bytes / copy_s)
    fresh_ratio = moved / fresh_s / (copied_bytes / fresh_copy_s)
    bar = None if case.bar is None else case.bar / (1 if dtype == torch.float32 else 2)
    verdict = "" if bar is None else f"{bar:.3f} {'ok' if ratio >= bar else 'MISSED'}"
    if case.gmac is not None:
        verdict = f"{case.gmac / reused_s:.0f} GMAC/s"
    if memory > MEMORY_BAR_MIB:
        verdict += f" MEMORY OVER {MEMORY_BAR_MIB} MiB"
    print(
        f"{case.name:24}{str(dtype).removeprefix('torch.'):>9}{reused_s * 1e3:9.1f}{moved / reused_s:8.1f}"
        f"{copied_bytes / copy_s:8.1f}{ratio:8.2f}{fresh_ratio:8.2f}{memory:9.1f}  {verdict}",
        flush=True,
    )


DETAILS = ("aad", "ada", "add", "daa", "dad", "dda", "ddd")


def pywt_band(x: torch.Tensor, wavelet: str, *, grow: bool, zeros: bool = True) -> np.ndarray:
    """``zeros``: with the seven detail bands given as zeros, as the paper has it; else left out, which saves work."""
    if grow:
        bands = {"aaa": x.numpy()} | (dict.fromkeys(DETAILS, np.zeros(x.shape, np.float32)) if zeros else {})
        return np.asarray(pywt.idwtn(bands, wavelet, "periodization"))
    return np.asarray(pywt.dwtn(x.numpy(), wavelet, "periodization")["aaa"])


def pywt_alone(x: torch.Tensor, wavelet: str, *, grow: bool) -> np.ndarray:
    return pywt_band(x, wavelet, grow=grow, zeros=False)


def ptwt_band(x: torch.Tensor, wavelet: str, *, grow: bool) -> object:
    import ptwt

    with torch.no_grad():
        if grow:
            return ptwt.waverec3((x, dict.fromkeys(DETAILS, torch.zeros_like(x))), wavelet)
        return ptwt.wavedec3(x, wavelet, mode="periodic", level=1)


def versus(
    name: str, band: Callable[..., object], bar: int, wavelet: str, shape: tuple[int, ...], *, grow: bool, repeats: int
) -> None:
    """Against a library that gives the same band; and what a copy that moves as many bytes as ours would reach."""
    x = torch.randn(shape)
    stages = scaling(shape, wavelet, grow=grow, orthonormal=True)
    target = apply_operators(x, stages, torch.float32).tensor
    if name.startswith("pywt"):
        np.testing.assert_allclose(target, pywt_band(x, wavelet, grow=grow), atol=1e-4)
    half = (x.numel() + target.numel()) // 2
    copied, copy = torch.zeros(half), torch.zeros(half)
    fresh_s, reused_s, copy_s = in_turn(
        3 * repeats,
        lambda: apply_operators(x, stages, torch.float32),
        lambda: implementation._into(target, x, stages),
        lambda: copy.copy_(copied),
    )
    their_s = min(seconds(lambda: band(x, wavelet, grow=grow)) for _ in range(max(1, repeats // 2)))
    verdict = "ok" if their_s >= bar * reused_s else "MISSED"
    print(
        f"{wavelet + (' up' if grow else ' down'):16}{name:>14}{their_s * 1e3:10.0f}{reused_s * 1e3:9.1f}"
        f"{their_s / reused_s:9.0f}{their_s / fresh_s:9.0f}{their_s / copy_s:9.0f}  {bar} {verdict}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="on smaller modules, less often")
    quick = parser.parse_args().quick
    layers, repeats = (6, 3) if quick else (MODULE[0], 5)
    torch.set_num_threads(THREADS)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    print(f"{model}, {THREADS} threads of torch {torch.__version__}; module ({layers}, {MODULE[1]}, {MODULE[2]})")
    started = time.perf_counter()
    apply_operators(torch.randn(2, 4), scaling((2, 4), "haar", grow=False), torch.float32)
    print(f"first call, compiled or loaded from numba's cache: {time.perf_counter() - started:.1f} s\n")

    print(f"{'':24}{'':>9}{'':>9}{'GB/s':>8}{'copy':>8}{'of copy':>16}{'MiB':>9}")
    print(f"{'case':24}{'dtype':>9}{'ms':>9}{'reused':>8}{'reused':>8}{'reused':>8}{'fresh':>8}{'peak':>9}  bar")
    for dtype in (torch.float32, torch.bfloat16):
        copied = torch.randn((layers, *MODULE[1:])).to(dtype)
        for case in cases(layers):
            measure(case, dtype, copied, repeats)
    print()
    large = (8, 256, 1024) if quick else MODULE
    small = tuple(n // 2 for n in large)
    print(f"{large} to {small} and back, float32, against libraries that give the same band")
    print(f"{'':16}{'':>14}{'theirs ms':>10}{'ours ms':>9}{'×':>9}{'× fresh':>9}{'× copy':>9}  bar")
    for wavelet in ("haar", "coif3"):
        versus("pywt", pywt_band, 100, wavelet, large, grow=False, repeats=repeats)
    for wavelet in ("haar", "bior6.8"):
        versus("pywt", pywt_band, 100, wavelet, small, grow=True, repeats=repeats)
        versus("pywt, aaa only", pywt_alone, 100, wavelet, small, grow=True, repeats=repeats)
    versus("ptwt", ptwt_band, 25, "haar", large, grow=False, repeats=repeats)
    versus("ptwt", ptwt_band, 25, "haar", small, grow=True, repeats=repeats)
    smaller = (32, 64, 256)
    for wavelet, grow in (("coif3", False), ("bior6.8", True)):  # its convolutions take minutes on more
        versus("ptwt", ptwt_band, 25, wavelet, smaller, grow=grow, repeats=repeats)


if __name__ == "__main__":
    main()
