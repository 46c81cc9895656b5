"""The section ``transfer`` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bot_dist.errors import nearest
from bot_dist.recipe.values import Bytes, Config

WidthPolicy = Literal["resample", "copy", "lazy", "spread"]
WidthChoice = Literal["auto", "resample", "copy", "lazy", "spread"]
Basis = Literal["auto", "rotation", "permutation"]

PRESETS: dict[str, dict[str, Any]] = {
    f"paper-{case}": {
        "wavelet": wavelet,
        "gain": "orthonormal",
        "depth": "wavelet",
        "width": "resample",
        "analysis": "wavelet",
        "noise": 0.0,
    }
    for case, wavelet in {"bert-l2s": "haar", "bert-s2l": "bior6.8", "gpt-l2s": "coif3", "gpt-s2l": "db2"}.items()
}
"""Named settings: the best wavelet of each case in the ablation of BoT (arXiv 2603.07506), taken literally."""


NOISE = 3.0
"""On copies, where nothing else is asked for: what learned best (``compare_gpt_grow.yaml``)."""

NOISE_OF_16_BITS = 1.0
"""The same in a store of 16 bits: noise n on c copies makes their rounding √(1 + n² · (1 − 1/c)) times as large."""


class TransferConfig(Config):
    """How the source's weights become the target's."""

    preset: str | None = None
    """Named settings to start from, such as ``paper-gpt-s2l``; keys given beside it win."""
    wavelet: str | dict[str, str] = "haar"
    """A discrete wavelet of PyWavelets, or one per axis (``{layer: haar, embed: db2}``) or per kind of module and axis
    (``attn:embed``, ``mlp.down:embed``); what is not named takes haar."""
    gain: Literal["auto", "measure", "orthonormal"] = "auto"
    """``measure``: rows of write axes sum to 1, of read axes to n_source/n_target. ``orthonormal``: the paper's,
    √(n_source/n_target). ``auto``: measure on axes that grow, orthonormal on axes that shrink."""
    width: WidthChoice | dict[str, WidthChoice] = "auto"
    """How axes other than layers change, all or one by one (``{embed: copy, mlp: lazy}``). ``resample``: by the wavelet
    to the nearest power of two, by area resampling for the rest; haar keeps the function at integer ratios. ``copy``
    (growing): whole units, each copied; keeps it at any ratio (nearly, where LayerNorm is grown off integers).
    ``spread`` (growing): the same, but the units that put out most on a text (``calibrate.text``) have the most copies.
    ``lazy`` (growing): old units stay, new ones start untrained and silent. ``auto``: what keeps the function, so
    ``copy`` where an axis grows off integers, unless another wavelet than haar or a gain is asked for; else resampled.
    Axes that shrink are resampled unless named."""
    depth: Literal["auto", "wavelet", "identity", "stack", "interpolate", "even", "similar", "pairs"] = "auto"
    """How the layer axis changes: resampled by its wavelet; or growing by inserted blocks that change nothing
    (``identity``), by the whole stack again (``stack``) or each block again (``interpolate``); or shrinking to evenly
    spaced blocks (``even``), or to those that change the residual stream most (``similar``: what is left out changes it
    least), or by making one of two neighbours that change it least (``pairs``).
    ``auto``: growing identity, where neither a wavelet but haar nor the orthonormal gain is asked for; shrinking
    adaptively, even where half of the blocks go or more (which is better after training), else similar; else
    wavelet."""
    analysis: Literal["auto", "adaptive", "wavelet"] = "auto"
    """How axes shrink. ``adaptive``: by a basis and filters fitted to statistics of the source on a text
    (``calibrate.text``, which says what is taken without one) or on images (``train.images``), or, without images, to
    the weights alone. ``wavelet``: by the wavelet, which averages. ``auto``: adaptive, unless another wavelet than
    haar, a gain, ``depth: wavelet`` or ``keep_details`` is asked for."""
    basis: Basis = "auto"
    """In which basis the residual width shrinks adaptively: its Karhunen–Loève basis (``rotation``, which unties a tied
    head), or its coordinates with the most energy (``permutation``), which predict the others for all that reads them
    but a tied head. ``auto``: a rotation where the family allows it. Where the width grows, ``rotation`` goes with
    ``lazy``: new coordinates are at the end of least energy."""
    lifting: Literal["auto", "least-squares", "selection"] = "auto"
    """Fate of units, heads and coordinates that are dropped: they are predicted from those kept, by least squares; or
    nothing (``selection``, the lazy wavelet). ``auto``: nothing where what blocks write makes up for it
    (``calibrate.passes: sequential``), which learns better, else whichever has less loss on ``calibrate.held_out``
    (predicted, where there is none)."""
    ridge: float = Field(default=1e-3, ge=0)
    """Ridge of the least squares that predict what is dropped, relative to the mean square of what is kept."""
    noise: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """Breaks the symmetry of copies on axes that are read, which would learn alike for ever: each weight times
    1 + noise · (standard normal, less its mean over the copies), the same for all copies of a coordinate of the
    residual stream that is written. The function can't see it, up to the rounding of the store's dtype. ``auto``: where
    axes grow by copies 3, and 1 in bfloat16 and float16, so that no more is lost than by their rounding; 0 with the
    paper's gain or kept details."""
    seed: int = Field(default=0, ge=0)
    """Seed of that noise, and of the untrained weights of ``lazy``."""
    keep_details: bool = False
    """Store what shrinking drops beside the small model, so that growing from the store gives the source back. What is
    fitted per layer comes back together with the layers only."""
    use_details: bool = True
    """Growing from a store with details to the sizes that they were kept from restores the weights."""
    moments: Literal["auto", "none"] = "auto"
    """Carry AdamW's moments through the transfer where the source has them, as training states do (``auto``): twice the
    bytes in float32 beside the weights."""
    allow_nonfinite: bool = False
    """Go on where the source holds NaN or infinity, or what comes of it is too large for the target's dtype."""
    dtype: Literal["source", "float32", "bfloat16"] = "source"
    """Dtype of the target store. ``source`` keeps the source's (float32 where that is quantised)."""
    memory_limit: Bytes = 2**30
    """Bytes of tensors that one actor may hold at once."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and (preset := data.get("preset")) is not None:
            if not isinstance(preset, str) or preset not in PRESETS:
                raise ValueError(f"unknown preset {preset!r}; {nearest(str(preset), PRESETS)}")
            return {**PRESETS[preset], **data}
        return data

    @model_validator(mode="after")
    def _fitted_is_analysed(self) -> TransferConfig:
        if self.fitted and self.analysis == "wavelet":
            raise ValueError(
                f"{self.fitted} is fitted to statistics, and analysis wavelet takes none; use analysis auto"
            )
        return self

    @property
    def fitted(self) -> str:
        """A setting that only means something where statistics are taken of the source; empty where there is none."""
        if "spread" in ([self.width] if isinstance(self.width, str) else self.width.values()):
            return "width spread"
        if self.basis != "auto":
            return f"basis {self.basis}"
        return f"depth {self.depth}" if self.depth in ("similar", "pairs") else ""

    @property
    def averaged_for(self) -> str:
        """A setting that ``analysis: auto`` takes for the wavelet's; empty where none is."""
        if self.wavelet != "haar":
            return f"wavelet {self.wavelet}"
        if self.gain != "auto":
            return f"gain {self.gain}"
        if self.depth == "wavelet":
            return "depth wavelet"
        return "keep_details" if self.keep_details else ""

    def depth_of(self, *, grows: bool) -> str:
        """The policy of the layer axis; ``auto`` is settled, but for what is fitted."""
        if self.depth != "auto":
            return self.depth
        return "identity" if grows and self.wavelet == "haar" and self.gain != "orthonormal" else "wavelet"

    def noise_on_copies(self, dtype: str) -> float:
        """``noise`` in a store of this dtype, settled, but for whether there are copies."""
        if self.noise != "auto":
            return self.noise
        if self.gain == "orthonormal" or self.keep_details:
            return 0.0
        return NOISE_OF_16_BITS if dtype in ("bfloat16", "float16") else NOISE

    def wavelet_of(self, module: str, axis: str) -> str:
        """The wavelet of one axis of one module: the most specific that is named."""
        if isinstance(self.wavelet, str):
            return self.wavelet
        parts = module.split(".")
        keys = [f"{'.'.join(parts[:n])}:{axis}" for n in range(len(parts), 0, -1)]
        return next((self.wavelet[key] for key in (*keys, axis) if key in self.wavelet), "haar")

    def width_of(self, axis: str, n_source: int, n_target: int) -> WidthPolicy:
        """The policy of an axis that is not the layers'; ``auto`` is settled."""
        grows = n_target > n_source
        policy = self.width.get(axis, "auto") if isinstance(self.width, dict) else self.width if grows else "auto"
        if policy != "auto":
            return policy
        literal = self.gain != "auto" or any(wavelet != "haar" for wavelet in self._wavelets_along(axis))
        return "copy" if grows and n_target % n_source and axis != "position" and not literal else "resample"

    def _wavelets_along(self, axis: str) -> list[str]:
        if isinstance(self.wavelet, str):
            return [self.wavelet]
        return [wavelet for key, wavelet in self.wavelet.items() if key.rpartition(":")[2] == axis]
