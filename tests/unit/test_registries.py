"""Registries: what is in the folder is listed, and nothing else; an unknown name is one short error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from bot_dist.baselines import BASELINES
from bot_dist.data.texts.formats import TEXT_FORMATS
from bot_dist.errors import InputError
from bot_dist.formats.exports import EXPORTS, export_format
from bot_dist.formats.sources import SOURCES
from bot_dist.model import FAMILIES
from bot_dist.registry import Registry
from bot_dist.train.optimizers import OPTIMIZERS

REGISTRIES: dict[str, Registry[Any]] = {
    "bot_dist/baselines/rules": BASELINES,
    "bot_dist/data/texts/formats": TEXT_FORMATS,
    "bot_dist/formats/exports": EXPORTS,
    "bot_dist/formats/sources": SOURCES,
    "bot_dist/model/families": FAMILIES,
    "bot_dist/train/optimizers": OPTIMIZERS,
}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", REGISTRIES)
def test_a_registry_lists_its_folder(folder: str) -> None:
    files = {path.stem for path in (ROOT / folder).glob("*.py") if not path.name.startswith("_")}
    registry = REGISTRIES[folder]
    assert {name.replace("-", "_") for name in registry} == files
    assert all(registry[name] is not None for name in registry), "each file has its entry"


@pytest.mark.parametrize("folder", REGISTRIES)
def test_an_unknown_name_is_one_line_that_names_the_nearest(folder: str) -> None:
    registry = REGISTRIES[folder]
    name = next(iter(registry))
    with pytest.raises(InputError) as error:
        registry.choose(f"{name}x")
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_entry_is_added_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "colours"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name, text in {"_shared": "", "dark_blue": "COLOUR = 'navy'", "red": "COLOUR = 0xFF0000"}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    colours: Registry[str] = Registry(str, "COLOUR", "colours", [str(folder)], what="colour", hyphens=True)
    assert list(colours) == ["dark-blue", "red"]
    assert "colours.dark_blue" not in sys.modules
    assert colours["dark-blue"] == "navy"
    assert ("red" in colours, colours.get("green")) == (True, None)
    with pytest.raises(TypeError, match=r"colours\.red is in a registry: its COLOUR has to be a str"):
        colours["red"]
    with pytest.raises(InputError, match="unknown colour 'dark-bleu'; did you mean 'dark-blue'"):
        colours.choose("dark-bleu")


@pytest.mark.parametrize(
    ("target", "name"),
    [("a/b.gguf", "gguf"), ("a/b", "safetensors"), ("hf://me/it", "safetensors"), (None, "safetensors")],
)
def test_the_end_of_a_target_chooses_its_format(target: str | None, name: str) -> None:
    assert export_format(target) == name


def test_kinds_of_checkpoints_and_of_texts_are_told_apart() -> None:
    told = [sign for source in SOURCES.values() for sign in (*source.ends, *filter(None, [source.marker]))]
    assert len(told) == len({*told}) >= len(SOURCES)
    formats = [sign for known in TEXT_FORMATS.values() for sign in (*known.ends, *filter(None, [known.scheme]))]
    assert len(formats) == len({*formats}) >= len(TEXT_FORMATS)
