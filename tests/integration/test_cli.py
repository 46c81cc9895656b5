"""The command line: verbs, exit statuses, and one clear error for every bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bot_dist.cli import main
from bot_dist.recipe import load_recipe
from bot_dist.store import CheckpointReader
from tests.conftest import TOKENIZER, default_signals

PicoFactory = Callable[..., Any]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a verb in this process: exit status, and what it printed."""

    def run(*argv: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(argv)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(stop.value.code or 0), captured.out + captured.err

    return run


def scale(source: str, target: Path, *options: str) -> tuple[str, ...]:
    return ("scale", source, str(target), "--executor", "local", *options)


def test_scale_plan_inspect_verify_export(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory
) -> None:
    source, store = pico_llama().url, tmp_path / "store"
    status, text = cli("plan", source, "--embed", "12", "--analysis", "wavelet")
    assert (status, "embed haar ×1.41" in text, store.exists()) == (0, True, False)
    status, text = cli(*scale(source, store, "--embed", "12", "--tensor", "2", "--analysis", "wavelet"))
    assert (status, f"committed {store}" in text, "energy kept" in text) == (0, True, True)
    status, text = cli("inspect", str(store))
    assert (status, "kv_heads 2, group 2, head_dim 8, embed 12" in text, source in text) == (0, True, True)
    shown = {line.partition(" ")[0]: line for line in text.splitlines()}
    shards = sum(path.is_file() for path in store.glob("data/*/*/c.*"))
    assert f"29 in {shards} shards of {shards} chunks" in shown["arrays"]
    assert "target.embed=12, transfer.analysis=wavelet, cluster.executor=local, cluster.tensor=2" in shown["recipe"]
    assert "mesh tensor 2 × data 1" in shown["plan"]
    assert f"digest         {CheckpointReader(str(store)).manifest.digest}" in text
    status, text = cli("inspect", str(store), "--json")
    manifest = json.loads((store / "manifest.json").read_text())
    for parameter in manifest["parameters"].values():
        del parameter["digests"]
    assert (status, json.loads(text)) == (0, manifest)
    assert cli("verify", str(store))[0] == 0
    status, text = cli("export", str(store), str(tmp_path / "hf"))
    assert (status, (tmp_path / "hf" / "model.safetensors").exists()) == (0, True)
    (shard,) = store.glob("data/*/model.norm.weight/c.0")
    shard.unlink()
    status, text = cli("verify", str(store))
    assert (status, f"model.norm.weight, chunk 0: shard {shard.relative_to(store)} is missing" in text) == (1, True)
    status, text = cli("verify", str(store), "--quick")
    assert (status, "model.norm.weight, chunk 0: shard c.0 is missing" in text) == (1, True)


def test_diff_exits_as_diff_does(cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory) -> None:
    source, same, small = pico_llama().url, tmp_path / "same", tmp_path / "small"
    assert cli(*scale(source, same))[0] == 0
    assert cli(*scale(source, small, "--mlp", "20", "--analysis", "wavelet"))[0] == 0
    status, text = cli("diff", source, str(same))
    assert (status, "no difference (0 parameters equal by their digests, 29 by reading both)" in text) == (0, True)
    status, text = cli("diff", str(same), str(small), "--quick")
    assert (status, "shape 40×24, 20×24" in text, "intermediate_size" in text) == (1, True, True)
    status, text = cli("diff", source, str(tmp_path / "none"))
    assert (status, "no such file or folder" in text) == (2, True)
    (small / "manifest.json").write_text("{}")
    assert cli("diff", source, str(small))[0] == 2


def test_a_configuration_alone_can_be_planned_and_simulated(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory
) -> None:
    config = f"{pico_llama().url}/config.json"
    Path(config).with_name("tokenizer.json").write_text(TOKENIZER)
    hardware = "storage_gb_s=1,network_gb_s=1,device_gb_s=100,request_s=1"
    status, text = cli("plan", config, "--embed", "12", "--tensor", "2", "--data", "8", "--hardware", hardware)
    assert (status, "limited by requests" in text, "… and 8 actors" in text) == (0, True, True)
    for given, message in (
        ("storage=1", "unknown 'storage'; did you mean 'storage_gb_s'"),
        ("storage_gb_s=fast", "storage_gb_s is 'fast', wanted a number"),
        ("storage_gb_s=-1", "wanted a number above 0"),
        ("storage_gb_s=1", "network_gb_s, device_gb_s missing"),
    ):
        status, text = cli("plan", config, "--hardware", given)
        assert (status, message in text) == (2, True), text
    status, text = cli(*scale(config, tmp_path / "store"))
    assert (status, "a configuration without weights" in text, (tmp_path / "store").exists()) == (2, True, False)


def test_events_are_lines_of_json(cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory) -> None:
    assert cli(*scale(pico_llama().url, tmp_path / "store", "--events", str(tmp_path / "events.jsonl")))[0] == 0
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1], {*kinds[1:-1]}) == ("start", "committed", {"step"})
    assert sum(e["bytes_written"] for e in events if e["event"] == "step") == events[-1]["bytes_written"]
    assert all(e["time"] > 0 and e["stage"] == "transfer" for e in events)


def test_export_options(cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory) -> None:
    source = pico_llama().url
    assert cli("export", source, str(tmp_path / "st"), "--max-shard-size", "9kB")[0] == 0
    assert (tmp_path / "st/model.safetensors.index.json").exists()
    assert cli("export", source, str(tmp_path / "dcp"), "--to", "dcp")[0] == 0
    assert (tmp_path / "dcp/.metadata").exists()
    for options, message in (
        (("--to", "pickle"), "known: dcp, gguf, safetensors"),
        (("--max-shard-size", "much"), "'much' is no size"),
        (("--max-shard-size", "0"), "--max-shard-size is 0"),
        (("--to", "dcp", "--max-shard-size", "1GB"), "--max-shard-size is for safetensors"),
        (("--to", "dcp", "--dtype", "bf16"), "DCP keeps the dtypes"),
    ):
        status, text = cli("export", source, str(tmp_path / "no"), *options)
        assert (status, message in text) == (2, True), text
    assert not (tmp_path / "no").exists()


def test_policies_and_details_on_the_command_line(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory
) -> None:
    source, small, again = pico_llama().url, tmp_path / "small", tmp_path / "again"
    status, text = cli("plan", source, "--embed", "32", "--layers", "4")
    assert (status, "embed copy ×1.15 /c^½" in text, "layer identity" in text) == (0, True, True)
    assert "function kept: up to rounding (" in text
    status, text = cli("plan", source, "--embed", "32", "--width", "resample")
    assert (status, "function kept: not, because 'embed' 24 → 32 is averaged, for it is no multiple" in text) == (
        0,
        True,
    )
    status, text = cli("plan", source, "--embed", "48", "--preset", "paper-gpt-s2l")
    assert (status, "embed db2 ×0.707" in text) == (0, True)
    assert cli(*scale(source, small, "--embed", "12", "--keep-details"))[0] == 0
    assert "details/mlp.up/aad" in cli("inspect", str(small))[1]
    status, text = cli(*scale(str(small), again, "--embed", "24"))
    assert (status, "details restore: embed" in text) == (0, True)
    assert cli("verify", str(small))[0] == 0


def test_adaptive_shrinking_on_the_command_line(
    cli: Callable[..., tuple[int, str]],
    tmp_path: Path,
    pico_llama: PicoFactory,
    pico_tokenizer: Path,
    shakespeare: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source, store = pico_llama(), tmp_path / "store"
    for file in pico_tokenizer.iterdir():
        shutil.copy(file, source.folder)
    sizes = ("--layers", "2", "--embed", "12", "--mlp", "20", "--calibrate", shakespeare)
    few = [f"--set=calibrate.{key}" for key in ("tokens=1024", "context=32", "held_out=256", "passes=each")]
    few.append("--set=calibrate.allow_mismatch=true")
    status, text = cli("plan", source.url, *sizes, *few)
    assert (status, "embed.read.attn.norm" in text) == (0, True)
    status, text = cli("plan", source.url, *sizes, *few, "--basis", "permutation")
    assert (status, "embed.kept" in text) == (0, True)
    status, text = cli("plan", source.url, *sizes, *few, "--analysis", "wavelet")
    assert (status, "fitted" in text, "embed haar" in text) == (0, False, True)
    default = cli("plan", source.url, *sizes, *few)
    for written_out in (("--wavelet", "haar"), ("--gain", "auto"), ("--set", "transfer.keep_details=false")):
        assert cli("plan", source.url, *sizes, *few, *written_out) == default
    for other, asked in ((("--wavelet", "db2"), "wavelet db2"), (("--keep-details",), "keep_details")):
        status, text = cli("plan", source.url, *sizes, *few, *other)
        assert (status, f"averaged, not fitted to the source, for {asked} is asked for" in text) == (0, True)

    status, text = cli(*scale(source.url, store, *sizes, *few))
    assert status == 0, text
    for shown in (
        "calibrate, for embed",
        "held-out loss, after mlp, one pass, predicting: ",
        "embed 24 → 12",
        "mlp 40 → 20",
        "layer 3 → 2",
    ):
        assert shown in text
    stages = CheckpointReader(str(store)).manifest.provenance["transfer"]["calibrate"]
    assert [stage["axes"] for stage in stages] == [[], ["mlp"], ["embed"], ["layer"]]
    assert f"{stages[2]['facts']['embed']['energy_kept']:.2%}" in text
    assert f"{stages[-1]['loss']:.3f}" in text
    assert cli("verify", str(store))[0] == 0

    assert "shrunk stage by stage" in cli("inspect", str(store))[1]
    status, text = cli("inspect", str(store), "--operators")
    assert (status, "embed.write" in text, "attn.out:embed" in text, "selection" in text) == (0, True, True, True)
    status, text = cli("inspect", str(store), "--operators", "--json")
    rows = {row["name"]: row for row in json.loads(text)}
    assert (rows["embed.gain.attn.norm"]["kind"], rows["embed.gain.attn.norm"]["shape"]) == ("constant", [])
    assert (
        rows["mlp.kept.mlp.down"]["kind"],
        rows["mlp.kept.mlp.down"]["shape"],
        rows["mlp.kept.mlp.down"]["layers"],
    ) == ("selection", [20], 3)
    assert rows["mlp.kept.mlp.down"]["used_for"] == [["mlp.gate", "mlp"], ["mlp.up", "mlp"]]
    read = rows["embed.read.norm"]
    assert (read["kind"], read["shape"], read["layers"], read["nbytes"]) == ("matrix", [12, 24], None, 12 * 24 * 4)
    assert (read["dtype"], read["used_for"]) == ("float32", [["head", "embed"]])

    (store / "manifest.json").unlink()  # an attempt that was interrupted: what is shown is not forgotten with it
    status, text = cli(*scale(source.url, store, *sizes, *few))
    assert (status, "found done" in text) == (0, True)
    assert CheckpointReader(str(store)).manifest.provenance["transfer"]["calibrate"] == stages


def test_a_store_without_operators_says_so(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory
) -> None:
    assert cli(*scale(pico_llama().url, tmp_path / "store", "--embed", "48"))[0] == 0
    status, text = cli("inspect", str(tmp_path / "store"), "--operators")
    assert (status, "holds no fitted operators" in text) == (0, True)
    status, text = cli("inspect", str(tmp_path / "store"), "--operators", "--json")
    assert (status, json.loads(text)) == (0, [])


def test_a_source_with_nan_is_refused_by_name(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory
) -> None:
    source = pico_llama()
    with torch.no_grad():
        source.model.model.embed_tokens.weight[3, 4] = float("inf")
    source.model.save_pretrained(source.folder)
    command = scale(source.url, tmp_path / "store", "--embed", "12", "--analysis", "wavelet")
    status, text = cli(*command)
    assert (status, "'model.embed_tokens.weight' holds inf at vocab 3, embed 4" in text) == (2, True)
    assert cli(*command, "--allow-nonfinite", "--overwrite")[0] == 0


def test_a_recipe_with_overrides(cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"source": pico_llama().url, "output": str(tmp_path / "run"), "target": {"mlp": 20}})
    )
    local = ("--set", "cluster.executor=local")
    assert cli("plan", str(recipe))[0] == 0
    status, text = cli("run", str(recipe), "--print-config", "--set", "train.steps=3")
    assert (status, yaml.safe_load(text)["train"]["steps"]) == (0, 3)
    printed = tmp_path / "printed.yaml"
    printed.write_text(text)
    assert load_recipe(printed).digest() == load_recipe(recipe, ["train.steps=3"]).digest()
    assert cli("scale", str(recipe), *local, "--set", "target.embed=48")[0] == 0
    assert CheckpointReader(str(tmp_path / "run" / "transferred.zarr")).config["hidden_size"] == 48
    assert cli("verify", str(recipe))[0] == 0
    assert cli("export", str(recipe))[0] == 0
    assert (tmp_path / "run" / "export" / "config.json").exists()


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


BAD = [
    ("truncated file", truncate, [], "model.safetensors"),
    ("unknown architecture", lambda f: edit_config(f, model_type="mamba"), [], "unknown architecture 'mamba'"),
    ("kv heads", lambda f: edit_config(f, num_key_value_heads=3), [], "4 is not divisible by num_key_value_heads=3"),
    ("policy", None, ["--layers", "2", "--depth", "stack"], "depth policy 'stack' only grows, and 3 → 2 shrinks"),
    ("preset", None, ["--preset", "paper-gpt"], "unknown preset 'paper-gpt'; did you mean 'paper-gpt-s2l'"),
    ("negative size", None, ["--mlp", "-3"], "target mlp is -3; give at least 1"),
    ("no blocks", None, ["--layers", "0"], "target layers is 0; give at least 1"),
    ("no actors", None, ["--tensor", "0"], "--tensor: "),
    ("memory limit", None, ["--memory-limit", "100"], "the smallest that works is"),
    ("wavelet", None, ["--wavelet", "harr"], "unknown wavelet 'harr'"),
    ("override", None, ["--set", "train.stepz=1"], "unknown key 'train.stepz'"),
    ("option value", None, ["--gain", "loud"], "--gain: "),
    ("unknown option", None, ["--embedd", "3"], "No such option"),
]


@pytest.mark.parametrize(("damage", "options", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_clear_error(
    damage: Callable[[Path], None] | None,
    options: list[str],
    message: str,
    cli: Callable[..., tuple[int, str]],
    tmp_path: Path,
    pico_llama: PicoFactory,
) -> None:
    pico = pico_llama()
    if damage is not None:
        damage(pico.folder)
    status, text = cli(*scale(pico.url, tmp_path / "store", "--embed", "12", *options))
    assert (status, message in text) == (2, True), text
    assert not (tmp_path / "store").exists()


def test_sources_that_are_not_there(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    status, text = cli(*scale(str(tmp_path / "none"), tmp_path / "store"))
    assert (status, "no such file or folder" in text) == (2, True)
    status, text = cli(*scale("package://no_such_package/model.gguf", tmp_path / "store"))
    assert (status, "no_such_package" in text, "pip install" in text) == (2, True, True)
    status, text = cli(*scale("some-one/model-1b", tmp_path / "store"))
    assert (status, "for the hub's model write hf://some-one/model-1b" in text) == (2, True)


def test_targets_that_can_not_be(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = pico_llama().url
    before = {*tmp_path.iterdir()}
    for target, message in (
        ("", "target_url: it is empty"),
        ("s3:/bucket/x", "write s3://bucket/x"),
        ("http://127.0.0.1:9/x", "holds no checkpoint"),
    ):
        status, text = cli("scale", source, target, "--executor", "local")
        assert (status, message in text) == (2, True), text
    assert {*tmp_path.iterdir()} == before


def test_a_plan_is_refused_as_its_run_would_be(
    cli: Callable[..., tuple[int, str]], shakespeare: str, pico_llama: PicoFactory
) -> None:
    command = ("plan", pico_llama().url, "--embed", "12", "--set", "train.context=16")
    text = f"train.text=[{shakespeare}]"
    status, shown = cli(*command, "--set", text)
    assert status == 0, shown
    for options, message in (
        (("--calibrate", "none.txt"), "none.txt"),
        (("--set", "train.text=[none.txt]"), "none.txt"),
        (("--set", text, "--set", "train.batch=3"), "train.batch is 3 sequences, not divisible over 2 copies"),
    ):
        status, shown = cli(*command, *options)
        assert (status, message in shown) == (2, True), shown


def test_the_recipe_of_the_other_verb(cli: Callable[..., tuple[int, str]]) -> None:
    status, text = cli("run", "configs/compare_gpt_grow.yaml")
    assert (status, "write: bot_dist compare configs/compare_gpt_grow.yaml" in text) == (2, True)
    status, text = cli("compare", "configs/quickstart.yaml")
    assert (status, "write: bot_dist run configs/quickstart.yaml" in text) == (2, True)


def test_a_misspelt_recipe(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sorce: a\noutput: b\n")
    status, text = cli("run", str(recipe))
    assert (status, "unknown key 'sorce'; did you mean 'source'?" in text) == (2, True)


def test_a_family_is_planned_whole_and_used_one_by_one(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory
) -> None:
    recipe = tmp_path / "family.yaml"
    family = "{small: {target: {embed: 12}}, large: {target: {embed: 48}}}"
    recipe.write_text(f"source: {pico_llama().url}\noutput: {tmp_path}/out\nfamily: {family}\n")
    status, text = cli("plan", str(recipe))
    assert (status, [f"{name}/transferred.zarr" in text for name in ("small", "large")]) == (0, [True, True])
    status, text = cli("plan", f"{recipe}:large")
    assert (status, "small/transferred.zarr" in text) == (0, False)
    for verb in ("scale", "pretrain", "export", "verify", "inspect"):
        status, text = cli(verb, str(recipe))
        assert (status, "holds a family (small, large): name one of it" in text) == (2, True), text
    local = ("--set", "cluster.executor=local", "--set", "transfer.analysis=wavelet")
    assert cli("scale", f"{recipe}:small", *local)[0] == 0
    assert cli("verify", f"{recipe}:small")[0] == 0


def test_a_store_is_exported_for_llama_cpp(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory
) -> None:
    pytest.importorskip("gguf")
    store, file = tmp_path / "store", tmp_path / "model.gguf"
    assert cli(*scale(pico_llama().url, store))[0] == 0
    status, text = cli("export", str(store), str(file), "--dtype", "q8_0")
    assert (status, "note: 19 of 29 tensors are f16" in text) == (0, True), text
    assert cli("export", str(store), str(file), "--to", "gguf", "--dtype", "f32", "--overwrite")[0] == 0
    status, text = cli("diff", "--quick", str(store), str(file))
    assert "rms_norm_eps" in text  # a float32 there; sizes and dtypes are the same
    status, text = cli("export", str(store), str(tmp_path / "folder"), "--dtype", "q8_0")
    assert (status, "--dtype q8_0 is for GGUF" in text) == (2, True)
    assert cli("export", str(store), str(tmp_path / "folder"), "--dtype", "f16")[0] == 0


def test_a_committed_target_needs_overwrite(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, pico_llama: PicoFactory
) -> None:
    command = scale(pico_llama().url, tmp_path / "store", "--embed", "48")
    assert cli(*command)[0] == 0
    status, text = cli(*command)
    assert (status, "already holds a committed checkpoint" in text) == (2, True)
    assert cli(*command, "--overwrite")[0] == 0


@pytest.mark.parametrize("target", ["a store", "no store", "no device"])
def test_what_can_not_be_written_is_refused_before_anything_is_fitted(
    target: str,
    cli: Callable[..., tuple[int, str]],
    tmp_path: Path,
    pico_llama: PicoFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, store = pico_llama().url, tmp_path / "store"
    options, message = [], "is not empty and no bot_dist store"
    if target == "a store":
        assert cli(*scale(source, store, "--embed", "48"))[0] == 0
        message = "already holds a committed checkpoint"
    elif target == "no store":
        (store / "mine").mkdir(parents=True)
        (store / "mine/notes.txt").write_text("mine")
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        options, message = ["--set", "cluster.device=cuda"], "PyTorch finds no such device"
    status, text = cli(*scale(source, store, "--layers", "2", *options))
    assert (status, message in text) == (2, True), text
    assert "calibrate, " not in text
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".calibration")]


def test_help_is_instant() -> None:
    heavy = ("torch", "ray", "deepspeed", "transformers", "zarr", "numpy", "pydantic")
    code = f"import sys, bot_dist.cli; sys.exit(','.join(m for m in {heavy!r} if m in sys.modules) or 0)"
    loaded = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (loaded.returncode, loaded.stderr) == (0, "")
    text = subprocess.run([sys.executable, "-m", "bot_dist.cli", "--help"], check=True, capture_output=True, text=True)
    verbs = ("run", "plan", "scale", "pretrain", "verify", "inspect", "diff", "export")
    assert all(f" {verb} " in text.stdout for verb in verbs)


@pytest.mark.ray
def test_ctrl_c_commits_nothing_stops_the_actors_and_a_rerun_resumes(tmp_path: Path, pico_llama: PicoFactory) -> None:
    source = pico_llama(num_hidden_layers=32).url  # steps enough for the signal to come amid them
    store = tmp_path / "store"
    options = ("--embed", "48", "--tensor", "2", "--memory-limit", "20KiB")
    command = [sys.executable, "-m", "bot_dist.cli", "scale", source, str(store), *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_worker_niceness"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=default_signals,
    )
    deadline = time.monotonic() + 120
    while len(list(store.glob("data/*/_steps/*.json"))) < 5:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    assert "interrupted" in text
    assert "Traceback" not in text
    assert not (store / "manifest.json").exists()
    done = len(list(store.glob("data/*/_steps/*.json")))
    time.sleep(1)
    assert len(list(store.glob("data/*/_steps/*.json"))) == done, "an actor goes on writing"
    again = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert "were found done" in again.stdout
    CheckpointReader(str(store))
