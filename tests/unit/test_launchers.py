"""``launch/``: what the scripts and the cluster file say when nothing has been started yet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RUN = ROOT / "launch/run.py"
CLUSTER = ROOT / "launch/cluster/local.yaml"

STUB = "import json, os, sys\ndef main(argv): print(json.dumps([argv, os.environ['RAY_ADDRESS']])); sys.exit(2)"


def launched(tmp_path: Path, *arguments: str, ray_address: str | None = None) -> tuple[list[str], str]:
    """What launch/run.py, alone on a head node, gives to ``bot_dist.cli.main``: its arguments and RAY_ADDRESS."""
    package = tmp_path / "installed/bot_dist"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(STUB)
    alone = shutil.copy(RUN, tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(package.parent)} | ({"RAY_ADDRESS": ray_address} if ray_address else {})
    result = subprocess.run([sys.executable, alone, *arguments], capture_output=True, text=True, env=environment)
    assert result.returncode == 2, f"the exit status of the package is lost: {result.stderr}"
    given, address = json.loads(result.stdout)
    return given, address


def test_run_is_the_default_verb_and_the_own_cluster_the_default_address(tmp_path: Path) -> None:
    given, address = launched(tmp_path, "configs/quickstart.yaml", "--set", "train.steps=4")
    assert given == ["run", "configs/quickstart.yaml", "--set", "train.steps=4"]
    assert address == "auto"


def test_another_verb_and_another_address_are_kept(tmp_path: Path) -> None:
    given, address = launched(tmp_path, "scale", "r.yaml", ray_address="10.0.0.1:6379")
    assert given == ["scale", "r.yaml"]
    assert address == "10.0.0.1:6379"


def test_without_the_package_one_error_says_how_to_bring_it() -> None:
    result = subprocess.run([sys.executable, "-I", "-S", RUN, "r.yaml"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "bot_dist is not importable" in result.stderr
    for way_out in ("--working-dir .", "file_mounts", "setup_commands"):
        assert way_out in result.stderr
    assert "Traceback" not in result.stderr


def test_a_package_without_its_dependencies_is_one_clear_error_too() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-S", RUN, "r.yaml"], capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "has bot_dist, but not typer" in result.stderr
    assert "Traceback" not in result.stderr


def quickstart_in(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The quickstart in a copy of the repository, called from elsewhere."""
    shutil.copytree(ROOT / "launch", folder / "launch")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return subprocess.run(
        ["bash", folder / "launch/quickstart.sh"],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=folder.parent,
    )


def test_setup_without_python_says_what_is_needed_and_makes_nothing(tmp_path: Path) -> None:
    result = quickstart_in(tmp_path / "clone", PYTHON="/no/such/python")
    assert result.returncode == 1
    assert "'/no/such/python' is no Python 3.11" in result.stderr
    assert "PYTHON=/path/to/python3.11" in result.stderr
    assert not (tmp_path / "clone/.venv").exists()


def test_setup_refuses_a_path_that_ray_cannot_start_workers_from(tmp_path: Path) -> None:
    result = quickstart_in(tmp_path / "my clone", PYTHON="/no/such/python")
    assert result.returncode == 1
    assert "path with spaces" in result.stderr
    assert "my clone" in result.stderr


def cluster() -> dict[str, Any]:
    config = yaml.safe_load(CLUSTER.read_text())
    assert isinstance(config, dict)
    return config


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """Through Ray's own preparation and schema, as ``ray up`` does."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    ready: dict[str, Any] = prepare_config(config)
    validate_config(ready)
    return ready


def test_ray_accepts_the_cluster_file() -> None:
    ready = prepared(cluster())
    assert ready["provider"]["type"] == "local"
    assert ready["max_workers"] == 0  # this machine only, until machines are added


def test_ray_would_refuse_a_misspelt_key() -> None:
    from jsonschema import ValidationError

    with pytest.raises(ValidationError):
        prepared(cluster() | {"file_mount": {}})


def test_the_cluster_file_brings_the_package_and_its_setup() -> None:
    mounts = cluster()["file_mounts"]
    assert {"bot_dist", "launch", "configs", "pyproject.toml"} <= set(mounts.values())
    missing = [local for local in mounts.values() if not (ROOT / local).exists()]
    assert not missing
    assert all(remote == f"~/bot_dist/{local}" for remote, local in mounts.items())
    assert "bash ~/bot_dist/launch/setup.sh" in cluster()["setup_commands"]


def test_the_cluster_file_opens_nothing_without_a_token() -> None:
    starts = [command for key in ("head", "worker") for command in cluster()[f"{key}_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
