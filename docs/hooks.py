"""Pages that the build makes of the code: the keys of a recipe, the options of the command line, configs/README.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bot_dist.cli.command import app  # noqa: E402
from bot_dist.compare.recipe import ComparisonRecipe  # noqa: E402
from bot_dist.recipe import Config, Recipe, schema  # noqa: E402


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file holds."""
    comparisons = (ROOT / "configs/README.md").read_text().replace("](../docs/pages/", "](../")
    pages = {
        "reference/recipe.md": "\n".join(recipe_reference()),
        "reference/command-line.md": "\n".join(command_reference()),
        "results/comparisons.md": comparisons,
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def recipe_reference() -> Iterator[str]:
    """Every key of a recipe, and of a comparison, from the models that validate them."""
    yield "# Recipe\n"
    yield (
        "A recipe is a YAML file with these keys. An unknown key is an error that names the nearest one; "
        "`--set KEY=VALUE` overrides one on the command line. `bot_dist schema` prints the same as a JSON schema "
        "for editors, and `bot_dist run RECIPE --print-config` a recipe with all its keys filled in.\n"
    )
    yield from _section(Recipe, "", 2)
    yield "## Comparisons\n"
    yield "`bot_dist compare` takes recipes of another kind.\n"
    yield from _section(ComparisonRecipe, "", 3)


def _section(model: type[Config], prefix: str, level: int) -> Iterator[str]:
    """The keys of one configuration model as a table, then the sections that it holds."""
    inner: list[tuple[str, type[Config]]] = []
    properties = schema(model)["properties"]
    yield "| key | value | default | what it does |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        section = next((kind for kind in (field.annotation, *get_args(field.annotation)) if _is_config(kind)), None)
        about = " ".join((field.description or (section.__doc__ if section else None) or "").split())
        default = "–" if field.is_required() else _code(_plain(field.get_default(call_default_factory=True)))
        if section is not None:
            default = "–"
            inner.append((f"{prefix}{name}", section))
        value = _code(_kind(properties[name], schema(model).get("$defs", {})))
        yield f"| `{prefix}{name}` | {value} | {default} | {about.replace('``', '`').replace('|', chr(92) + '|')} |"
    yield ""
    for name, section in inner:
        yield f"{'#' * level} `{name}`\n"
        yield f"{section.__doc__}\n"
        yield from _section(section, f"{name}.", level + 1)


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Config)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _code(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return f"`{text}`".replace("|", "\\|") if text else "empty"


def _kind(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What values a key takes, in a few words, from its JSON schema."""
    if "$ref" in field:
        return "section"
    if "allOf" in field:
        return _kind(field["allOf"][0], definitions)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(one, definitions) for one in field["anyOf"]))
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(field.get('items', {}), definitions)}"
    if kind == "object":
        more = field.get("additionalProperties")
        return f"mapping to {_kind(more, definitions)}" if isinstance(more, dict) else "mapping"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[name]}" for name, sign in bounds.items() if name in field]
    return " ".join([kind, *limits])


def command_reference() -> Iterator[str]:
    """Every verb and option of the command line, from their declarations."""
    group = get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands"), group
    yield "# Command line\n"
    yield "`bot_dist VERB …`; `--help` shows the same.\n"
    for name, command in group.commands.items():
        context = command.make_context(name, [], resilient_parsing=True)
        yield f"## `{name}`\n"
        yield f"```text\n{_usage(context, command)}\n```\n"
        yield f"{_prose(command.help or '')}\n"
        records = [record for p in command.params if (record := p.get_help_record(context)) is not None]
        if records:
            yield "| option | what it does |\n|---|---|"
            for option, about in records:
                yield f"| {_code(' '.join(option.split()))} | {_prose(about)} |"
            yield ""


def _usage(context: Any, command: Any) -> str:
    return f"bot_dist {context.info_name} {' '.join(command.collect_usage_pieces(context))}"


def _prose(text: str) -> str:
    """Help as Markdown: one paragraph each, without what would end a cell of a table."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.replace("\b", ""))]
    return "\n\n".join(paragraphs).replace("``", "`").replace("|", "\\|").replace("<", "&lt;")
