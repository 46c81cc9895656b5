#!/usr/bin/env bash
# accelerate 1.15.0's init_empty_weights holds for all threads, and stays after two of them where they overlap.
# Where: accelerate/big_modeling.py lines 127, 165 and 172, init_on_device, which init_empty_weights calls: on entry it
# replaces torch.nn.Module.register_parameter of the whole process, on exit it puts back what it found on entry.
# Expected: what torch.device("meta") does as a context: it holds for the thread that entered it, and ends with it.
# Seen: a weight that another thread gives to its model meanwhile becomes a tensor on the meta device, its values are
# lost; and where thread B enters before A leaves, B puts A's replacement back at its end: every module that is made
# from then on, in no context at all, has its parameters on the meta device. No error, no warning.
# Run: bash findings/accelerate_empty_weights_across_threads.sh
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" install --quiet --no-compile)
"${pip[@]}" --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" torch==2.13.0+cpu accelerate==1.15.0 numpy==2.4.6
cd "$scratch"
venv/bin/python - <<'PYTHON'
from threading import Event, Thread

import torch
from accelerate import init_empty_weights

entered_a, entered_b, left_a = Event(), Event(), Event()


def thread_a() -> None:
    with init_empty_weights():
        entered_a.set()
        entered_b.wait()
    left_a.set()


def thread_b() -> None:
    entered_a.wait()
    with init_empty_weights():
        entered_b.set()
        left_a.wait()


model = torch.nn.Linear(2, 2)
threads = [Thread(target=thread_a), Thread(target=thread_b)]
threads[0].start()
entered_a.wait()
model.weight = torch.nn.Parameter(torch.ones(2, 2))  # in this thread, which has entered nothing
threads[1].start()
for thread in threads:
    thread.join()
seen = {"given meanwhile": str(model.weight.device), "made afterwards": str(torch.nn.Linear(2, 2).weight.device)}
print("seen:", seen)
assert seen == {"given meanwhile": "meta", "made afterwards": "meta"}, "this version behaves otherwise"
with torch.device("meta"):  # the context that is each thread's own
    other: list[torch.Tensor] = []
    thread = Thread(target=lambda: other.append(torch.ones(2)))
    thread.start()
    thread.join()
assert other[0].device.type == "cpu"
PYTHON
