"""Does an exported folder compute what the trained model computed?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot_dist.formats.configuration import BUILDING
from bot_dist.model import model_of
from bot_dist.parsing import parse_object


@dataclass(frozen=True, kw_only=True)
class LogitsCheck:
    """How an export that ``transformers`` has loaded compares with the model that it was made of."""

    missing_keys: list[str]
    """Parameters of the model that the export lacks."""
    unexpected_keys: list[str]
    """Tensors of the export that the model doesn't have."""
    max_abs_difference: float
    """Largest absolute difference between the logits of the two."""
    max_abs_logit: float
    """Largest absolute logit of the model, which says how large the difference is."""

    def __str__(self) -> str:
        return (
            f"transformers loads it: {len(self.missing_keys)} missing, {len(self.unexpected_keys)} unexpected keys; "
            f"logits differ from the trained model's by at most {self.max_abs_difference:.2e} (max |logit| "
            f"{self.max_abs_logit:.1f})"
        )


def compare_logits(folder: str, probe: Path) -> LogitsCheck:
    """Load a Hugging Face folder and run it on the probe's inputs; compare with the probe's ``logits``."""
    import torch
    import transformers
    from safetensors.torch import load_file

    inputs = load_file(probe)
    expected = inputs.pop("logits")
    config = parse_object((Path(folder) / "config.json").read_bytes(), f"{folder}/config.json")
    architecture: Any = getattr(transformers, model_of(config).family.architecture(config))
    with BUILDING:
        model, info = architecture.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    return LogitsCheck(
        missing_keys=sorted(info["missing_keys"]),
        unexpected_keys=sorted(info["unexpected_keys"]),
        max_abs_difference=(logits - expected).abs().max().item(),
        max_abs_logit=expected.abs().max().item(),
    )
