"""A model is calibrated in far less memory than it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Pico

ROOT = Path(__file__).parents[2]

CALIBRATE = """
import json, re, sys
import torch
from bot_dist.fit.sites import default_wanted
from bot_dist.data.calibration_samples import Samples
from bot_dist.fit.statistics import statistics
from bot_dist.formats.open import open_source
from bot_dist.model import model_of

def status(field):
    return int(re.search(rf"{field}:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def calibrate(url):
    source = open_source(url)
    model = model_of(source.config)
    windows = torch.randint(64, (8, 64), generator=torch.Generator().manual_seed(0))
    statistics(source, model, Samples.of_text(windows, model), default_wanted(model), sys.argv[3])
    return 4 * model.n_parameters

torch.set_num_threads(1)
calibrate(sys.argv[1])  # loads all code
idle = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
weights = calibrate(sys.argv[2])
print(json.dumps({"weights": weights, "peak": status("VmHWM") - idle}))
"""


def test_memory_is_that_of_a_block(make_pico: Callable[..., Pico], tmp_path: Path) -> None:
    """A block has 17 MB, its moments have 19 MB."""
    width = {"hidden_size": 768, "intermediate_size": 768, "vocab_size": 1024}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64}
    tiny, large = make_pico("llama").url, make_pico("llama", num_hidden_layers=24, **width, **heads).url
    command = [sys.executable, "-c", CALIBRATE, tiny, large, str(tmp_path / "statistics")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["weights"] > 400e6, measured
    assert measured["peak"] < measured["weights"] / 3, measured
