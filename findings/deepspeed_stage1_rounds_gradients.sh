#!/usr/bin/env bash
# deepspeed 0.19.8: ZeRO stage 1 rounds gradients that were accumulated in float32 to bfloat16 before the step.
# Where: deepspeed/runtime/engine.py line 3800, allreduce_bucket. With bf16 and "grad_accum_dtype": "fp32" stage 1 uses
# BF16_Optimizer (line 2305), whose float32 sum goes through the all-reduce at the end in communication_data_type,
# which is bfloat16 unless the configuration says otherwise (line 1719). This happens with one process as well.
# Expected: that "grad_accum_dtype": "fp32" keeps float32 up to the optimizer, and that stages 1, 2 and 3 of the same
# configuration compute the same step; they differ in what is stored where.
# Seen: gradients 256 and 1 of two accumulation steps, mean 128.5. Stages 2 and 3 step by 128.5, stage 1 by 128.0, and
# stage 1 with "communication_data_type": "fp32" by 128.5. The more steps are accumulated, the more of each is lost.
# Run: bash findings/deepspeed_stage1_rounds_gradients.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu deepspeed==0.19.8 numpy==2.4.6
cd "$scratch"
LOCAL_RANK=0 DS_ACCELERATOR=cpu venv/bin/python - <<'PYTHON' 2>&1 | grep '^seen\|Error'
import torch

torch.distributed.init_process_group("gloo", init_method="file:///proc/self/cwd/group", rank=0, world_size=1)
import deepspeed
from deepspeed.utils import safe_get_full_fp32_param

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # so that nothing has to be compiled


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8))

    def forward(self, by):
        return (self.weight * torch.full((8,), by, dtype=torch.bfloat16)).sum()


seen = {}
for stage, more in ((1, {}), (2, {}), (3, {}), (1, {"communication_data_type": "fp32"})):
    config = {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, **more}
    config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    config |= {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    model = Scaled()
    engine = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=config)[0]
    for gradient in (256.0, 1.0):
        engine.backward(engine(gradient))
        engine.step()
    seen[stage, *more] = -safe_get_full_fp32_param(engine.module.weight)[0].item()
print("seen: step by", seen)
assert list(seen.values()) == [128.0, 128.5, 128.5, 128.5], "this version behaves otherwise"
PYTHON
