"""ViT and DeiT: patches, class (and distillation) tokens, learned positions, LayerNorm before every sublayer.

Which heads there are depends on the class that ``architectures`` names. Files keep the names of older versions of
``transformers``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from bot_dist.model import parts
from bot_dist.model.declaration import Family, Init, Weight, size_field
from bot_dist.model.parts import FROM_WIDTH, INTO_WIDTH, bias, layer_norm, linear
from bot_dist.tensors.axes import fixed, read, write

HEADS_OUT = (write("heads"), write("head_dim"))
HEADS_IN = (read("heads"), read("head_dim"))
CLASSES_OUT = (fixed("class"),)
POOLED_OUT = (fixed("pooled"),)

TOKENS = {"vit": 1, "deit": 2}
"""Tokens before the patches: for the class, and for distillation."""

CLASSES = {
    "vit": {"ViTForImageClassification": "classifier", "ViTModel": "pooler"},
    "deit": {
        "DeiTForImageClassification": "classifier",
        "DeiTForImageClassificationWithTeacher": "teacher",
        "DeiTModel": "pooler",
    },
}


def weights(family: str, embedding_init: Init) -> tuple[Weight, ...]:
    embeddings, block, inside = f"{family}.embeddings.", family + ".encoder.layer.{layer}.", family + ".layers.{layer}."
    attention = block + "attention.attention."

    def token(name: str, hf: str, **options: Any) -> Weight:
        return Weight(name=name, hf=embeddings + hf, kind="table", init=embedding_init, **options)

    def qkv(name: str, hf: str, **options: Any) -> tuple[Weight, Weight]:
        within = f"{inside}attention.{name}_proj"
        return linear(
            f"attn.{name}", attention + hf, HEADS_OUT, FROM_WIDTH, inside=within, bias_feature="qkv_bias", **options
        )

    return (
        Weight(
            name="patch.weight",
            hf=embeddings + "patch_embeddings.projection.weight",
            dims=(INTO_WIDTH, (fixed("channel"),), (fixed("patch_height"),), (fixed("patch_width"),)),
            into_residual=True,
        ),
        bias("patch", embeddings + "patch_embeddings.projection", INTO_WIDTH, into_residual=True),
        token("class_token", "cls_token", dims=((), (), INTO_WIDTH)),
        token("distillation_token", "distillation_token", dims=((), (), INTO_WIDTH), feature="distillation"),
        token("position", "position_embeddings", dims=((), (fixed("position"),), INTO_WIDTH)),
        *layer_norm("attn.norm", block + "layernorm_before", inside=inside + "layernorm_before"),
        *qkv("q", "query", query=True),
        *qkv("k", "key"),
        *qkv("v", "value"),
        *linear(
            "attn.out",
            block + "attention.output.dense",
            INTO_WIDTH,
            HEADS_IN,
            inside=inside + "attention.o_proj",
            into_residual=True,
        ),
        *layer_norm("mlp.norm", block + "layernorm_after", inside=inside + "layernorm_after"),
        *linear("mlp.up", block + "intermediate.dense", (write("mlp"),), FROM_WIDTH, inside=inside + "mlp.fc1"),
        *linear(
            "mlp.down",
            block + "output.dense",
            INTO_WIDTH,
            (read("mlp"),),
            inside=inside + "mlp.fc2",
            into_residual=True,
        ),
        *layer_norm("norm", f"{family}.layernorm"),
        *linear("pooler", f"{family}.pooler.dense", POOLED_OUT, FROM_WIDTH, pooled=True, feature="pooler"),
        *linear("classifier", "classifier", CLASSES_OUT, FROM_WIDTH, pooled=True, feature="classifier"),
        *linear("class", "cls_classifier", CLASSES_OUT, FROM_WIDTH, pooled=True, feature="teacher"),
        *linear("distillation", "distillation_classifier", CLASSES_OUT, FROM_WIDTH, pooled=True, feature="teacher"),
    )


RESIZABLE = {
    "layers": "number of blocks",
    "embed": "width of the residual stream; always heads × head_dim in ViT",
    "mlp": "FFN units",
    "heads": "attention heads",
    "head_dim": "width of a head",
}


def sizes(family: str, config: Mapping[str, Any]) -> dict[str, int]:
    embed, heads, head_dim = parts.heads_of_width(config, family, "hidden_size", "num_attention_heads")
    image_height, image_width = sides(config, "image_size", 224, family)
    patch_height, patch_width = sides(config, "patch_size", 16, family)
    patches = (image_height // patch_height) * (image_width // patch_width)
    return {
        "layer": size_field(config, "num_hidden_layers", family),
        "embed": embed,
        "mlp": size_field(config, "intermediate_size", family),
        "heads": heads,
        "head_dim": head_dim,
        "channel": size_field(config, "num_channels", family, default=3),
        "patch_height": patch_height,
        "patch_width": patch_width,
        "position": TOKENS[family] + patches,
        **({"class": classes(config)} if classes(config) else {}),
        "pooled": size_field(config, "pooler_output_size", family, default=embed),
    }


def sides(config: Mapping[str, Any], key: str, default: int, family: str) -> tuple[int, int]:
    """The height and width that a field has. Raises FamilyError unless they are positive integers."""
    value = config.get(key, default)
    height, width = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    return size_field({key: height}, key, family), size_field({key: width}, key, family)


def classes(config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    return len(labels) if labels is not None else int(config.get("num_labels", 2))


def features(family: str, config: Mapping[str, Any]) -> frozenset[str]:
    head = CLASSES[family][architecture(family, config)]
    present = {"qkv_bias"} if config.get("qkv_bias", True) else set()
    if head == "pooler" or classes(config):
        present.add(head)
    return frozenset(present | ({"distillation"} if family == "deit" else set()))


def architecture(family: str, config: Mapping[str, Any]) -> str:
    return parts.named_class(config, CLASSES[family], family)


def resize(family: str, config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    now = sizes(family, config)
    embed, heads = parts.resize_heads_of_width(now, target, family)
    return {
        **config,
        "num_hidden_layers": target.get("layers", now["layer"]),
        "hidden_size": embed,
        "intermediate_size": target.get("mlp", now["mlp"]),
        "num_attention_heads": heads,
        "pooler_output_size": now["pooled"],
    }


def family(name: str, embedding_init: Init) -> Family:
    return Family(
        name=name,
        model_types=(name,),
        weights=weights(name, embedding_init),
        head=None,
        before_head=(),
        tensor_axes=("heads", "mlp"),
        resizable=RESIZABLE,
        fixed={"context": "the number of tokens follows from image_size and patch_size"},
        sizes=functools.partial(sizes, name),
        resize=functools.partial(resize, name),
        tied=lambda config: False,
        architecture=functools.partial(architecture, name),
        objective="image",
        features=functools.partial(features, name),
        norm="layer",
        optional_prefix=f"{name}.",
        ignored=(rf"({name}\.)?pooler\..*",),
    )


FAMILY = family("vit", "normal")
