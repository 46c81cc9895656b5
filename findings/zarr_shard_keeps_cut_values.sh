#!/usr/bin/env bash
# zarr 3.1.6 brings back the values that a resize has cut off, if the array is sharded.
# Where: zarr/core/array.py line 6009, _resize. It deletes the stored objects that lie wholly outside the new shape, and
# for a sharded array such an object is a shard: inner chunks that lie wholly outside stay in a shard that is kept.
# Expected: the same result with and without shards, as `chunks` is the same. The documentation of resize says that all
# chunks outside the new shape are deleted, and `chunks` of a sharded array names the inner chunks.
# Seen: after 8 -> 4 -> 8 the array in chunks of 2 ends in zeros; with shards of 8 around them it has its old values.
# A weight that is shrunk and grown again in place then has rows of another model where fresh ones are expected.
# Run: bash findings/zarr_shard_keeps_cut_values.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --no-compile zarr==3.1.6 numpy==2.4.6
cd "$scratch"
venv/bin/python - <<'PYTHON'
import numpy as np
import zarr

seen = {}
for name, shards in {"plain": None, "sharded": (8,)}.items():
    array = zarr.create_array(f"{name}.zarr", shape=(8,), chunks=(2,), shards=shards, dtype="float32", fill_value=0)
    array[:] = np.arange(1, 9)
    array.resize((4,))
    array.resize((8,))
    seen[name] = array[:].tolist()
    print(name, array.chunks, seen[name])
assert seen["plain"] == [1, 2, 3, 4, 0, 0, 0, 0], "this version behaves otherwise without shards"
assert seen["sharded"] == [1, 2, 3, 4, 5, 6, 7, 8], "this version clears the inner chunks of a shard"
PYTHON
