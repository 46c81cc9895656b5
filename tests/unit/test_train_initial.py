"""Training from scratch reads weights that depend on the seed, the name and the place, and on nothing else."""

import math

import pytest
import torch

from bot_dist.errors import SourceError
from bot_dist.model import Model, model_of
from bot_dist.tensors import flat_boxes, grid, whole
from bot_dist.tensors.random import BLOCK
from bot_dist.train.initial import InitialSource

LLAMA = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 700,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 1500,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 48,
    "n_head": 4,
    "n_layer": 3,
    "vocab_size": 100,
    "n_positions": 32,
    "initializer_range": 0.1,
}


def parameters(model: Model):
    return {p.name: p for _, _, p in model.parameters()}


def test_values_do_not_depend_on_the_boxes_they_are_read_by():
    model = model_of(LLAMA)
    source = InitialSource(model, seed=3)
    for p in parameters(model).values():
        full = source.read(p, whole(p.sizes))
        assert full.shape == p.sizes
        for box in grid(whole(p.sizes), [max(1, n // 2) for n in p.sizes]):
            assert torch.equal(source.read(p, box), full[tuple(slice(*r) for r in box)])
        start, stop = p.size // 3, p.size - p.size // 5
        flat = torch.cat([source.read(p, box).reshape(-1) for box in flat_boxes(p.sizes, start, stop)])
        assert torch.equal(flat, full.reshape(-1)[start:stop])


def test_blocks_are_drawn_independently():
    model = model_of(LLAMA)
    p = parameters(model)["model.embed_tokens.weight"]
    flat = InitialSource(model, seed=3).read(p, whole(p.sizes)).reshape(-1)
    assert p.size > 2 * BLOCK
    assert not torch.equal(flat[:BLOCK], flat[BLOCK : 2 * BLOCK])


def test_seed_and_name_decide():
    model = model_of(LLAMA)
    p = parameters(model)
    q0, q1 = p["model.layers.0.self_attn.q_proj.weight"], p["model.layers.1.self_attn.q_proj.weight"]
    a, b = InitialSource(model, seed=0), InitialSource(model, seed=1)
    assert torch.equal(a.read(q0, whole(q0.sizes)), InitialSource(model, seed=0).read(q0, whole(q0.sizes)))
    assert not torch.equal(a.read(q0, whole(q0.sizes)), b.read(q0, whole(q0.sizes)))
    assert not torch.equal(a.read(q0, whole(q0.sizes)), a.read(q1, whole(q1.sizes)))


def test_llama_is_normal_with_ones_for_norms():
    model = model_of(LLAMA)
    source, p = InitialSource(model, seed=0), parameters(model)
    table, norm = p["model.embed_tokens.weight"], p["model.norm.weight"]
    values = source.read(table, whole(table.sizes))
    assert values.std().item() == pytest.approx(0.05, rel=0.02)
    assert abs(values.mean().item()) < 0.001
    assert torch.equal(source.read(norm, whole(norm.sizes)), torch.ones(norm.sizes))


def test_gpt2_scales_down_what_enters_the_residual_stream():
    model = model_of(GPT2)
    source, p = InitialSource(model, seed=0), parameters(model)
    into, other = p["transformer.h.0.mlp.c_proj.weight"], p["transformer.h.0.mlp.c_fc.weight"]
    assert source.read(other, whole(other.sizes)).std().item() == pytest.approx(0.1, rel=0.05)
    assert source.read(into, whole(into.sizes)).std().item() == pytest.approx(0.1 / math.sqrt(6), rel=0.05)
    bias = p["transformer.h.0.mlp.c_fc.bias"]
    assert not source.read(bias, whole(bias.sizes)).any()


def test_check_names_what_differs():
    model = model_of(LLAMA)
    source = InitialSource(model, seed=0)
    source.check(model)
    with pytest.raises(SourceError, match=r"'model\.layers\.\d\.mlp\.\w+_proj\.weight' has sizes .*700"):
        source.check(model.resized({"mlp": 64}))
