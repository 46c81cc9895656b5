"""Does an exported folder compute what the trained model computed?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bot_dist.model import model_of
from bot_dist.parsing import parse_object


def compare_logits(folder: str, probe: Path) -> dict[str, Any]:
    """Load a Hugging Face folder and run it on the probe's inputs; compare with the probe's ``logits``.

    Returns the keys that did not match, the largest absolute difference and the largest absolute logit.
    """
    import torch
    import transformers
    from safetensors.torch import load_file

    inputs = load_file(probe)
    expected = inputs.pop("logits")
    config = parse_object((Path(folder) / "config.json").read_bytes(), f"{folder}/config.json")
    architecture: Any = getattr(transformers, model_of(config).family.architecture(config))
    model, info = architecture.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    return {
        "missing_keys": sorted(info["missing_keys"]),
        "unexpected_keys": sorted(info["unexpected_keys"]),
        "max_abs_difference": (logits - expected).abs().max().item(),
        "max_abs_logit": expected.abs().max().item(),
    }
