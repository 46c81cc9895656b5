"""The options of the verbs, each declared once: its name, its help, and the key of the recipe that it sets."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from bot_dist.version import __version__


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"bot_dist {__version__}")
        raise typer.Exit


RecipeOrSource = Annotated[str, typer.Argument(metavar="RECIPE|SOURCE", help="A YAML recipe, or a checkpoint.")]
RecipeOrUrl = Annotated[str, typer.Argument(metavar="RECIPE|URL", help="A YAML recipe, or the URL of a store.")]
RecipeOrAny = Annotated[
    str, typer.Argument(metavar="RECIPE|SOURCE", help="A YAML recipe (its store), or a checkpoint.")
]
TargetUrl = Annotated[str | None, typer.Argument(metavar="TARGET_URL", help="Where to; needed with SOURCE.")]
RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML recipe, or RECIPE.yaml:MEMBER of a family.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. train.steps=0. Repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was made there before; all else stays.")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join (also RAY_ADDRESS); by default one is started in this process."),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show nothing but warnings, errors and what --json asks for.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every event as it happens.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Show the resolved recipe, every key under what it does, and stop.")
]
Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and stop.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Show the result as JSON, for programs.")]


@dataclass(frozen=True)
class Key:
    """The key of the recipe that an option sets."""

    name: str


def _help(text: str, **more: Any) -> OptionInfo:
    option: OptionInfo = typer.Option(help=text, show_default=False, **more)
    return option


AllowNonfinite = Annotated[
    bool,
    typer.Option("--allow-nonfinite", help="Go on where weights hold NaN or infinity."),
    Key("transfer.allow_nonfinite"),
]


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """The options that say what a transfer makes, in place of keys of a recipe: one declaration for all verbs.

    A verb takes them as one parameter; ``with_options`` spreads it out on the command line.
    """

    layers: Annotated[int | None, _help("Target number of blocks."), Key("target.layers")] = None
    embed: Annotated[int | None, _help("Target residual width."), Key("target.embed")] = None
    mlp: Annotated[int | None, _help("Target FFN units."), Key("target.mlp")] = None
    heads: Annotated[int | None, _help("Target query heads."), Key("target.heads")] = None
    kv_heads: Annotated[int | None, _help("Target key/value heads."), Key("target.kv_heads")] = None
    head_dim: Annotated[
        int | None, _help("Target size of a head, in models without rotary positions."), Key("target.head_dim")
    ] = None
    preset: Annotated[str | None, _help("Named settings, e.g. paper-gpt-s2l."), Key("transfer.preset")] = None
    wavelet: Annotated[
        str | None, _help("Discrete wavelet of PyWavelets (default: haar)."), Key("transfer.wavelet")
    ] = None
    gain: Annotated[str | None, _help("Scale of operators: auto, measure or orthonormal."), Key("transfer.gain")] = None
    width: Annotated[
        str | None, _help("How widths grow: auto, resample, copy, spread or lazy."), Key("transfer.width")
    ] = None
    depth: Annotated[
        str | None,
        _help("How blocks change: auto, wavelet, identity, stack, interpolate, even, similar or pairs."),
        Key("transfer.depth"),
    ] = None
    analysis: Annotated[str | None, _help("How axes shrink: auto, adaptive or wavelet."), Key("transfer.analysis")] = (
        None
    )
    basis: Annotated[
        str | None,
        _help("Basis of a residual width that shrinks: auto, rotation or permutation."),
        Key("transfer.basis"),
    ] = None
    calibrate: Annotated[
        list[str] | None,
        _help("Text to fit shrinking to; self: the model writes one. Repeatable.", metavar="TEXT"),
        Key("calibrate.text"),
    ] = None
    keep_details: Annotated[
        bool,
        typer.Option("--keep-details", help="Store what shrinking drops too, so that growing gives it back."),
        Key("transfer.keep_details"),
    ] = False
    tensor: Annotated[int | None, _help("Tensor-parallel degree."), Key("cluster.tensor")] = None
    data: Annotated[int | None, _help("Actors per tensor-parallel rank."), Key("cluster.data")] = None
    memory_limit: Annotated[
        str | None, _help("Tensor memory per actor, e.g. 512MiB."), Key("transfer.memory_limit")
    ] = None

    def overrides(self) -> Iterator[str]:
        """The options that were given, as overrides of a recipe's keys."""
        for name, key in keys_of(type(self)).items():
            if (value := getattr(self, name)) is None or value is False or value == []:
                continue
            yield f"{key}={value if isinstance(value, str) else json.dumps(value)}"


@dataclass(frozen=True, kw_only=True)
class ScaleOptions(TransferOptions):
    """The options of a transfer that is run, too."""

    executor: Annotated[
        str | None, _help("Who transfers: ray (actors) or local (this process)."), Key("cluster.executor")
    ] = None
    allow_nonfinite: AllowNonfinite = False


def keys_of(options: type[TransferOptions]) -> dict[str, str]:
    """The key of the recipe that each option sets, by the option's name in Python."""
    hints = get_type_hints(options, include_extras=True)
    return {
        field.name: key.name
        for field in dataclasses.fields(options)
        for key in get_args(hints[field.name])
        if isinstance(key, Key)
    }


def as_options(message: str) -> str:
    """The message with options in place of keys: ``transfer.memory_limit=2GiB`` as ``--memory-limit 2GiB``, and
    ``train.steps=0`` as ``--set train.steps=0``."""
    options = {key: name.replace("_", "-") for name, key in keys_of(ScaleOptions).items()}

    def option(match: re.Match[str]) -> str:
        return f"--{options[match[1]]}{' ' if match[2] else ''}"

    named = re.sub(rf"\b({'|'.join(map(re.escape, options))})\b(=?)", option, message)
    named = re.sub(r"(?<![\w.])(?<!--set )((?:calibrate|cluster|train|transfer)\.\w+=)", r"--set \1", named)
    return named.removeprefix("options: ") if named.startswith("options: --") else named


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb as typer takes it: groups of options spread out, and the options that all verbs have added."""
    groups: dict[str, type[TransferOptions]] = {}
    parameters: list[Parameter] = []
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and issubclass(group, TransferOptions):
            groups[parameter.name] = group
            hints = get_type_hints(group, include_extras=True)
            fields = dataclasses.fields(group)
            parameters += [_parameter(field.name, hints[field.name], field.default) for field in fields]
        else:
            parameters.append(_parameter(parameter.name, parameter.annotation, parameter.default))
    parameters += [_parameter("quiet", Quiet, False), _parameter("verbose", Verbose, False)]

    @functools.wraps(verb)
    def run(*, quiet: bool, verbose: bool, **given: Any) -> None:
        if quiet or verbose or "as_json" in given:
            from bot_dist.cli.terminal import console

            console.quiet, console.verbose = quiet, verbose
            console.stderr = bool(given.get("as_json"))  # then standard output is for JSON alone
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        verb(**given)

    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
