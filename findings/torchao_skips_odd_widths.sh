#!/usr/bin/env bash
# torchao 0.18.0 leaves a layer unquantised without a word if its width is no multiple of Int4WeightOnlyConfig's group.
# Where: torchao/quantization/quant_api.py line 575, _int4_weight_only_quantize_tensor: it logs at the level INFO, which
# is not shown, and returns the weight as it is.
# Expected: an error, as from IntxWeightOnlyConfig of the same package for the same weight and group, or a warning. The
# published models' widths are multiples of 128 (the default group); those of a model that was grown or shrunk often
# are not, and then quantize_ succeeds and the model is as large and as slow as before.
# Seen: of a layer of width 120 with groups of 32, Int4WeightOnlyConfig leaves a plain bfloat16 Parameter and prints
# nothing, and IntxWeightOnlyConfig raises AssertionError, and quantises a width of 128.
# Run: bash findings/torchao_skips_odd_widths.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu torchao==0.18.0 numpy==2.4.6
"$scratch/venv/bin/python" - <<'PYTHON'
import torch
from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup


def quantised(width, config):
    model = torch.nn.Sequential(torch.nn.Linear(width, 64, bias=False)).to(torch.bfloat16)
    try:
        quantize_(model, config)
    except AssertionError as error:
        return f"AssertionError: {error}"
    return type(model[0].weight).__name__


int4 = Int4WeightOnlyConfig(group_size=32)
intx = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
seen = {"int4, 120": quantised(120, int4), "intx, 120": quantised(120, intx), "intx, 128": quantised(128, intx)}
print(seen)
assert seen["int4, 120"] == "Parameter", "this version does not skip the layer"
assert seen["intx, 120"].startswith("AssertionError"), "this version of the other config behaves otherwise"
assert seen["intx, 128"] == "IntxUnpackedToInt8Tensor", "this version of the other config behaves otherwise"
PYTHON
