"""The section ``train`` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bot_dist.recipe.texts import TextConfig
from bot_dist.recipe.values import Bytes, Config


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
