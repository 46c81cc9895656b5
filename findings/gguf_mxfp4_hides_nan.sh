#!/usr/bin/env bash
# gguf 0.19.0 turns a block with one NaN or infinity into 32 zeros when it quantises to MXFP4.
# Where: gguf/quants.py line 671, class MXFP4, quantize_blocks. The largest absolute value of a block gives the shared
# exponent, and a comparison with NaN is false, so the exponent of the block becomes 0; infinity overflows the cast to
# uint8 and becomes 0 as well (on x86-64). Every value of the block is then read back as zero.
# Expected: what the other types do. Q8_0 of the same package reads the whole block back as NaN, and so a broken weight
# is seen at the first forward pass. With MXFP4 a model with broken weights passes every test for finite values.
# Seen: nan MXFP4 32 zeros, Q8_0 32 NaN; inf MXFP4 32 zeros, Q8_0 32 NaN.
# Run: bash findings/gguf_mxfp4_hides_nan.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --no-compile gguf==0.19.0 numpy==2.4.6
"$scratch/venv/bin/python" - <<'PYTHON'
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

np.seterr(all="ignore")
for bad in (np.nan, np.inf):
    block = np.ones((1, 32), np.float32)
    block[0, 3] = bad
    back = {kind: dequantize(quantize(block, kind), kind) for kind in (Type.MXFP4, Type.Q8_0)}
    zeros, nans = int((back[Type.MXFP4] == 0).sum()), int(np.isnan(back[Type.Q8_0]).sum())
    print(f"{bad}: MXFP4 {zeros} zeros, Q8_0 {nans} NaN")
    assert (zeros, nans) == (32, 32), "this version behaves otherwise"
PYTHON
