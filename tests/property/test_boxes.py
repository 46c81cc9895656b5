from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.tensors import Cut, box_size, chunk_shape, flat_boxes, grid, whole

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(shapes, st.data())
def test_flat_boxes_are_the_flat_range_in_order(shape: list[int], data: st.DataObject) -> None:
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    flat = np.arange(size).reshape(shape)
    boxes = list(flat_boxes(shape, start, stop))
    found = [i for box in boxes for i in flat[tuple(slice(*r) for r in box)].ravel().tolist()]
    assert found == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(shapes, st.data())
def test_a_grid_covers_a_box_once(shape: list[int], data: st.DataObject) -> None:
    tile = [data.draw(st.integers(1, n)) for n in shape]
    counts = np.zeros(shape, dtype=int)
    for box in grid(whole(shape), tile):
        assert box_size(box) > 0
        counts[tuple(slice(*r) for r in box)] += 1
    assert (counts == 1).all()


@given(st.integers(1, 100_000), st.integers(1, 64), st.integers(1, 8))
def test_a_cut_gives_every_owner_whole_tiles(size: int, degree: int, tiles: int) -> None:
    cut = Cut(size=size, degree=degree, tiles=tiles)
    owners = [cut.owner(start) for start in range(0, size, cut.tile)]
    assert owners == sorted(owners)
    assert max(owners) < degree
    assert set(owners) == set(range(max(owners) + 1))
    if size % (degree * tiles) == 0:
        assert len(set(owners)) == degree


@given(shapes, st.sampled_from([2, 4]))
def test_chunks_divide_shards(shape: list[int], itemsize: int) -> None:
    assert all(s % c == 0 for s, c in zip(shape, chunk_shape(shape, itemsize), strict=True))


def test_large_shards_are_chunked_by_rows() -> None:
    assert chunk_shape((24576, 288), 4) == (192, 288)
    assert chunk_shape((3, 3, 64, 576), 4) == (1, 1, 64, 576)
