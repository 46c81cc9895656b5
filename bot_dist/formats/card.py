"""The model card of an export: what it was made of, how, and under which licence.

Format: https://huggingface.co/docs/hub/model-cards. No path of this machine is in it, and no part of a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from bot_dist.errors import BotDistError
from bot_dist.formats.beside import CARD, MODULES, is_legal
from bot_dist.formats.companions import Companions
from bot_dist.formats.gguf.about import ABOUT, card_fields
from bot_dist.formats.source import Source
from bot_dist.model import Model
from bot_dist.parsing import parse_object, parse_yaml
from bot_dist.storage.files import is_local
from bot_dist.store import CheckpointReader, Manifest
from bot_dist.store.summary import changed_settings
from bot_dist.urls import label
from bot_dist.version import __version__

TAG = "bot_dist"
_FIELDS = ("license", "license_name", "license_link", "language", "base_model", "datasets", "pipeline_tag", "tags")
"""Fields that are taken over from the source's card, or from the metadata of a GGUF file."""
_ABOUT = ("model_name", "author", "organization")
"""Fields that are taken over for GGUF alone."""
_TASKS = {"causal": "text-generation", "masked": "fill-mask", "image": "image-classification"}
_FRONT_MATTER = re.compile(rb"\A(?:\xef\xbb\xbf)?---[ \t]*\r?\n(.{0,65536}?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_PATH = re.compile(r"(?<![\w:/.~<-])(?:file://)?~?/(?:[^\s/,;'\"`|)\]}]+/)*([^\s/,;'\"`|)\]}]+)")
_HUB = re.compile(r"hf://(?!datasets/|spaces/)([\w.-]+/[\w.-]+?)(?:@[^/]*)?(?:/.*)?")
_WHERE = ("target_url", "import_to", "overwrite", "cluster.")
"""Settings of a recipe that say where something is done, and not what is done."""
_MOST_TEXTS, _MOST_STORES, _MOST_OPERATORS = 50, 10, 20

Fields = dict[str, str | list[str]]


@dataclass(frozen=True)
class Origin:
    """The origin of an export."""

    stores: tuple[Manifest, ...]
    """Manifests of the exported store and of those that it was made from, as far as they are there; empty where what is
    exported is no store."""
    first: Mapping[str, Any]
    """Identity of the checkpoint that the last of them was made from: url, format, files or digest."""

    @property
    def name(self) -> str:
        """The name of the origin, without its place on this machine."""
        return shown(str(self.first.get("url", "")))

    @property
    def hub(self) -> str | None:
        """The origin's name on Hugging Face's hub; None where it comes from elsewhere."""
        match = _HUB.fullmatch(str(self.first.get("url", "")))
        return match[1] if match else None

    @property
    def title(self) -> str:
        """A name for a model that has none."""
        last = PurePosixPath(self.hub or self.name).name
        return re.sub(r"\.(gguf|safetensors|zarr)$", "", last) or "model"


def origin_of(source: Source) -> Origin:
    """Follow a store to those that it was made from, where these are still what they were."""
    if not isinstance(source, CheckpointReader):
        return Origin((), source.provenance())
    stores = [source.manifest]
    while len(stores) < _MOST_STORES:
        made_from = stores[-1].provenance.get("source", {})
        if made_from.get("format") != "bot_dist" or not is_local(url := str(made_from.get("url"))):
            break
        try:
            manifest = CheckpointReader(url).manifest
        except BotDistError:  # moved, or removed
            break
        if manifest.digest != made_from.get("digest"):
            break
        stores.append(manifest)
    return Origin(tuple(stores), stores[-1].provenance.get("source", {}))


def known_fields(companions: Companions) -> Fields:
    """The fields of the source's own card, or of a GGUF file. Values that are no text or list of texts are passed
    over."""
    if ABOUT in companions.files:
        said = card_fields(parse_object(companions.files[ABOUT], f"{label(companions.url)}: {ABOUT}"))
    elif front := _FRONT_MATTER.match(companions.files.get(CARD, b"")):
        try:
            said = parse_yaml(front[1].decode(errors="replace"), CARD, ValueError)
        except ValueError:  # it is for people to read, and the model is none the worse
            said = {}
    else:
        said = {}
    wanted = (*_FIELDS, *_ABOUT) if isinstance(said, Mapping) else ()
    return {key: value for key in wanted if (value := _text(said.get(key)))}


def _text(value: Any) -> str | list[str]:
    """A text or a list of texts; empty where it is something else."""
    if isinstance(value, list):
        return [text for inner in value[:_MOST_TEXTS] if isinstance(text := _text(inner), str) and text]
    if value is False:  # a language, Norwegian, to YAML
        return "no"
    return value if isinstance(value, str) else ""


def model_card(
    source: Source,
    model: Model,
    companions: Companions,
    *,
    title: str,
    dtype: str,
    files: Iterable[str],
    library: str = "transformers",
) -> bytes:
    """``README.md`` of an export of ``model``, a ``title`` for people above it. ``files`` lie beside it; ``library`` is
    what loads it."""
    from huggingface_hub import ModelCardData

    origin, known = origin_of(source), known_fields(companions)
    fields: dict[str, Any] = {key: known[key] for key in _FIELDS if key in known}
    if origin.hub:
        fields["base_model"] = origin.hub
    fields["tags"] = [*(tag for tag in known.get("tags", ()) if tag != TAG), TAG]
    fields.setdefault("pipeline_tag", _TASKS[model.family.objective])
    fields["library_name"] = "sentence-transformers" if MODULES in files else library
    front = ModelCardData(**fields).to_yaml(line_break="\n")
    body = "\n".join(_body(origin, model, known, title, dtype, sorted(name for name in files if is_legal(name))))
    return f"---\n{front}\n---\n\n{_PATH.sub(_last, body)}\n".encode()


def shown(url: str) -> str:
    """A URL without secrets; of a local path the last name alone."""
    text = label(url)
    if "://" in text and not text.startswith("file://"):
        return text
    return text.rstrip("/").rpartition("/")[2] or "a local folder"


def _last(match: re.Match[str]) -> str:
    return match[1]


def _body(origin: Origin, model: Model, known: Fields, title: str, dtype: str, legal: Sequence[str]) -> Iterator[str]:
    yield f"# {_line(title)}"
    yield ""
    base = f"[{origin.hub}](https://huggingface.co/{origin.hub})" if origin.hub else f"`{_line(origin.name)}`"
    made = [manifest for manifest in reversed(origin.stores) if "plan" in manifest.provenance]
    resized = any(manifest.provenance["plan"].get("operators") for manifest in made)
    what = "resized" if resized else "converted"
    yield f"{base}, {what} by bot_dist {__version__}: {model.n_parameters:,} parameters, weights in {dtype}."
    yield ""
    yield from _sizes(made, model)
    for manifest in reversed(origin.stores):
        yield from _store(manifest)
    if not origin.stores:
        yield "## What was done"
        yield ""
        yield "The weights are those of the source, in another file."
        yield ""
        yield from _facts(origin.first)
        yield ""
    yield "## Licence"
    yield ""
    licence = known.get("license_name") or known.get("license")
    said = ", ".join(licence) if isinstance(licence, list) else licence
    yield f"That of the source: {_line(said)}." if said else "That of the source, whose card names none."
    if legal:
        yield f"Its own files on that lie beside this one: {', '.join(f'`{_line(name)}`' for name in legal)}."


def _sizes(made: Sequence[Manifest], model: Model) -> Iterator[str]:
    """A table of all axes: the source's sizes, where they are known, and the model's."""
    known = [m.provenance["transfer"]["sizes"]["source"] for m in made if "sizes" in m.provenance["transfer"]]
    source: Mapping[str, int] = known[0] if known else {}
    yield "| axis | source | this model |"
    yield "|---|---:|---:|"
    for axis, size in model.sizes.items():
        yield f"| {axis} | {source.get(axis, '')} | {size} |"
    yield ""


def _store(manifest: Manifest) -> Iterator[str]:
    """Lines that tell how a store was made."""
    provenance = manifest.provenance
    if "plan" in provenance:
        yield "## Transfer"
        yield ""
        yield from _facts(provenance["source"])
        yield f"- plan: `{provenance['plan']['digest']}`"
        if kept := provenance["plan"].get("function_kept"):
            yield f"- function kept: {_line(kept)}"
        yield from (f"- note: {_line(note)}" for note in provenance["plan"]["notes"])
        yield from _operators(provenance["plan"].get("operators", {}))
        yield from (
            f"- fitted operators: `{name}`, `{digest}`" for name, digest in provenance.get("operators", {}).items()
        )
        for stage in provenance["transfer"].get("calibrate", ()):
            if stage.get("loss") is not None:
                after = " and ".join(stage["axes"])
                yield f"- held-out loss {f'after fitting {after}' if after else 'of the source'}: {stage['loss']:.4f}"
        changed = changed_settings(_public(provenance["recipe"])) if "recipe" in provenance else ()
        if settings := [setting for setting in changed if not setting.startswith(_WHERE)]:
            yield f"- recipe: {', '.join(map(_code, settings))}"
    else:
        yield "## Training"
        yield ""
        yield f"- steps: {provenance.get('steps', provenance.get('training', {}).get('step', '?'))}"
        for held_out in provenance.get("held_out", ()):
            yield f"- held-out loss after step {held_out['step']}: {held_out['loss']:.4f}"
    yield f"- store: `{manifest.digest}`"
    if "versions" in provenance:
        yield f"- versions: {', '.join(f'{name} {version}' for name, version in provenance['versions'].items())}"
    yield ""


def _facts(source: Mapping[str, Any]) -> Iterator[str]:
    """Lines that identify a source."""
    yield f"- source: `{_line(shown(str(source.get('url', ''))))}` ({source.get('format')})"
    if "digest" in source:
        yield f"- its digest: `{source['digest']}`"
    for name, file in list(source.get("files", {}).items())[:_MOST_OPERATORS]:
        yield f"- `{_line(name)}`: {file.get('bytes', 0):,} bytes, header's SHA-256 `{file.get('header_sha256')}`"


def _operators(planned: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Lines that tell the operator of each axis, and its modules."""
    by_operator: dict[tuple[str, str], list[str]] = {}
    for module, by_axis in planned.items():
        for axis, described in by_axis.items():
            by_operator.setdefault((axis, described), []).append(module)
    for (axis, described), modules in list(by_operator.items())[:_MOST_OPERATORS]:
        yield f"- along {axis}: {_line(described)} ({', '.join(modules)})"
    if more := len(by_operator) - _MOST_OPERATORS:
        yield from [f"- and {more} more operators"] if more > 0 else []


def _public(value: Any) -> Any:
    """A recipe's settings with the last names of local paths alone."""
    if isinstance(value, Mapping):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return shown(value) if isinstance(value, str) and value.startswith(("/", "~", "file:", ".")) else value


def _line(text: object) -> str:
    """On one line, and nothing that begins a markup of its own."""
    return re.sub(r"[`<>|\[\]\x00-\x1f\x7f]+", " ", str(text))[:500]


def _code(text: object) -> str:
    """A span of code on one line, in which nothing but a backtick would be markup."""
    inside = re.sub(r"[`\x00-\x1f\x7f]+", " ", str(text))[:500]
    return f"`{inside}`"
