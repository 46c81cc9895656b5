"""The model card of an export says what the model is made of, and gives nothing away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot_dist.formats import card
from bot_dist.formats.card import known_fields, origin_of, shown
from bot_dist.formats.companions import Companions
from bot_dist.formats.open import open_source
from bot_dist.pipeline.export import export_store
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from tests.conftest import Pico

Maker = Callable[..., Pico]

CARD = """---
license: other
license_name: own
license_link: LICENSE
language: [en, no]
base_model: someone/base
pipeline_tag: text-generation
tags: [chat, bot_dist, 3]
---
# Source
"""


def front_matter(folder: Path) -> dict[str, Any]:
    text = (folder / "README.md").read_text()
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


@pytest.fixture
def source(pico_llama: Maker) -> Path:
    folder = pico_llama().folder
    (folder / "README.md").write_bytes(CARD.replace("\n", "\r\n").encode())  # as some editors save it
    (folder / "LICENSE").write_text("Do what you like.")
    return folder


def resized(source: Path, store: Path) -> str:
    recipe = {"source": str(source), "output": str(store.parent), "target_url": str(store), "target": {"mlp": 80}}
    transfer(make_recipe({**recipe, "cluster": {"executor": "local"}, "calibrate": {"column": "[text]"}}))
    return str(store)


def test_a_store_s_export_says_how_it_was_made(source: Path, tmp_path: Path) -> None:
    url = resized(source, tmp_path / "store")
    export_store(url, str(tmp_path / "Pico-80"))
    found = front_matter(tmp_path / "Pico-80")
    assert found["license"], found["license_name"] == ("other", "own")
    assert found["language"] == ["en", "no"]
    assert found["base_model"] == "someone/base"
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-generation")
    assert found["tags"] == ["chat", "bot_dist"]
    text = (tmp_path / "Pico-80" / "README.md").read_text()
    reader = origin_of(open_source(url)).stores[0]
    for said in (
        "# Pico-80",
        "`pico-0`, resized by bot_dist",
        "| mlp | 40 | 80 |",
        f"plan: `{reader.provenance['plan']['digest']}`",
        f"store: `{reader.digest}`",
        "`target.mlp=80`",
        "`calibrate.column=[text]`",
        "along mlp: ",
        "transformers 5.",
        "That of the source: own.",
        "`LICENSE`",
    ):
        assert said in text, said
    assert str(tmp_path) not in text


def test_a_plain_source_s_export_has_one_too(source: Path, tmp_path: Path) -> None:
    export_store(str(source), str(tmp_path / "out"), dtype="bf16")
    text = (tmp_path / "out/README.md").read_text()
    assert "`pico-0`, converted by bot_dist" in text
    assert "weights in bfloat16" in text
    assert "header's SHA-256" in text
    assert str(tmp_path) not in text


def test_a_trained_store_is_followed_to_what_it_was_made_from(source: Path, tmp_path: Path) -> None:
    from bot_dist.model import model_of
    from bot_dist.store import CheckpointReader, CheckpointWriter, store_layout

    reader = CheckpointReader(resized(source, tmp_path / "store"))
    parameters = [p for _, _, p in model_of(reader.config).parameters()]
    trained = str(tmp_path / "trained")
    writer = CheckpointWriter.create(
        trained, [store_layout(p) for p in parameters], config=reader.config, attempt="run"
    )
    digests = {
        p.name: writer.write_array(p.name, reader.read(p, tuple((0, n) for n in p.sizes)).float()) for p in parameters
    }
    held_out = [{"step": 0, "loss": 4.25}, {"step": 9, "loss": 3.125}]
    provenance = {"run": "transferred", "steps": 9, "source": reader.provenance(), "held_out": held_out}
    writer.commit(digests, provenance)
    export_store(trained, str(tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text()
    assert "held-out loss after step 9: 3.1250" in text
    assert "`target.mlp=80`" in text
    assert "`pico-0`, resized" in text
    (tmp_path / "store/manifest.json").unlink()
    export_store(trained, str(tmp_path / "other"))
    assert "`target.mlp=80`" not in (tmp_path / "other/README.md").read_text()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/home/someone/models/Llama", "Llama"),
        ("models/Llama/", "Llama"),
        ("file:///home/someone/Llama.gguf", "Llama.gguf"),
        ("s3://key:secret@bucket/Llama?X-Amz-Signature=1", "s3://bucket/Llama"),
        ("hf://org/Llama", "hf://org/Llama"),
        ("package://pico/model.gguf", "package://pico/model.gguf"),
    ],
)
def test_a_source_is_named_without_its_place_here(url: str, name: str) -> None:
    assert shown(url) == name


@pytest.mark.parametrize(
    ("url", "hub", "title"),
    [
        ("hf://org/Llama-1B", "org/Llama-1B", "Llama-1B"),
        ("hf://org/Llama-1B@main/sub", "org/Llama-1B", "Llama-1B"),
        ("hf://datasets/org/Llama", None, "Llama"),
        ("/x/Llama.gguf", None, "Llama"),
        ("https://host/Llama", None, "Llama"),
    ],
)
def test_a_source_on_the_hub_is_the_base_model(url: str, hub: str | None, title: str) -> None:
    origin = card.Origin((), {"url": url})
    assert (origin.hub, origin.title) == (hub, title)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no front matter",
        "---\nlicense: [\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: {a: 1}\n---\n",
        "\xff\xfe",
        "---\n" * 9,
    ],
)
def test_cards_that_say_nothing_are_passed_over(text: str) -> None:
    assert known_fields(Companions("x", {"README.md": text.encode("latin-1")})) == {}


def test_no_path_in_a_note_or_a_setting_is_given_away(source: Path, tmp_path: Path) -> None:
    url = resized(source, tmp_path / "store")
    manifest = tmp_path / "store/manifest.json"
    from bot_dist.store.manifest import digest

    body = json.loads(manifest.read_text())
    body.pop("digest")
    body["provenance"]["plan"]["notes"] = ["read /home/jo/secret/text.txt, and ~/other; see https://x.org/a/b", "`<b>|"]
    body["provenance"]["recipe"]["calibrate"]["text"] = ["/home/jo/plays/hamlet.txt"]
    manifest.write_text(json.dumps({**body, "digest": digest(body)}))
    export_store(url, str(tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text()
    assert "read text.txt, and other; see https://x.org/a/b" in text
    assert "hamlet.txt" in text
    assert "/home" not in text
    assert "<b>" not in text
