"""``launch/``: what the scripts and the cluster file say when nothing has been started yet."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.run import VERBS

ROOT = Path(__file__).parents[2]
RUN = ROOT / "launch/run.py"
CLUSTERS = ("local", "on_premise", "aws")

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
    assert "'/no/such/python' is no Python from 3.11 to 3.13" in result.stderr
    assert "PYTHON=/path/to/python3.12" in result.stderr
    assert not (tmp_path / "clone/.venv").exists()


def test_setup_takes_the_newest_python_that_fits_and_says_what_it_will_download(tmp_path: Path) -> None:
    for name, version in {
        "python3.13": (3, 9),
        "python3.12": (3, 12),
        "python3.11": (3, 11),
        "python3": (3, 14),
    }.items():
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(
            f'#!/bin/sh\n[ "$1" = -m ] && exit 7\nexec {sys.executable} -c "import sys, platform; '
            f"sys.version_info = ({version[0]}, {version[1]}, 0); platform.python_version = lambda: '{name}'; $2\"\n"
        )
        stub.chmod(0o755)
    result = quickstart_in(tmp_path / "clone", PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin", PYTHON="")
    assert result.returncode == 7, "its venv is what fails"
    assert "with Python python3.12 and pip: downloads" in result.stdout
    assert "0.9 GB" in result.stdout


PYTHON_STUB = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo "$PWD/.venv" >.venv/bin/activate ;;
    "-m pip") echo "$@" >>installed ;;
    "-c import platform"*) echo 3.11.0 ;;
esac
"""


def test_setup_installs_again_when_a_pin_changes_and_not_for_settings_of_tools(tmp_path: Path) -> None:
    python, installed = tmp_path / "python", tmp_path / "clone/installed"
    python.write_text(PYTHON_STUB)
    python.chmod(0o755)
    shutil.copytree(ROOT / "launch", tmp_path / "clone/launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "clone")

    def runs() -> int:
        before = installed.read_text() if installed.exists() else ""
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
        subprocess.run(
            ["bash", tmp_path / "clone/launch/setup.sh"], env=environment, check=True, stdout=subprocess.PIPE
        )
        return installed.read_text().removeprefix(before).count("pip install")

    assert (runs(), runs()) == (2, 0), "the project, and the texts that its quickstart reads"
    for file, line, again in (
        ("pyproject.toml", "[tool.other]", 0),
        ("launch/constraints.txt", "another==1.0", 2),
        ("launch/inputs.txt", "another==1.0", 2),
    ):
        with (tmp_path / "clone" / file).open("a") as text:
            text.write(f"{line}\n")
        assert (runs(), runs()) == (again, 0), file


def test_every_pin_but_torchs_has_digests() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / "launch" / name).read_text().lower().replace("_", "-").splitlines()
        return {line.split()[0] for line in lines if re.match(r"[a-z]\S*==", line)}

    assert pins("hashes.txt") == {
        p for p in pins("constraints.txt") | pins("inputs.txt") if not p.startswith("torch==")
    }
    entries = re.split(r"\n(?=\S)", (ROOT / "launch/hashes.txt").read_text())
    assert all("--hash=sha256:" in entry for entry in entries if not entry.startswith("#"))


def test_setup_refuses_a_path_that_ray_cannot_start_workers_from(tmp_path: Path) -> None:
    result = quickstart_in(tmp_path / "my clone", PYTHON="/no/such/python")
    assert result.returncode == 1
    assert "path with spaces" in result.stderr
    assert "my clone" in result.stderr


def cluster(name: str) -> dict[str, Any]:
    config = yaml.safe_load((ROOT / f"launch/cluster/{name}.yaml").read_text())
    assert isinstance(config, dict)
    return config


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """Through Ray's own preparation and schema, as ``ray up`` does."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    ready: dict[str, Any] = prepare_config(config)
    validate_config(ready)
    return ready


@pytest.mark.parametrize(
    ("name", "provider", "workers"), [("local", "local", 0), ("on_premise", "local", 1), ("aws", "aws", 8)]
)
def test_ray_accepts_the_cluster_file(name: str, provider: str, workers: int) -> None:
    ready = prepared(cluster(name))
    assert (ready["provider"]["type"], ready["max_workers"]) == (provider, workers)


def test_ray_would_refuse_a_misspelt_key() -> None:
    from jsonschema import ValidationError

    with pytest.raises(ValidationError):
        prepared(cluster("local") | {"file_mount": {}})


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_file_brings_the_package_and_its_setup(name: str) -> None:
    mounts = {to: source for to, source in cluster(name)["file_mounts"].items() if not source.startswith("~")}
    assert {"bot_dist", "launch", "configs", "pyproject.toml"} <= set(mounts.values())
    missing = [local for local in mounts.values() if not (ROOT / local).exists()]
    assert not missing
    assert all(remote == f"~/bot_dist/{local}" for remote, local in mounts.items())
    assert any(command.startswith("bash ~/bot_dist/launch/setup.sh") for command in cluster(name)["setup_commands"])


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_file_opens_nothing_without_a_token(name: str) -> None:
    config = cluster(name)
    starts = [command for key in ("head", "worker") for command in config[f"{key}_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
    assert all("RAY_JOB_STOP_WAIT_TIME_S=120 " in command for command in starts if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    if name != "local":  # the same token everywhere
        assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_aws_file_takes_spot_workers_with_a_role_and_no_secret() -> None:
    types = cluster("aws")["available_node_types"]
    assert types["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert all(kind["node_config"]["IamInstanceProfile"] == {"Name": "bot_dist"} for kind in types.values())
    text = (ROOT / "launch/cluster/aws.yaml").read_text()
    assert not re.search(r"AKIA|ASIA|aws_(access|secret)|AWS_(ACCESS|SECRET)|ssh_private_key", text)


KUBERAY: dict[str, set[str]] = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayJobSpec": {
        *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
        *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
        *("rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
        *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
    },
    "RayClusterSpec": {
        *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
        *("headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs"),
    },
    "AuthOptions": {"mode", "enableK8sTokenAuth", "secretName"},
    "HeadGroupSpec": {"enableIngress", "headService", "rayStartParams", "serviceType", "template"},
    "WorkerGroupSpec": {
        *("groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas"),
        *("scaleStrategy", "suspend", "template"),
    },
    "PodSpec": {"containers", "initContainers", "nodeSelector", "serviceAccountName", "tolerations", "volumes"},
    "Container": {"args", "command", "env", "envFrom", "image", "imagePullPolicy", "name", "resources", "volumeMounts"},
    "Volume": {"name", "persistentVolumeClaim"},
}
"""Fields of KubeRay's API reference (ray.io/v1) and, of pods, those of Kubernetes that a job may need."""


def kuberay() -> dict[str, Any]:
    (manifest,) = yaml.safe_load_all((ROOT / "launch/cluster/kuberay.yaml").read_text())
    assert isinstance(manifest, dict)
    return manifest


def undocumented(manifest: dict[str, Any]) -> list[str]:
    """The fields of a RayJob that no reference knows."""
    found = []

    def look(kind: str, value: dict[str, Any]) -> dict[str, Any]:
        found.extend(f"{kind}.{key}" for key in value.keys() - KUBERAY[kind])
        return value

    spec = look("RayJobSpec", look("RayJob", manifest)["spec"])
    of_cluster = look("RayClusterSpec", spec["rayClusterSpec"])
    look("AuthOptions", of_cluster["authOptions"])
    workers = [look("WorkerGroupSpec", group) for group in of_cluster["workerGroupSpecs"]]
    for group in (look("HeadGroupSpec", of_cluster["headGroupSpec"]), *workers):
        pod = look("PodSpec", group["template"]["spec"])
        mounts = {mount["name"] for c in pod["containers"] for mount in look("Container", c)["volumeMounts"]}
        assert mounts == {look("Volume", volume)["name"] for volume in pod["volumes"]}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings"
    return found


def test_the_rayjob_has_documented_fields_only() -> None:
    assert undocumented(kuberay()) == []
    misspelt = kuberay()
    misspelt["spec"]["rayClusterSpec"]["headGroupSpecs"] = {}
    assert undocumented(misspelt) == ["RayClusterSpec.headGroupSpecs"]


def test_the_rayjob_runs_a_verb_on_a_cluster_of_its_own_with_a_token() -> None:
    manifest = kuberay()
    spec = manifest["spec"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}\n" in (ROOT / "launch/constraints.txt").read_text()
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    python, script, verb, *_ = spec["entrypoint"].split()
    assert (python, script) == ("python", "/bot_dist/launch/run.py")
    assert verb in VERBS
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_the_slurm_script_says_what_slurm_knows() -> None:
    script = (ROOT / "launch/slurm.sbatch").read_text()
    assert subprocess.run(["bash", "-n", ROOT / "launch/slurm.sbatch"]).returncode == 0
    options = re.findall(r"^#SBATCH --([a-z-]+)(?:=\S+)?$", script, flags=re.MULTILINE)
    assert len(options) == script.count("\n#SBATCH ")
    known = {"job-name", "nodes", "ntasks-per-node", "exclusive", "no-kill", "requeue", "open-mode", "output", "signal"}
    assert set(options) == known
    assert script.index("#SBATCH") < script.index("set -euo pipefail"), "SLURM reads no option after a command"
    assert "RAY_AUTH_MODE=token" in script
    assert "--dashboard-host=127.0.0.1" in script
