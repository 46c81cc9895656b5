"""Does an exported folder compute what the trained model computed?"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def compare_logits(folder: str, probe: Path) -> dict[str, Any]:
    """Load a Hugging Face folder and run it on the probe's ``input_ids``; compare with the probe's ``logits``.

    Returns the keys that did not match, the largest absolute difference and the largest absolute logit.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    saved = load_file(probe)
    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(folder, dtype=torch.float32, output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(saved["input_ids"]).logits
    return {
        "missing_keys": sorted(info["missing_keys"]),
        "unexpected_keys": sorted(info["unexpected_keys"]),
        "max_abs_difference": (logits - saved["logits"]).abs().max().item(),
        "max_abs_logit": saved["logits"].abs().max().item(),
    }
