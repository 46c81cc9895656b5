"""What a Ray job writes does not lie in its working directory, which does not last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bot_dist.cli import main

ROOT = Path(__file__).parents[2]

CASES = {
    "target_url": ("scale", "SOURCE", "out.zarr", "--layers", "4"),
    "target_url of a URL": ("scale", "SOURCE", "file://JOB/out.zarr", "--layers", "4"),
    "target_url in full": ("scale", "SOURCE", "JOB/out.zarr", "--layers", "4"),
    "output": ("scale", "RECIPE"),
    "output of a run": ("run", "RECIPE"),
    "output of a training": ("pretrain", "RECIPE"),
    "output of a family": ("run", "RECIPE", "--set", "family={a: {}}"),
    "output of a comparison": ("compare", f"{ROOT}/configs/compare_gpt_grow.yaml"),
    "import_to": ("scale", "SOURCE", "KEPT/out.zarr", "--set", "import_to=copy.zarr"),
    "calibrate.folder": ("scale", "SOURCE", "KEPT/out.zarr", "--set", "calibrate.folder=statistics"),
    "train.token_cache": ("run", "RECIPE", "--set", "output=KEPT", "--set", "train.token_cache=tokens"),
    "events": ("scale", "SOURCE", "KEPT/out.zarr", "--events", "events.jsonl"),
    "folder": ("export", "SOURCE", "export"),
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Ray makes the working directory of a job."""
    folder = tmp_path / "ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", "/home/someone")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_place_that_does_not_last_is_refused(
    case: str, job: Path, tmp_path: Path, pico_llama: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    source, kept = pico_llama().url, tmp_path / "kept"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"source": source, "output": "runs/first", "target": {"layers": 4}}))
    places = {"SOURCE": source, "RECIPE": str(recipe), "JOB": str(job), "KEPT": str(kept)}
    command = list(CASES[case])
    for word, place in places.items():
        command = [argument.replace(word, place) for argument in command]
    with pytest.raises(SystemExit) as ended:
        main(command)
    message = capsys.readouterr().err
    assert ended.value.code == 2, message
    assert f"error: {case.partition(' ')[0]}: '" in message
    assert f"lies in the working directory of the job, {job}, which Ray hides and may delete" in message
    assert "give an absolute path that all nodes see, for example /home/someone/" in message
    assert not [*job.iterdir()]
    assert not kept.exists()


def test_a_job_plans_reads_and_writes_elsewhere(job: Path, tmp_path: Path, pico_llama: Callable[..., object]) -> None:
    (job / "model").symlink_to(pico_llama().folder)
    for command in (("plan", "model", "--layers", "4"), ("scale", "model", str(tmp_path / "out.zarr"), *LOCAL)):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
    assert [path.name for path in job.iterdir()] == ["model"]


LOCAL = ("--set", "cluster.executor=local")
