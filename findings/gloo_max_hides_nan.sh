#!/usr/bin/env bash
# torch 2.13.0: a MAX all-reduce over gloo keeps a NaN of rank 0 but hides one of rank 1, from all ranks, rank 1 too.
# Where: gloo/math.h line 31, max() of the gloo library inside torch: x[i] = std::max(x[i], y[i]), which gives x[i]
# wherever the comparison is false, as it is with NaN on either side. The order of the ranks decides what x is.
# Expected: NaN, as torch.max and torch.maximum give, or at least one answer whichever rank has it. "Is a loss or a norm
# not finite on any rank?" is often asked by such a MAX, and a test with one broken rank tries rank 0.
# Seen, of ranks that hold 1 and 2 with one of them NaN: NaN at rank 0 gives NaN; NaN at rank 1 gives 1. SUM gives NaN
# in both cases.
# Run: bash findings/gloo_max_hides_nan.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu numpy==2.4.6
cat >"$scratch/ranks.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
seen = []
for operation in (dist.ReduceOp.MAX, dist.ReduceOp.SUM):
    for bad in (0, 1):
        value = torch.tensor([1.0 + rank]) if rank != bad else torch.tensor([float("nan")])
        dist.all_reduce(value, op=operation)
        seen.append(str(value.item()))
print(f"rank {rank}: MAX with NaN at rank 0 and at rank 1: {seen[:2]}, SUM: {seen[2:]}")
dist.barrier()
dist.destroy_process_group()
assert seen == ["nan", "1.0", "nan", "nan"], "this version behaves otherwise"
PYTHON
"$scratch/venv/bin/python" "$scratch/ranks.py" "$scratch" 1 &
"$scratch/venv/bin/python" "$scratch/ranks.py" "$scratch" 0
wait "$!"
