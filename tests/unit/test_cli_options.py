"""Options of the command line are declared once, and set keys of a recipe."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

import bot_dist
from bot_dist.cli import main
from bot_dist.cli.command import app
from bot_dist.cli.options import ScaleOptions, TransferOptions, as_options, keys_of
from bot_dist.pipeline.versions import versions
from bot_dist.recipe import Recipe

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(("verb", "options"), [("plan", TransferOptions), ("scale", ScaleOptions)])
def test_a_group_of_options_is_spread_out(verb: str, options: type[TransferOptions]) -> None:
    names = [parameter.name for parameter in COMMANDS[verb].params]
    assert [name for name in names if name in keys_of(options)] == list(keys_of(options))


@pytest.mark.parametrize(("option", "key"), keys_of(ScaleOptions).items())
def test_an_option_sets_a_key_of_the_recipe(option: str, key: str) -> None:
    section, name = key.split(".")
    keys = getattr(Recipe.model_fields[section].annotation, "model_fields", None)  # of target: any axis is one
    assert keys is None or name in keys
    assert as_options(f"{key}=3") == f"--{option.replace('_', '-')} 3"


def test_only_what_is_given_overrides_the_recipe() -> None:
    assert list(ScaleOptions().overrides()) == []
    given = ScaleOptions(layers=0, wavelet="db2", calibrate=["a", "b: c"], keep_details=True, executor="local")
    assert list(given.overrides()) == [
        "target.layers=0",
        "transfer.wavelet=db2",
        'calibrate.text=["a", "b: c"]',
        "transfer.keep_details=true",
        "cluster.executor=local",
    ]


def test_the_version_is_told_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"bot_dist {bot_dist.__version__}\n")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bot_dist.version.__version__"}
    assert versions()["bot_dist"].split()[0] == bot_dist.__version__


def test_every_verb_is_quiet_or_verbose_on_request() -> None:
    for name, command in COMMANDS.items():
        assert {"quiet", "verbose"} <= {parameter.name for parameter in command.params}, name
