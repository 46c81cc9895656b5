#!/usr/bin/env bash
# deepspeed 0.19.8: in bf16 at stage 0 the first step after load_checkpoint(load_optimizer_states=False) puts the
# weights of the constructor back.
# Where: deepspeed/runtime/engine.py lines 4671-4702, _load_checkpoint. The float32 masters are made from the loaded
# weights with load_module_only (line 4674) and are loaded with load_optimizer_states (line 4700); with neither nothing
# touches them, and the next step copies the old masters over what was loaded. ZeRO stages refresh theirs (line 4467).
# Expected: that the loaded weights are trained on with a fresh optimizer, which is what the option is for, such as
# after a change of the model or of the optimizer.
# Seen: weights of 5 loaded into an engine made with 1: 5 after the load, 1 after one step with a learning rate of 0.
# load_module_only=True: 5 and 5. At stage 1, load_optimizer_states=False: 5 and 5.
# Run: bash findings/deepspeed_stage0_undoes_a_load.sh
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

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # so that nothing has to be compiled


class Filled(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((8,), value))

    def forward(self):
        return self.weight.sum()


def engine_of(value, stage):
    model = Filled(value)
    config = {"train_batch_size": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}
    config |= {"zero_allow_untested_optimizer": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


seen = []
for stage, option in ((0, {"load_optimizer_states": False}), (0, {"load_module_only": True}),
                      (1, {"load_optimizer_states": False})):
    engine_of(5.0, stage).save_checkpoint(f"stage{stage}")
    engine = engine_of(1.0, stage)
    engine.load_checkpoint(f"stage{stage}", **option)
    loaded = engine.module.weight[0].item()
    engine.backward(engine())
    engine.step()
    seen.append((loaded, engine.module.weight[0].item()))
    print("seen: stage", stage, option, "after the load and after a step:", seen[-1])
assert seen == [(5.0, 1.0), (5.0, 5.0), (5.0, 5.0)], "this version behaves otherwise"
PYTHON
