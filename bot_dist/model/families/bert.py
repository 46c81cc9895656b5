"""BERT: a LayerNorm after every sublayer, learned positions and token types, MLM head tied.

Which heads there are depends on the class that ``architectures`` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.model import parts
from bot_dist.model.declaration import Family, Weight, size_field
from bot_dist.model.parts import FROM_WIDTH, INTO_WIDTH, bias, layer_norm, linear, matrix
from bot_dist.tensors.axes import fixed, pointwise, read, write

HEADS_OUT = (write("heads"), write("head_dim"))
HEADS_IN = (read("heads"), read("head_dim"))
EMBEDDINGS, BLOCK = "bert.embeddings.", "bert.encoder.layer.{layer}."
ATTENTION, PREDICTIONS = BLOCK + "attention.", "cls.predictions."

WEIGHTS = (
    Weight(name="embed", hf=EMBEDDINGS + "word_embeddings.weight", dims=((fixed("vocab"),), INTO_WIDTH), kind="table"),
    Weight(
        name="position",
        hf=EMBEDDINGS + "position_embeddings.weight",
        dims=((pointwise("position"),), INTO_WIDTH),
        kind="table",
    ),
    Weight(
        name="token_type",
        hf=EMBEDDINGS + "token_type_embeddings.weight",
        dims=((fixed("token_type"),), INTO_WIDTH),
        kind="table",
    ),
    *layer_norm("norm", EMBEDDINGS + "LayerNorm"),
    *linear("attn.q", ATTENTION + "self.query", HEADS_OUT, FROM_WIDTH, query=True),
    *linear("attn.k", ATTENTION + "self.key", HEADS_OUT, FROM_WIDTH),
    *linear("attn.v", ATTENTION + "self.value", HEADS_OUT, FROM_WIDTH),
    *linear("attn.out", ATTENTION + "output.dense", INTO_WIDTH, HEADS_IN, into_residual=True),
    *layer_norm("attn.norm", ATTENTION + "output.LayerNorm", speaks="first"),
    *linear("mlp.up", BLOCK + "intermediate.dense", (write("mlp"),), FROM_WIDTH),
    *linear("mlp.down", BLOCK + "output.dense", INTO_WIDTH, (read("mlp"),), into_residual=True),
    *layer_norm("mlp.norm", BLOCK + "output.LayerNorm", speaks="last"),
    *linear("pooler", "bert.pooler.dense", INTO_WIDTH, FROM_WIDTH, pooled=True, feature="pooler"),
    *linear("head.transform", PREDICTIONS + "transform.dense", INTO_WIDTH, FROM_WIDTH, feature="mlm"),
    *layer_norm("head.norm", PREDICTIONS + "transform.LayerNorm", feature="mlm"),
    bias("head", "cls.predictions", (fixed("vocab"),), feature="mlm"),
    bias("head.decoder", PREDICTIONS + "decoder", (fixed("vocab"),), feature="untied"),
    *linear(
        "next_sentence",
        "cls.seq_relationship",
        (fixed("next_sentence"),),
        FROM_WIDTH,
        pooled=True,
        feature="next_sentence",
    ),
)

HEAD = matrix("head", PREDICTIONS + "decoder", (fixed("vocab"),), FROM_WIDTH, feature="mlm")

CLASSES = {
    "BertForMaskedLM": {"mlm"},
    "BertForPreTraining": {"mlm", "pooler", "next_sentence"},
    "BertModel": {"pooler"},
}

RESIZABLE = {
    "layers": "number of blocks",
    "embed": "width of the residual stream; always heads × head_dim in BERT",
    "mlp": "FFN units",
    "heads": "attention heads",
    "head_dim": "width of a head",
    "context": "positions",
}


def architecture(config: Mapping[str, Any]) -> str:
    return parts.named_class(config, CLASSES, "bert")


def tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", True))


def features(config: Mapping[str, Any]) -> frozenset[str]:
    present = CLASSES[architecture(config)]
    return frozenset(present | {"untied"} if "mlm" in present and not tied(config) else present)


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    parts.refuse(config, "bert", is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    embed, heads, head_dim = parts.heads_of_width(config, "bert", "hidden_size", "num_attention_heads")
    return {
        "layer": size_field(config, "num_hidden_layers", "bert"),
        "embed": embed,
        "mlp": size_field(config, "intermediate_size", "bert"),
        "heads": heads,
        "head_dim": head_dim,
        "vocab": size_field(config, "vocab_size", "bert"),
        "position": size_field(config, "max_position_embeddings", "bert"),
        "token_type": size_field(config, "type_vocab_size", "bert", default=2),
        "next_sentence": 2,
    }


def resize(config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    now = sizes(config)
    embed, heads = parts.resize_heads_of_width(now, target, "bert")
    return {
        **config,
        "num_hidden_layers": target.get("layers", now["layer"]),
        "hidden_size": embed,
        "intermediate_size": target.get("mlp", now["mlp"]),
        "num_attention_heads": heads,
        "max_position_embeddings": target.get("context", now["position"]),
    }


FAMILY = Family(
    name="bert",
    model_types=("bert",),
    weights=WEIGHTS,
    head=HEAD,
    before_head=("head.norm.weight", "head.norm.bias"),
    tensor_axes=("heads", "mlp", "vocab"),
    resizable=RESIZABLE,
    fixed={"vocab": parts.VOCABULARY},
    sizes=sizes,
    resize=resize,
    tied=tied,
    architecture=architecture,
    objective="masked",
    features=features,
    norm="layer",
    post_norm=True,
    half_steps=False,
    optional_prefix="bert.",
    tied_biases={PREDICTIONS + "decoder.bias": PREDICTIONS + "bias"},
    renamed={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
    ignored=(r"(bert\.)?pooler\..*", r"cls\.seq_relationship\..*", r"cls\.predictions\.decoder\.bias"),
)
