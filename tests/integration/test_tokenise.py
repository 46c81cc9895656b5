"""Tokenising by Ray actors against the same work done in this process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bot_dist.data import tokenise
from bot_dist.data.batches import TokenFile, prepare_tokens
from bot_dist.errors import InputError
from bot_dist.recipe import ClusterConfig, TrainConfig
from bot_dist.storage.files import write_file

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def prepare(
    shakespeare: str, pico_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TokenFile]:
    """Tokenise a play and JSON lines, in some 30 shards."""
    monkeypatch.setattr(tokenise, "SMALLEST", 2**13)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": f"LINE {i} " * (i % 50)}) + "\n" for i in range(1000)))

    def prepare(folder: str, text: tuple[str, ...] = (shakespeare, str(lines))) -> TokenFile:
        return prepare_tokens(
            TrainConfig(text=text), str(pico_tokenizer), 64, tmp_path / folder, cluster=ClusterConfig()
        )

    return prepare


def test_actors_write_the_same_bytes_as_one_process(
    prepare: Callable[..., TokenFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = prepare("here")
    monkeypatch.setattr(tokenise, "LOCAL", 0)
    by_ray = prepare("ray")
    files = sorted(path.name for path in Path(here.url).iterdir())
    assert len(files) > 40
    assert files == sorted(path.name for path in Path(by_ray.url).iterdir())
    for name in files:
        assert (Path(here.url) / name).read_bytes() == (Path(by_ray.url) / name).read_bytes()
    assert dataclasses.replace(by_ray, url=here.url) == here


def test_an_error_of_an_actor_is_that_of_the_text(
    prepare: Callable[..., TokenFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "LOCAL", 0)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "A"}\n' * 3000 + "[]\n")
    with pytest.raises(InputError, match=r"^train\.text: .*bad\.jsonl, line 3001, is no JSON object but a list"):
        prepare("bad", (str(bad),))
    assert not list(tmp_path.glob("bad/tokens/*/manifest.json"))


def test_texts_and_tokens_on_object_storage(
    prepare: Callable[..., TokenFile],
    pico_tokenizer: Path,
    tmp_path: Path,
    s3_environment: object,
) -> None:
    here = prepare("here", (str(tmp_path / "lines.jsonl"),))
    for number in range(2):
        write_file(f"s3://tests/texts/{number}.jsonl", (tmp_path / "lines.jsonl").read_bytes())
    fields = {"text": ("s3://tests/texts/*.jsonl",), "token_cache": "s3://tests/tokens"}
    twice = prepare_tokens(TrainConfig(**fields), str(pico_tokenizer), 64, tmp_path)
    assert twice.url.startswith("s3://tests/tokens/")
    assert twice.tokens == 2 * here.tokens
    assert twice.held_out_samples().equal(here.held_out_samples())
    assert prepare_tokens(TrainConfig(**fields), str(pico_tokenizer), 64, tmp_path) == twice
    assert not (tmp_path / "tokens").exists()
