#!/usr/bin/env bash
# tensorstore 0.1.86 cannot open an array of zarr 3.1.6 whose dimension names repeat, such as a square weight's.
# Where: zarr/core/metadata/v3.py line 114, parse_dimension_names, takes any strings. tensorstore's zarr3 driver makes
# them the labels of an index domain, and labels must differ ("Dimension label(s) ... not unique" is its own message).
# Expected: that one reader of the format reads what the other writes and reads, as names say nothing of the values.
# To name each axis by its kind is natural for weights, and a projection from the width to the width has it twice.
# Seen: zarr-python writes and reads a matrix with the names (embed, embed); tensorstore raises ValueError on opening.
# With the names (embed, ffn) it reads the values.
# Run: bash findings/tensorstore_refuses_repeated_names.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --no-compile zarr==3.1.6 tensorstore==0.1.86 numpy==2.4.6
cd "$scratch"
venv/bin/python - <<'PYTHON'
import os

import tensorstore
import zarr


def opened(names):
    array = zarr.create_array(f"{names}.zarr", shape=(2, 2), chunks=(2, 2), dtype="float32", dimension_names=names)
    array[:] = 1
    assert zarr.open_array(f"{names}.zarr")[:].sum() == 4
    store = {"driver": "file", "path": os.path.abspath(f"{names}.zarr")}
    try:
        return tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result().sum()
    except ValueError as error:
        return str(error).split(" [")[0]


seen = [opened(names) for names in (("embed", "ffn"), ("embed", "embed"))]
print(seen)
assert seen[0] == 4, "this version reads no zarr array at all"
assert 'Dimension label(s) "embed" not unique' in str(seen[1]), "this version takes repeated names"
PYTHON
