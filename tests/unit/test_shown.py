"""What a person sees: narrow terminals, logs, units, options in refusals; and what programs read."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bot_dist.cli import main, progress, terminal
from bot_dist.cli.show.diff import show_diff
from bot_dist.cli.show.inspect import show_operators
from bot_dist.compare.recipe import ComparisonRecipe, load_comparison
from bot_dist.events.checkpoints import ExportStarted, ExportWritten, VerifyRead, VerifyStarted
from bot_dist.events.transfer import Planned
from bot_dist.formats.diff import Diff, Difference, Values
from bot_dist.recipe import (
    CalibrateConfig,
    ClusterConfig,
    Recipe,
    TrainConfig,
    TransferConfig,
    commented,
    load_recipe,
    read_yaml,
    schema,
)
from bot_dist.store.manifest import digest
from bot_dist.store.summary import OperatorRow
from tests.conftest import Pico

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml"))


class Screen:
    """What is shown on a terminal of so many columns, or in a file."""

    def __init__(self, columns: int, *, is_terminal: bool) -> None:
        self.file = io.StringIO()
        self.console = terminal._Terminal(
            highlight=False,
            soft_wrap=True,
            width=columns,
            file=self.file,
            force_terminal=is_terminal,
            color_system=None,
        )

    @property
    def text(self) -> str:
        return self.file.getvalue()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    """``screen(columns, is_terminal=False)``, in place of the real one."""

    def make(columns: int = 80, *, is_terminal: bool = False) -> Screen:
        made = Screen(columns, is_terminal=is_terminal)
        for module in (progress, terminal):
            monkeypatch.setattr(module, "console", made.console)
        return made

    return make


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("columns", [80, 200])
def test_no_column_that_matters_vanishes(
    columns: int, screen: Callable[..., Screen], pico_llama: Callable[..., Pico], tmp_path: Path
) -> None:
    source, store = pico_llama().url, str(tmp_path / "s")
    shown = screen(columns)
    assert run("plan", source, "--embed", "48", "--layers", "6", "--json") == 0
    assert run("plan", source, "--embed", "48", "--layers", "6") == 0
    lines = [line for line in shown.text.splitlines() if "│" in line]
    assert all(len(line) <= columns for line in lines)
    words = " ".join(shown.text.replace("│", " ").split())
    for module in ("attn.q", "mlp.down", "norm"):
        assert module in words
    assert "layer identity" in words
    assert "24" in words
    assert "48" in words
    assert ("written" in lines[0] or "written" in shown.text.splitlines()[2]) == (columns == 200)
    assert run("scale", source, store, "--executor", "local") == 0
    shown = screen(columns)
    assert run("inspect", store) == 0
    words = " ".join(shown.text.split())
    for axis in ("vocab 64", "embed 24", "kv_heads 2", "head_dim 8", "mlp 40"):
        assert axis in words
    assert ("shard" in shown.text.split("\n")[2]) == (columns == 200)


def test_names_are_whole_in_narrow_tables(screen: Callable[..., Screen]) -> None:
    shown = screen(80)
    name = "model.layers.0.post_attention_layernorm.weight"
    used = (("attn.q", "embed"), ("attn.k", "embed"), ("attn.v", "embed"))
    stored = {"dtype": "float32", "nbytes": 4 * 30 * 288 * 576, "digest": "1b06b0bdb8" * 3}
    row = OperatorRow(
        store="operators/x",
        name="embed.read.attn.norm",
        kind="matrix",
        shape=(288, 576),
        layers=30,
        used_for=used,
        **stored,
    )
    show_operators("s", [row])
    values = Values(elements=1_000_000, max_abs=1e-7, relative=1e-8)
    differences = [Difference(name=name, what="shape 576×576, 288×576; learning rate factor 1, 2", values=values)]
    config = {"max_position_embeddings": (1, 2)}
    show_diff("a", "b", Diff(config=config, parameters=differences, by_digests=1, by_reading=2, undecided={}))
    tables = [line for line in shown.text.splitlines() if line.startswith(("│", "  "))]
    assert all(len(line) <= 80 for line in tables)
    assert "…" not in shown.text
    joined = re.sub(r"[\s│]", "", shown.text)
    for whole in ("embed.read.attn.norm", "288×576", "usedfor", "attn.v:embed", "max_position_embeddings", "1e-07"):
        assert whole in joined
    first = "".join(line.split("│")[1].strip() for line in tables if line.startswith("│"))
    assert name in first
    assert "1 parameters differ, 1 keys of config.json differ" in shown.text


def test_any_source_is_inspected(
    screen: Callable[..., Screen], pico: Callable[..., Pico], capsys: pytest.CaptureFixture[str]
) -> None:
    source = pico()
    shown = screen(120)
    assert run("inspect", source.url) == 0
    n = sum(tensor.numel() for tensor in source.tensors.values())
    assert f"{n:,} parameters" in shown.text
    assert "model_type=" in shown.text
    assert run("inspect", source.url, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_parameters"] == n
    assert found["config"]["model_type"] == source.model.config.model_type
    assert found["sizes"]["embed"] == 24
    assert sum(module["nbytes"] for module in found["modules"]) == found["nbytes"] == 4 * n


def test_verbs_speak_json(pico_llama: Callable[..., Pico], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, store = pico_llama().url, str(tmp_path / "s")
    quiet = ("--executor", "local", "-q")
    assert run("scale", source, store, *quiet) == 0
    assert capsys.readouterr().out == ""

    def told(status: int, *argv: str) -> Any:
        found = []
        for more in ((), ("--quiet",), ("--verbose",)):
            assert run(*argv, "--json", *more) == status
            found.append(json.loads(capsys.readouterr().out))
        return found[0]

    planned = told(0, "plan", source, "--mlp", "80")
    assert (planned["n_source"], planned["mesh"]) == (
        told(0, "inspect", source)["n_parameters"],
        {"tensor": 1, "data": 1},
    )
    assert {row["name"] for row in planned["rows"]} >= {"mlp.up", "attn.q"}
    hardware = "storage_gb_s=1,network_gb_s=1,device_gb_s=100"
    assert told(0, "plan", source, "--mlp", "80", "--hardware", hardware)["simulation"]["actors"]
    assert told(0, "verify", store)["intact"] is True
    assert told(0, "diff", source, store)["equal"] is True
    next(Path(store).glob("data/*/model.norm.weight/c.0")).unlink()
    (damage,) = told(1, "verify", store)["damaged"]
    assert damage["name"] == "model.norm.weight"
    terminal.console.quiet = False


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        (("--heads", "6", "--kv-heads", "4"), "--heads 8 or --heads 6 --kv-heads 3"),
        (("--heads", "5"), "--heads 4"),
        (("--embed", "26"), "--embed 24 or 28"),
        (("--memory-limit", "100"), "--memory-limit "),
        (("--tensor", "0"), "--tensor"),
        (("--gain", "loud"), "error: --gain: "),
        (("--embed", "12", "--set", "calibrate.memory_limit=10kB"), "use --set calibrate.memory_limit=1GiB"),
        (
            ("--embed", "12", "--set", "calibrate.tokens=2", "--set", "calibrate.context=2"),
            "use --set calibrate.tokens=24",
        ),
        (("--embed", "12", "--calibrate", "none.txt"), "none.txt"),
    ],
)
def test_a_refusal_names_the_options(
    options: tuple[str, ...], way_out: str, pico_llama: Callable[..., Pico], capsys: pytest.CaptureFixture[str]
) -> None:
    source = pico_llama().url
    assert run("plan", source, *options) == 2
    assert way_out in capsys.readouterr().err


def test_a_recipes_refusal_names_its_keys(
    pico_llama: Callable[..., Pico], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"source: {pico_llama().url}\noutput: {tmp_path}/o\ntarget: {{heads: 6, kv_heads: 4}}\n")
    assert run("plan", str(recipe)) == 2
    assert "target.heads=6 target.kv_heads=3" in capsys.readouterr().err


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_without_a_terminal_progress_is_a_line_every_ten_seconds_and_at_the_end(
    screen: Callable[..., Screen], clock: list[float]
) -> None:
    shown = screen(120)
    with progress.progress() as on_event:
        on_event(ExportStarted(bytes=4_000_000))
        for _ in range(4):
            clock[0] += 6.0
            on_event(ExportWritten(bytes=1_000_000))
    assert shown.text.splitlines() == [
        "export: 2.0 MB of 4.0 MB, 0.00 GB/s, 12.0 s",
        "export: 4.0 MB of 4.0 MB, 0.00 GB/s, 24.0 s",
    ]


def test_bars_end_at_their_total(screen: Callable[..., Screen]) -> None:
    shown = screen(120, is_terminal=True)
    with progress.progress() as on_event:
        on_event(VerifyStarted(bytes=1_234_567))
        for n in (1_000_000, 234_567):
            on_event(VerifyRead(bytes=n))
    assert "1.2 MB/1.2 MB" in shown.text


def test_verbose_shows_every_event(screen: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(200)
    shown.console.verbose = True
    with progress.progress() as on_event:
        on_event(Planned(digest="abc", time=1.5))
    assert '{"time": 1.5, "stage": "plan", "event": "planned", "digest": "abc"}' in shown.text


def test_a_store_whose_manifest_records_something_else_is_told(
    pico_llama: Callable[..., Pico], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert run("scale", pico_llama().url, str(store), "--executor", "local") == 0
    manifest = json.loads((store / "manifest.json").read_text())
    manifest.pop("digest")
    for section in manifest["provenance"]:
        for value in (None, 5, "x", [], {}, {"calibrate": [5]}):
            body = {**manifest, "provenance": {**manifest["provenance"], section: value}}
            (store / "manifest.json").write_text(json.dumps({**body, "digest": digest(body)}))
            capsys.readouterr()
            assert run("inspect", str(store)) in (0, 1), (section, value)
            assert "Traceback" not in (err := capsys.readouterr().err), (section, value)
            assert isinstance(value, dict) or err.count("error: ") == 1, (section, value, err)
            assert run("export", str(store), str(tmp_path / "made"), "--overwrite") in (0, 1), (section, value)
            assert "Traceback" not in capsys.readouterr().err, (section, value)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_a_character_shows_its_number(
    encoding: str, pico_llama: Callable[..., Pico], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "réseau 🔥.yaml"
    recipe.write_text(f"source: {pico_llama().url}\noutput: {tmp_path / 'é🔥'}\ntarget: {{mlp: 80}}\n")
    for status, *argv in (
        (0, "plan", str(recipe)),
        (0, "run", str(recipe), "--print-config"),
        (0, "inspect", pico_llama().url),
        (2, "plan", "🔥 is not there"),
        (2, "plan", str(recipe), "--🔥"),
    ):
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(f"sys.{name}", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert run(*map(str, argv)) == status, argv
        shown = [stream.buffer.getvalue().decode(encoding) for stream in (sys.stdout, sys.stderr) if not stream.flush()]
        assert "Traceback" not in "".join(shown)
        assert ("\\U0001f525" in "".join(shown)) == (argv[0] != "inspect"), argv


def comparison(path: Path) -> bool:
    return "methods" in read_yaml(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_fit_the_schema_and_come_back_from_what_is_printed(path: Path, tmp_path: Path) -> None:
    model, load = (ComparisonRecipe, load_comparison) if comparison(path) else (Recipe, load_recipe)
    jsonschema.validate(read_yaml(path), schema(model))
    recipe: Any = load(path)
    text = commented(model, recipe.public())
    printed = tmp_path / "printed.yaml"
    printed.write_text(text)
    assert load(printed) == recipe
    assert yaml.safe_load(text) == recipe.public()
    assert text.count("\n# ") > 4


def test_every_key_is_printed_under_what_it_does() -> None:
    text = commented(Recipe, load_recipe(ROOT / "configs/quickstart.yaml").public())
    words = " ".join(text.replace("#", " ").split())
    for section in (Recipe, TransferConfig, ClusterConfig, CalibrateConfig, TrainConfig):
        for name, field in section.model_fields.items():
            about = " ".join((field.description or "").replace("``", "`").split())
            assert about in words or name == "address", f"{name} is printed without what it does"


def test_the_schema_refuses_what_a_recipe_does_and_tells_what_keys_do() -> None:
    known = schema(Recipe)
    good = {"source": "a", "output": "b", "transfer": {"memory_limit": "512 MiB"}}
    jsonschema.validate(good, known)
    for bad in ({"sorce": "a"}, {"train": {"steps": "many"}}, {"transfer": {"memory_limit": "much"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | bad, known)
    assert "Tensor-parallel degree" in json.dumps(known)


def test_schema_and_completion_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for of, key in (("run", "target_url"), ("compare", "methods")):
        assert run("schema", of) == 0
        assert key in json.loads(capsys.readouterr().out)["properties"]
    assert run("--show-completion", "bash") == 0
    assert "_BOT_DIST_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--dtype", "bf16"), ("--to", "dcp"), ("--to", "gguf", "--dtype", "q8_0")])
def test_an_export_tells_beforehand_what_it_will_write(
    options: tuple[str, ...], pico_llama: Callable[..., Pico], tmp_path: Path, screen: Callable[..., Screen]
) -> None:
    shown = screen(400)
    shown.console.verbose = True
    target = tmp_path / ("out.gguf" if "gguf" in options else "out")
    assert run("export", pico_llama().url, str(target), *options) == 0
    events = [json.loads(line) for line in shown.text.splitlines() if line.startswith("{")]
    (total,) = (event["bytes"] for event in events if event["event"] == "start")
    assert total == sum(event["bytes"] for event in events if event["event"] == "written")
