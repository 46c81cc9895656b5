"""The plain torch version is the oracle of the compiled pass, to the bit."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.kernels import Stage, apply_operators, apply_reference, tiling
from bot_dist.operators import Resample, build_operator
from tests.conftest import examples

NATIVE = [torch.float32, torch.bfloat16]
DTYPES = [*NATIVE, torch.float16, torch.float64]
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def assert_same_bits(left: torch.Tensor, right: torch.Tensor) -> None:
    """Signs of zeros included; any NaN is as good as another."""
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    assert torch.equal(left.isnan(), right.isnan())
    bits = BITS[left.element_size()]
    assert torch.equal(left.nan_to_num(0.0).view(bits), right.nan_to_num(0.0).view(bits))


def assert_as_reference(x: torch.Tensor, stages: list[Stage], dtype: torch.dtype) -> torch.Tensor:
    result, wanted = apply_operators(x, stages, dtype), apply_reference(x, stages, dtype)
    assert_same_bits(result.tensor, wanted.tensor)
    assert result.overflowed == wanted.overflowed
    return result.tensor


def banded(n: int, n_target: int, wavelet: str, boundary: str = "periodic") -> tuple[np.ndarray, np.ndarray]:
    spec = Resample(n_source=n, n_target=n_target, gain=1.0, wavelet=wavelet, boundary=boundary)  # type: ignore[arg-type]
    operator = build_operator(spec)
    return operator.indices, operator.taps


@st.composite
def operators(draw: st.DrawFn, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows over an extent of ``n``: of filter banks, and of every other structure that an operator can have."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(["down", "up", "finer", "copy", "area", "scattered", "permuted", "dense", "wide"]))
    wavelet = draw(st.sampled_from(["haar", "db2", "coif3", "bior6.8"]))
    boundary = draw(st.sampled_from(["periodic", "symmetric"]))
    if kind == "down" and n % 2 == 0:
        return banded(n, n // 2, wavelet, boundary)
    if kind in ("up", "down"):
        return banded(n, 2 * n, wavelet, boundary)
    if kind == "finer":
        return banded(n, 4 * n, wavelet, boundary)
    if kind == "copy":
        n_target = draw(st.integers(1, 2 * n))
        return np.arange(n_target)[:, None] * n // n_target, rng.standard_normal((n_target, 1))
    if kind == "area":
        first = np.arange(4 * n)[:, None] * 3 // 4 % n
        return np.concatenate([first, np.minimum(first + 1, n - 1)], axis=1), np.tile(
            rng.standard_normal((4, 2)), (n, 1)
        )
    if kind == "permuted":
        return rng.permutation(n)[:, None], np.ones((n, 1))
    n_target = draw(st.integers(1, 20))
    if kind == "dense":
        return np.broadcast_to(np.arange(n), (n_target, n)), rng.standard_normal((n_target, n))
    indices = rng.integers(0, n, (n_target, 130 if kind == "wide" else draw(st.integers(1, 6))))
    taps = rng.standard_normal(indices.shape)
    taps[rng.random(indices.shape) < 0.2] = 0.0
    return indices, taps


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, list[Stage]]:
    rank = draw(st.integers(1, 6))
    extents = st.sampled_from([1, 2, 3, 5, 8, 16, 33, 64, 130])
    shape: list[int] = []
    for _ in range(rank):
        n = draw(extents)
        shape.append(n if n * math.prod(shape) <= 20_000 else 1)
    dims = draw(st.permutations(range(rank)))[: draw(st.integers(1, min(rank, 4)))]
    stages: list[Stage] = []
    size = math.prod(shape)
    for d in dims:
        indices, taps = draw(operators(shape[d]))
        size = size // shape[d] * len(indices)
        if size <= 500_000:
            stages.append(Stage(d, indices, taps))
        else:
            size = size // len(indices) * shape[d]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    if draw(st.booleans()):
        special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3.4e38, -3.4e38])
        flat = x.view(-1)
        places = torch.randint(len(flat), (8,), generator=torch.Generator().manual_seed(len(flat)))
        flat[places] = special
    return x, stages


@given(problems(), st.sampled_from(DTYPES), st.sampled_from(DTYPES))
@examples(400)
def test_every_bit_is_that_of_the_reference(
    problem: tuple[torch.Tensor, list[Stage]], source: torch.dtype, target: torch.dtype
) -> None:
    x, stages = problem
    assert_as_reference(x.to(source), stages, target)


@given(problems())
@examples(60)
def test_operators_that_need_whole_axes_go_through_an_intermediate(problem: tuple[torch.Tensor, list[Stage]]) -> None:
    x, stages = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "SCRATCH_BYTES", 0)
        patch.setattr("bot_dist.kernels.INTERMEDIATE", 1000)
        assert_as_reference(x, stages, torch.float32)


@given(st.sampled_from(["haar", "db2", "coif3", "bior6.8"]), st.booleans(), st.data())
@examples(60)
def test_a_block_has_the_bits_of_the_whole(wavelet: str, grow: bool, data: st.DataObject) -> None:
    """Whatever the tiles, phases and boundaries of the block."""
    shape = [8, 96, 300]
    specs = [
        Resample(n_source=n, n_target=2 * n if grow else n // 2, gain=1.0, wavelet=wavelet, boundary=boundary)  # type: ignore[arg-type]
        for n, boundary in zip(shape, ["symmetric", "periodic", "periodic"], strict=True)
    ]
    rows = [build_operator(spec) for spec in specs]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(data.draw(st.sampled_from(NATIVE)))
    order = data.draw(st.permutations(range(3)))
    whole = apply_operators(x, [Stage(d, rows[d].indices, rows[d].taps) for d in order], torch.float32).tensor
    block, stages = x, {}
    cut = []
    for d, operator in enumerate(rows):
        low = data.draw(st.integers(0, operator.n_target - 1))
        high = data.draw(st.integers(low + 1, operator.n_target))
        source = operator.support((low, high))
        block = torch.cat([block.narrow(d, a, b - a) for a, b in source], d)
        stages[d] = Stage(d, *operator.restricted((low, high), source))
        cut.append(slice(low, high))
    part = apply_operators(block.contiguous(), [stages[d] for d in order], torch.float32).tensor
    assert_same_bits(part, whole[tuple(cut)].contiguous())


@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("wavelet", ["haar", "bior6.8"])
@pytest.mark.parametrize("grow", [False, True])
def test_many_tiles_on_one_thread_two_or_several_callers(wavelet: str, grow: bool, dtype: torch.dtype) -> None:
    shape = [6, 256, 1040]
    order = [0, 1, 2] if grow else [2, 1, 0]
    stages = [Stage(d, *banded(shape[d], 2 * shape[d] if grow else shape[d] // 2, wavelet)) for d in order]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    two = assert_as_reference(x, stages, dtype)
    torch.set_num_threads(1)
    assert_same_bits(apply_operators(x, stages, dtype).tensor, two)
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(lambda _: apply_operators(x, stages, dtype), range(6)):
            assert_same_bits(result.tensor, two)


def test_fixed_size_heads_and_reads_across_them() -> None:
    """(layer, kv_heads, group, head_dim, embed) and its transpose: operators in front of untouched dimensions."""
    layers, two, embed = banded(6, 3, "haar", "symmetric"), banded(2, 4, "haar"), banded(192, 384, "db2")
    x = torch.randn(6, 2, 2, 16, 192)
    assert_as_reference(x, [Stage(0, *layers), Stage(1, *two), Stage(2, *two), Stage(4, *embed)], torch.float32)
    x = x.permute(0, 4, 1, 2, 3).contiguous()
    assert_as_reference(x, [Stage(3, *two), Stage(0, *layers), Stage(1, *embed)], torch.bfloat16)


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_without_stages_it_is_a_cast(source: torch.dtype, target: torch.dtype) -> None:
    x = torch.randn(5, 7).to(source)
    result = apply_operators(x, [], target)
    assert_same_bits(result.tensor, x.to(target))
    assert result.tensor.data_ptr() != x.data_ptr()


def test_finite_values_that_become_infinite_are_counted() -> None:
    x = torch.tensor([3.4e38, -3.4e38, 3.38e38, 7e4, torch.inf, torch.nan, 0.0] * 5)
    keep = [Stage(0, np.arange(35)[:, None], np.ones((35, 1)))]
    assert [apply_operators(x, keep, dtype).overflowed for dtype in DTYPES] == [0, 10, 20, 0]
    assert [apply_operators(x, [], dtype).overflowed for dtype in DTYPES] == [0, 10, 20, 0]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int]) -> None:
    stage = Stage(1, np.zeros((3 if shape[1] else 0, 1), dtype=np.int64), np.ones((3 if shape[1] else 0, 1)))
    assert apply_operators(torch.zeros(shape), [stage], torch.float32).tensor.numel() == 0


def test_importing_operators_loads_neither_torch_nor_numba() -> None:
    code = "import sys, bot_dist.operators; print([m for m in ('torch', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
