"""Every key that a recipe may have."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    WithJsonSchema,
    model_validator,
)

from bot_dist.errors import nearest
from bot_dist.urls import KEYS_IN_URL, label

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: object) -> int:
    """``"512 MiB"``, ``"2GB"`` or a number of bytes, in bytes."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", str(value))
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is no size; write a number of bytes or for example 512 MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


_MEMBER = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Names of members: of folders, too."""

MOST_BYTES = 2**60
_BYTES_SCHEMA = {
    "anyOf": [
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[A-Za-z]*$"},
    ]
}
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0, le=MOST_BYTES), WithJsonSchema(_BYTES_SCHEMA)]


def _url(text: str) -> str:
    if not text:
        raise ValueError("it is empty; give a path or a URL")
    if slip := re.match(r"(file|s3a?|gs|az|abfss?|hf|https?|package)(:/(?!/)|//)", text):
        raise ValueError(f"write {slip[1]}://{text[slip.end() :]}, or ./{text} for a path")
    if re.match(r"(s3a?|gs|az|abfss?)://[^/]*:", text):
        raise ValueError(KEYS_IN_URL)
    return text


def _folder(path: str) -> str:
    if not path or "://" in path:
        raise ValueError("the output is a folder on a file system that all nodes see; only target_url may be a URL")
    return os.path.expanduser(path)


SIZES = ("layers", "embed", "mlp", "heads", "kv_heads", "head_dim", "context", "vocab")
"""Every size that some family has by a name of its own."""


def _sizes(target: dict[str, int]) -> dict[str, int]:
    for name in target:
        if name not in SIZES:
            raise ValueError(f"there is no size {name!r}; {nearest(name, SIZES)}")
    return target


Sizes = Annotated[dict[str, StrictInt], AfterValidator(_sizes)]
"""Sizes by name."""

Url = Annotated[str, AfterValidator(_url)]
"""A path or a URL."""

Folder = Annotated[str, AfterValidator(_folder)]
"""A path on a file system that all nodes see."""


class Config(BaseModel):
    """A section of a recipe: strict and frozen, every key with its docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


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


ExecutorName = Literal["ray", "local"]


class ClusterConfig(Config):
    """Who executes the transfer and the training."""

    executor: ExecutorName = "ray"
    """Ray shard actors, or this process (same bytes, no Ray)."""
    address: str | None = None
    """Address of a running Ray cluster; None: RAY_ADDRESS if set, else a cluster embedded in this process."""
    wait_s: int = Field(default=0, ge=0)
    """Seconds to wait for nodes that are still joining, until the cluster has a CPU per actor or worker."""
    allow_unauthenticated: bool = False
    """Run on a cluster that other machines reach and that wants no token, so that any of them may run code on it."""
    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel degree: how many ways heads, FFN units and vocabulary are cut over the shard actors."""
    data: int = Field(default=1, ge=1)
    """Actors per tensor-parallel rank; they share out layers and tiles."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device on which actors transform and workers train; ``auto`` takes CUDA where it is there."""
    side_by_side: int | None = Field(default=None, ge=1)
    """How many members of a family, or runs of a comparison, are trained at once; None: as many as the cluster has CPUs
    for (or GPUs, where they train on those). Those on one node share its CPUs out."""


DOCUMENT_LIMIT = 2**26
"""Bytes that a document may have where one is held whole."""
OWN_TEXT = ("self",)
"""``calibrate.text`` that asks for a text that the model writes itself."""


class TextConfig(Config):
    """Texts, and how their documents become tokens."""

    text: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Paths that all nodes see, fsspec URLs or ``package://PACKAGE/FILE``, globs allowed, of JSON lines (``.jsonl``,
    ``.json``, ``.jsonl.gz``), CSV (``.csv``, ``.tsv``), Parquet (``.parquet``) or plain text, a document each (all
    others); ``hf-datasets://NAME?split=train&config=…&revision=…`` of Hugging Face's ``datasets``, NAME a data set or a
    path."""
    column: str = "text"
    """Field of JSON lines, column of CSV, Parquet and data sets, that holds a document."""
    bos: str = "auto"
    """Stands before every document, and at the beginning of every window: ``auto``, what the model's tokenizer puts
    before a text (the BOS of Llama and Gemma, BERT's CLS; nothing for GPT-2); ``none``; or a token by name."""
    eos: str = "auto"
    """Stands behind every document: ``auto``, what the model's tokenizer puts behind a text, else ``<|endoftext|>``
    where it has that (the EOS of chat models ends a turn), else its EOS; ``none``; or a token by name."""
    document_limit: Bytes = DOCUMENT_LIMIT
    """Bytes that a line, or a document in one, may have, decompressed; files of plain text may be of any size. What is
    larger is refused."""


def _own_text(value: object) -> object:
    if value == OWN_TEXT[0]:
        return OWN_TEXT
    if isinstance(value, list | tuple) and len(value) > 1 and OWN_TEXT[0] in value:
        raise ValueError("'self' is a text that the model writes itself, and stands alone; write ./self for a file")
    return value


class CalibrateConfig(TextConfig):
    """The data that adaptive shrinking takes its statistics from: a text, or, for a model of images, those of
    ``train.images`` that are not held out."""

    text: Annotated[tuple[str, ...], BeforeValidator(_own_text)] = ()
    """Files to fit to, named as in ``train.text``; where none is, ``train.text`` itself, with the keys of ``train``
    about texts. ``self``, and the default without any: a text that a causal model writes itself, at temperature 1, from
    the token that begins its documents; by default, random tokens take its place where whole blocks alone go, and for
    masked models, which write none. Text of one's own domain is far better."""
    tokens: int = Field(default=8192, ge=1)
    """How many tokens are run through the source; an image counts as its patches and the tokens before them. Up to some
    ten times the residual width, more of them make a better start; training soon evens out what fewer cost."""
    context: int = Field(default=512, ge=2)
    """Tokens per window."""
    passes: Literal["auto", "sequential", "one", "each"] = "auto"
    """``sequential``: block by block, all axes at once, to what the model that is shrunk so far computes beside the
    source, correcting what blocks write; takes two passes over the text, and ``one`` where it can't be done (norms
    after sublayers, axes that change by other means, no data). ``one``: everything to the source in one pass.
    ``auto``: these two are tried, and the fit with the least loss on what is held out is kept; the first untried, where
    nothing is. ``each``: FFN, heads, width and blocks in this order, each to the model that the ones before have
    shrunk; takes a pass for each, and loses more than the others."""
    held_out: int = Field(default=4096, ge=0)
    """Further tokens, on which the loss is measured after every stage and fits are ranked; 0: neither is done."""
    allow_mismatch: bool = False
    """Go on where the source predicts the text (or the images' classes) hardly better than a uniform guess does, or
    worse: then its tokenizer is another model's, or it was never trained."""
    memory_limit: Bytes = 2**33
    """Bytes of tensors that one process may hold meanwhile: a block of the source, the moments of what it reads, and
    what is fitted to them. What takes more is refused."""
    folder: str | None = None
    """Folder that keeps statistics for the next time (a path that all nodes see); None: ``calibration`` in the output,
    or beside ``target_url``."""


class InsertedConfig(Config):
    """How blocks learn that ``depth: identity`` has put in, which change nothing yet."""

    learning_rate: float = Field(default=1.0, gt=0)
    """Multiplies their learning rate."""
    warmup: int = Field(default=0, ge=0)
    """Steps of a linear warm-up of their own, on top of ``train.warmup``."""


HOW_TRAINED = frozenset(
    {
        *("workers", "stage", "tensor", "offload", "accumulate", "checkpointing", "compile", "token_cache"),
        *("save_every", "keep", "max_failures", "evaluate_every", "peak_flops", "document_limit", "image_limit"),
    }
)
"""Keys of ``train`` that say how it is computed and what is kept of it; a run may go on with others."""


class TrainConfig(TextConfig):
    """Continued pretraining by DeepSpeed ZeRO."""

    token_cache: str | None = None
    """Folder or URL that keeps tokenised texts for other runs, too: they are known by content and tokenizer; None:
    ``{output}/train/tokens``."""
    images: str | None = None
    """Images to train on, of a model of images: a folder, which all nodes see, with a folder of PNG and JPEG files per
    class; or ``hf-datasets://NAME?split=…``, with a column of images and one of class labels."""
    image_limit: Bytes = 2**28
    """Bytes that an image may have, decoded. What is larger is refused."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0 measures the held-out loss only."""
    workers: int = Field(default=2, ge=1)
    """Ray Train workers, one DeepSpeed rank each."""
    stage: Literal[1, 2, 3] = 3
    """ZeRO stage: 1 partitions the optimizer's state over the workers, 2 gradients too, 3 weights too."""
    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel degree (DeepSpeed's AutoTP): how many workers share heads and FFN units of one copy of the model;
    ZeRO partitions what each has of it."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Data that lie in the host's memory: master weights and the optimizer's state (``optimizer``), and of stage 3 the
    weights too (``all``)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of what is computed; master weights and the optimizer's state are float32. ``auto``: bfloat16 on CUDA where
    the model's own dtype is bfloat16, else float32."""
    checkpointing: bool = False
    """Compute activations again for the backward pass, block by block, and hold less memory."""
    compile: bool = False
    """Train through ``torch.compile``, in stages 1 and 2."""
    context: int = Field(default=128, ge=2)
    """Tokens per sequence."""
    batch: int = Field(default=8, ge=1)
    """Sequences per step, over all workers."""
    accumulate: int = Field(default=1, ge=1)
    """In how many parts, one after the other, each worker computes its share of a step."""
    peak_flops: float | None = Field(default=None, gt=0)
    """FLOP/s that one worker's device computes at best, which the model's use of it (MFU) is told against; None:
    products of matrices are timed at the start."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up, before the schedule."""
    schedule: Literal["cosine", "stable"] = "cosine"
    """``cosine``: half a cosine from the peak to a tenth of it. ``stable``: the peak, then linear to a tenth of it."""
    decay: int | None = Field(default=None, ge=1)
    """Steps in which ``stable`` falls, at the end; None: a fifth of all."""
    use_factors: bool = True
    """Multiply each parameter's learning rate, and divide its weight decay, by what its change of size asks for."""
    moments: Literal["auto", "none"] = "auto"
    """``auto``: AdamW begins with the moments that the transfer has carried, where there are some, and goes on counting
    its steps; the schedule begins anew. ``none``: it begins cold."""
    inserted: InsertedConfig = InsertedConfig()
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of matrices and tables; norms and biases have none."""
    clip: float = Field(default=1.0, gt=0)
    """Gradient norm at which gradients are clipped."""
    held_out: int = Field(default=8, ge=1)
    """Sequences, from the end of the text, on which the held-out loss is measured."""
    evaluate_every: int = Field(default=10, ge=1)
    """Steps between measurements of the held-out loss."""
    save_every: int = Field(default=0, ge=0)
    """Steps between training states (weights and both moments of AdamW), which a run goes on from that was killed or
    stopped, on any number of workers; 0: one is saved only when a signal stops the run."""
    keep: int = Field(default=2, ge=1)
    """How many states of a run are kept, besides the one with the lowest held-out loss of those measured."""
    max_failures: int = Field(default=0, ge=0)
    """How often workers that died are started again, to go on from the newest state; needs ``save_every``."""
    spike: float | None = Field(default=None, gt=0)
    """A step whose loss is above the mean of the 32 before by more than so many standard deviations is a spike; None:
    only one whose loss is not finite."""
    on_spike: Literal["stop", "skip"] = "stop"
    """``stop``: the run ends, and names the step, its samples and the state to go on from. ``skip``: the step is left
    out before it changes anything; of whole steps that are computed at once (``accumulate`` 1)."""
    max_skipped: int = Field(default=10, ge=1)
    """How many of a run's steps may be left out; one more ends it."""
    scratch: bool = True
    """Also train the same model from the family's own initialisation, on the same data."""
    source_loss: bool = False
    """Also measure the source model's held-out loss."""
    seed: int = Field(default=0, ge=0)
    """Seed of data order, of what is masked and of the scratch initialisation."""

    @model_validator(mode="after")
    def _options_go_together(self) -> TrainConfig:
        if self.text and self.images is not None:
            raise ValueError("a run is trained on text or on images, and both are named; leave out text or images")
        if self.max_failures and not self.save_every:
            raise ValueError("max_failures: there is no state to go on from; set save_every too")
        if self.on_spike == "skip" and self.accumulate > 1:
            raise ValueError(
                f"on_spike skip is of steps that are computed at once, and accumulate is {self.accumulate}"
            )
        if self.offload == "all" and self.stage != 3:
            raise ValueError(f"offload all is of stage 3, and stage is {self.stage}; use offload optimizer")
        if self.compile and (self.stage == 3 or self.tensor > 1):
            how = f"stage {self.stage} with tensor {self.tensor}"
            raise ValueError(f"compile: {how} breaks the graph at every layer; use stage 1 or 2 and tensor 1")
        return self


class MemberConfig(Config):
    """The keys that one member of a family has of its own; the rest is the recipe's."""

    target: Sizes = Field(default_factory=dict)
    """Its sizes; those of the recipe's ``target`` that it leaves out hold too."""
    transfer: dict[str, Any] = Field(default_factory=dict)
    """Keys of ``transfer``."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of ``train``."""


class Recipe(Config):
    """One run: source → plan → transfer → continued pretraining → export → report."""

    source: Url
    """Checkpoint to start from: a folder or URL with safetensors, a ``.gguf`` file, or a bot_dist store;
    ``package://PACKAGE/FILE`` names a file inside an installed Python package."""
    output: Folder
    """Folder of the run (a path that all nodes see)."""
    target_url: Url | None = None
    """URL of the transferred store, any that fsspec knows; None: ``{output}/transferred.zarr``."""
    target: Sizes = Field(default_factory=dict)
    """New sizes: ``layers``, ``embed``, ``mlp``, ``heads``, ``kv_heads``, … (what the family has); others are kept."""
    family: dict[Annotated[str, Field(pattern=_MEMBER)], MemberConfig] = Field(default_factory=dict)
    """Several targets by name, each a run of its own in the folder ``{output}/NAME``: all are transferred, then trained
    one after the other or side by side (``cluster.side_by_side``); ``target``,
    ``transfer`` and ``train`` are what they have in common. ``RECIPE.yaml:NAME`` is one of them."""
    import_to: Url | None = None
    """Folder or URL, which all nodes see, that the source is imported to before all else, so that it is read once from
    where it is, and then from there. None: a family imports a source that is not on a file system, to
    ``{output}/source.zarr``; nothing else does."""
    transfer: TransferConfig = TransferConfig()
    cluster: ClusterConfig = ClusterConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    train: TrainConfig = TrainConfig()
    overwrite: bool = False
    """Replace what was made there before: stores, exports and records of runs, and nothing else."""

    @property
    def transferred_url(self) -> str:
        return self.target_url or f"{self.output}/transferred.zarr"

    @property
    def trained_url(self) -> str:
        return f"{self.output}/trained.zarr"

    @property
    def export_dir(self) -> str:
        return f"{self.output}/export"

    def digest(self) -> str:
        """Identifies what is computed; ``overwrite``, ``allow_mismatch``, where Ray runs, where copies are kept and
        ``HOW_TRAINED`` are not part of it."""
        data = self.model_dump(
            exclude={
                "overwrite": True,
                "import_to": True,
                "calibrate": {"folder", "document_limit", "allow_mismatch"},
                "train": set(HOW_TRAINED),
                "cluster": {"address", "wait_s", "allow_unauthenticated"},
            }
        )
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def public(self) -> dict[str, Any]:
        """The recipe as plain data for manifests, records and reports: URLs without secrets."""
        data: dict[str, Any] = labelled(self.model_dump(mode="json", exclude={"cluster": {"address"}}))
        return data


def labelled(value: Any) -> Any:
    """Plain data with URLs without secrets."""
    if isinstance(value, dict):
        return {key: labelled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [labelled(inner) for inner in value]
    return label(value) if isinstance(value, str) else value
