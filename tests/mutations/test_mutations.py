"""Whatever is done to an input, a command does what it should or ends in one error, soon, within its memory, and leaves
nothing behind that looks complete.

Every kind of input is mutated by seeds: some in CI, several hundred in the long lane. A failing case is named by kind
and seed, and runs by itself: ``-k "config-17"``.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bot_dist.errors import MOST_CHARACTERS
from tests.mutations.mutate import changed, damaged, json_text
from tests.mutations.runner import CPU_S, MEMORY_BYTES, Outcome, Runner

SHORT, LONG = 7, 40
"""Seeds of each kind."""
LOCAL = ["--executor", "local"]
AVERAGED = ["--embed", "12", "--set", "transfer.analysis=wavelet", *LOCAL]
FITTED = ["--embed", "12", *LOCAL]
FITTED += [
    f"--set=calibrate.{key}" for key in ("tokens=256", "context=32", "held_out=32", "passes=one", "allow_mismatch=true")
]
SCALE, EXPORT = ["scale", "src", "out", *AVERAGED], ["export", "out", "hf"]
CALIBRATED = ["scale", "src", "out", *FITTED]

COMPLETE = ("out/manifest.json", "hf/config.json")
"""What a command has done shows in these."""

Commands = tuple[list[str], ...]
Seed = random.Random


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input."""

    base: str
    """Folder that is copied."""
    mutate: Callable[[Path, Seed], None]
    commands: Callable[[Seed], Commands]


def _json(*names: str) -> Callable[[Path, Seed], None]:
    """Change one of some JSON files."""

    def mutate(folder: Path, seed: Seed) -> None:
        path = folder / seed.choice(names)
        path.write_bytes(json_text(json.loads(path.read_bytes()), seed))

    return mutate


def _bytes(*patterns: str, within: int | None = None) -> Callable[[Path, Seed], None]:
    """Damage one of some files."""

    def mutate(folder: Path, seed: Seed) -> None:
        path = seed.choice(sorted(path for pattern in patterns for path in folder.glob(pattern)))
        path.write_bytes(damaged(path.read_bytes(), seed, within))

    return mutate


def _safetensors(folder: Path, seed: Seed) -> None:
    path = folder / "src/model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if seed.random() < 0.4:
        path.write_bytes(damaged(data, seed, within=8 + length))
        return
    header = json_text(json.loads(data[8 : 8 + length]), seed)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def _lines(folder: Path, seed: Seed) -> None:
    path = folder / "text.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if seed.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), seed, within=2_000))
        return
    at = seed.randrange(4)
    lines[at] = json_text(json.loads(lines[at]), seed) + b"\n"
    path.write_bytes(b"".join(lines))


def _recipe(folder: Path, seed: Seed) -> None:
    import yaml

    path = folder / "recipe.yaml"
    if seed.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), seed))
        return
    if seed.random() < 0.2:
        odd = (
            "2001-13-45",
            "!!int x",
            "!!timestamp x",
            "&a [*a]",
            "[" * 2_000,
            "!!python/none x",
            "9" * 5_000,
            "? [x]",
        )
        path.write_text(path.read_text() + f"import_to: {seed.choice(odd)}\n")
        return
    text = yaml.safe_dump(changed(yaml.safe_load(path.read_text()), seed), allow_unicode=False)
    path.write_text(text)


def _either(*ways: Callable[[Path, Seed], None]) -> Callable[[Path, Seed], None]:
    return lambda folder, seed: seed.choice(ways)(folder, seed)


def _fixed(*commands: list[str]) -> Callable[[Seed], Commands]:
    return lambda seed: commands


def _one_of(*commands: Commands) -> Callable[[Seed], Commands]:
    return lambda seed: seed.choice(commands)


def _of_text(name: str) -> Callable[[Seed], Commands]:
    return _fixed([*CALIBRATED, "--calibrate", name])


STORE_READ: tuple[Commands, ...] = (
    (["verify", "store"],),
    (["inspect", "store", "--json"], ["verify", "store"]),
    (["scale", "store", "out", *AVERAGED], ["verify", "store"]),
    (["export", "store", "hf"], ["verify", "store"]),
)
TOKENIZERS = ("src/tokenizer.json", "src/tokenizer_config.json")
VIT = ["scale", "src", "out", "--heads", "1", "--embed", "8", *FITTED[2:], "--set=train.images=images"]

KINDS = {
    "config": Kind(base="llama", mutate=_json("src/config.json"), commands=_fixed(SCALE, EXPORT)),
    "generation": Kind(base="llama", mutate=_json("src/generation_config.json"), commands=_fixed(SCALE, EXPORT)),
    "safetensors": Kind(base="llama", mutate=_safetensors, commands=_fixed(SCALE, ["verify", "out"])),
    "index": Kind(
        base="sharded", mutate=_json("src/model.safetensors.index.json"), commands=_fixed(SCALE, ["verify", "out"])
    ),
    "gguf": Kind(
        base="gguf",
        mutate=_bytes("src.gguf", within=14_000),
        commands=_fixed(["scale", "src.gguf", "out", *AVERAGED], ["verify", "out"]),
    ),
    "tokenizer": Kind(
        base="llama",
        mutate=_either(_json(*TOKENIZERS), _json(*TOKENIZERS), _bytes(*TOKENIZERS)),
        commands=_of_text("text.txt"),
    ),
    "recipe": Kind(base="llama", mutate=_recipe, commands=_fixed(["plan", "recipe.yaml"])),
    "json-lines": Kind(base="llama", mutate=_lines, commands=_of_text("text.jsonl")),
    "parquet": Kind(base="llama", mutate=_bytes("text.parquet"), commands=_of_text("text.parquet")),
    "csv": Kind(base="llama", mutate=_bytes("text.csv", within=3_000), commands=_of_text("text.csv")),
    "text": Kind(base="llama", mutate=_bytes("text.txt", within=3_000), commands=_of_text("text.txt")),
    "images": Kind(base="vit", mutate=_bytes("images/*/*.png"), commands=_fixed(VIT)),
    "processor": Kind(base="vit", mutate=_json("src/preprocessor_config.json"), commands=_fixed(VIT)),
    "store": Kind(
        base="store",
        mutate=_either(
            _json("store/manifest.json"),
            _bytes("store/**/zarr.json", "store/manifest.json"),
            _bytes("store/data/*/*/c.*"),
            _bytes("store/data/*/tokenizer/*"),
        ),
        commands=_one_of(*STORE_READ),
    ),
}


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.stop()


@pytest.fixture(scope="session")
def bases(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Inputs as they should be."""
    from tests.mutations.inputs import make_bases

    folder = tmp_path_factory.mktemp("bases")
    return make_bases(folder, lambda where, *command: runner.run(where, [*command]))


def cases() -> list[Any]:
    return [
        pytest.param(kind, seed, id=f"{kind}-{seed}", marks=[pytest.mark.slow] if seed >= SHORT else [])
        for kind in KINDS
        for seed in range(LONG)
    ]


@pytest.mark.xdist_group("mutations")
@pytest.mark.parametrize("kind", KINDS)
def test_an_input_as_it_should_be_is_taken(kind: str, runner: Runner, bases: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bases[KINDS[kind].base], tmp_path / "case")
    outcome = runner.run(tmp_path / "case", *KINDS[kind].commands(random.Random(0)))
    assert outcome.status == 0, outcome.err


@pytest.mark.xdist_group("mutations")
@pytest.mark.parametrize(("kind", "number"), cases())
def test_a_mutation_is_taken_or_refused(
    kind: str, number: int, runner: Runner, bases: dict[str, Path], tmp_path: Path
) -> None:
    seed, folder, base = random.Random(f"{kind}-{number}"), tmp_path / "case", bases[KINDS[kind].base]
    shutil.copytree(base, folder)
    KINDS[kind].mutate(folder, seed)
    outcome = runner.run(folder, *KINDS[kind].commands(seed))
    told = f"{outcome.verb}: status {outcome.status}, {outcome.seconds:.1f} s, {outcome.err[-3_000:]}"
    assert outcome.seconds < CPU_S / 2, told
    assert outcome.grown < MEMORY_BYTES, told
    assert "S3cr3t" not in outcome.out + outcome.err, told
    if outcome.status == 0:
        assert kind != "store" or same(folder / "store", base / "store"), "damage was not noticed"
        return
    check_refusal(outcome, told)
    earlier = COMPLETE[: {"export": 1, "verify": 2}.get(outcome.verb, 0)]
    for made in COMPLETE if kind != "store" or shards(folder) != shards(base) else ():
        assert (made in earlier and kind != "store") or not (folder / made).exists(), f"{made} looks complete: {told}"


def check_refusal(outcome: Outcome, told: str) -> None:
    """One error, short, of printable lines, and no traceback."""
    found = outcome.verb in ("verify", "diff") and outcome.status == 1
    assert outcome.status in (1, 2), told
    errors = outcome.err.count("error: ")
    assert errors == 1 or (found and errors == 0), told
    message = outcome.err.partition("error: ")[2]
    assert len(message) <= MOST_CHARACTERS + 100, told
    assert "Traceback" not in outcome.err, told
    assert "not enough memory" not in outcome.err, told
    assert all(line.isprintable() for line in message.splitlines()), told


def shards(folder: Path) -> dict[str, bytes]:
    """Those of the store, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("store/data/*/*/c.*")}


def same(store: Path, base: Path) -> bool:
    """Whether two stores hold the same, but for how JSON is written."""

    def contents(folder: Path) -> dict[str, Any]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): json.loads(path.read_bytes())
            if path.name == "zarr.json"
            else path.read_bytes()
            for path in files
        }

    return contents(store) == contents(base)
