"""The user's verbs. No logic: parse, call one function of ``pipeline`` or ``checks``, show.

Exit status: 0 done, 1 failed, 2 the input is wrong, 128 + signal where Ctrl-C (130), SIGTERM (143) or a hang-up (129)
stopped it. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer

from bot_dist.errors import BotDistError, CheckpointError, InputError, presentable
from bot_dist.storage.disk import told
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.recipe import Recipe

INTERRUPTED = 130
"""What typer returns when Ctrl-C stopped a verb."""

app = typer.Typer(
    name="bot_dist",
    help="Grow and shrink pretrained transformers by wavelets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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
AsJson = Annotated[bool, typer.Option("--json", help="Show the result as JSON, for programs.")]


Layers = Annotated[int | None, typer.Option(help="Target number of blocks.", show_default=False)]
Embed = Annotated[int | None, typer.Option(help="Target residual width.", show_default=False)]
Mlp = Annotated[int | None, typer.Option(help="Target FFN units.", show_default=False)]
Heads = Annotated[int | None, typer.Option(help="Target query heads.", show_default=False)]
KvHeads = Annotated[int | None, typer.Option(help="Target key/value heads.", show_default=False)]
HeadDim = Annotated[
    int | None, typer.Option(help="Target size of a head, in models without rotary positions.", show_default=False)
]
Wavelet = Annotated[
    str | None, typer.Option(help="Discrete wavelet of PyWavelets (default: haar).", show_default=False)
]
Gain = Annotated[str | None, typer.Option(help="Scale of operators: auto, measure or orthonormal.", show_default=False)]
Width = Annotated[
    str | None, typer.Option(help="How widths grow: auto, resample, copy, spread or lazy.", show_default=False)
]
Depth = Annotated[
    str | None,
    typer.Option(
        help="How blocks change: auto, wavelet, identity, stack, interpolate, even, similar or pairs.",
        show_default=False,
    ),
]
Analysis = Annotated[str | None, typer.Option(help="How axes shrink: auto, adaptive or wavelet.", show_default=False)]
Basis = Annotated[
    str | None,
    typer.Option(help="Basis of a residual width that shrinks: auto, rotation or permutation.", show_default=False),
]
Calibrate = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT", help="Text to fit shrinking to; self: the model writes one. Repeatable.", show_default=False
    ),
]
Preset = Annotated[str | None, typer.Option(help="Named settings, e.g. paper-gpt-s2l.", show_default=False)]
KeepDetails = Annotated[
    bool, typer.Option("--keep-details", help="Store what shrinking drops too, so that growing gives it back.")
]
AllowNonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Go on where weights hold NaN or infinity.")]
Tensor = Annotated[int | None, typer.Option(help="Tensor-parallel degree.", show_default=False)]
Data = Annotated[int | None, typer.Option(help="Actors per tensor-parallel rank.", show_default=False)]
MemoryLimit = Annotated[str | None, typer.Option(help="Tensor memory per actor, e.g. 512MiB.", show_default=False)]
ExecutorKind = Annotated[
    str | None, typer.Option(help="Who transfers: ray (actors) or local (this process).", show_default=False)
]


Verb = TypeVar("Verb", bound=Callable[..., None])


def _verb(work: Verb) -> Verb:
    """A verb of the command line, with the options that all of them have."""

    @functools.wraps(work)
    def verb(*args: Any, quiet: bool, verbose: bool, **options: Any) -> None:
        if quiet or verbose or "as_json" in options:
            from bot_dist.cli.terminal import console

            console.quiet, console.verbose = quiet, verbose
            console.stderr = bool(options.get("as_json"))  # then standard output is for JSON alone
        work(*args, **options)

    common = {"quiet": Quiet, "verbose": Verbose}
    added = [Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=kind) for name, kind in common.items()]
    known = signature(work, eval_str=True)
    extended = known.replace(parameters=[*known.parameters.values(), *added])
    verb.__dict__["__signature__"] = extended
    verb.__annotations__ = {**work.__annotations__, **common}
    app.command()(verb)
    return work


@_verb
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    allow_nonfinite: AllowNonfinite = False,
    address: Address = None,
    print_config: PrintConfig = False,
) -> None:
    """Plan, transfer, continue pretraining, export and report: the whole of a recipe."""
    from bot_dist.cli import console
    from bot_dist.cli.progress import progress
    from bot_dist.pipeline.run import run as run_all
    from bot_dist.pipeline.transfer import plan_transfer

    allowed = ["transfer.allow_nonfinite=true"] if allow_nonfinite else []
    resolved = _recipe(recipe, [*allowed, *(overrides or ())], overwrite, address, family=True)
    if print_config:
        console.show_recipe(resolved)
        return
    for member in _members(resolved):
        console.show_plan(plan_transfer(member), member)
    with progress() as on_event:
        facts = run_all(resolved, on_event)
    console.show_run(facts, resolved)


@_verb
def plan(
    source: RecipeOrSource,
    layers: Layers = None,
    embed: Embed = None,
    mlp: Mlp = None,
    heads: Heads = None,
    kv_heads: KvHeads = None,
    head_dim: HeadDim = None,
    preset: Preset = None,
    wavelet: Wavelet = None,
    gain: Gain = None,
    width: Width = None,
    depth: Depth = None,
    analysis: Analysis = None,
    basis: Basis = None,
    calibrate: Calibrate = None,
    keep_details: KeepDetails = False,
    tensor: Tensor = None,
    data: Data = None,
    memory_limit: MemoryLimit = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Simulate on a cluster of these GB/s, joined by commas: storage_gb_s=100 (of all), network_gb_s=12.5 "
            "(of a node), device_gb_s=1500; also actors_per_node=8, request_s=0.1.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Show what a transfer would do, without doing it. A model's config.json alone is enough."""
    from bot_dist.cli import console
    from bot_dist.pipeline.pretrain import check_training
    from bot_dist.pipeline.run import check_data
    from bot_dist.pipeline.transfer import plan_transfer
    from bot_dist.plan import parse_hardware, simulate

    given = _plain(locals())
    resolved = _recipe_or_options(source, None, overrides, False, None, given, family=True)
    cluster = parse_hardware(hardware) if hardware is not None else None
    found = []
    for member in _members(resolved):
        with _in_options(source):
            planned = plan_transfer(member)
            check_data(member)
        if member.train.text or member.train.images:
            check_training(member, planned)
        simulated = simulate(planned, cluster) if cluster is not None else None
        if as_json:
            found.append(console.plan_json(planned, member, simulated))
            continue
        console.show_plan(planned, member)
        if simulated is not None:
            console.show_simulation(simulated)
    if as_json:
        console.show_json(found if resolved.family else found[0])


@_verb
def scale(
    source: RecipeOrSource,
    target_url: TargetUrl = None,
    layers: Layers = None,
    embed: Embed = None,
    mlp: Mlp = None,
    heads: Heads = None,
    kv_heads: KvHeads = None,
    head_dim: HeadDim = None,
    preset: Preset = None,
    wavelet: Wavelet = None,
    gain: Gain = None,
    width: Width = None,
    depth: Depth = None,
    analysis: Analysis = None,
    basis: Basis = None,
    calibrate: Calibrate = None,
    keep_details: KeepDetails = False,
    tensor: Tensor = None,
    data: Data = None,
    memory_limit: MemoryLimit = None,
    executor: ExecutorKind = None,
    allow_nonfinite: AllowNonfinite = False,
    events: Annotated[Path | None, typer.Option(help="File to append events to, as JSON lines.")] = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    address: Address = None,
) -> None:
    """Transfer only: write a source checkpoint as a store of another size, or, where no size is given, as it is."""
    from bot_dist.cli import console
    from bot_dist.cli.progress import progress
    from bot_dist.pipeline.records import logged
    from bot_dist.pipeline.transfer import plan_transfer, transfer

    if target_url is None and not _is_recipe(source):
        raise InputError("scale needs a target; write: bot_dist scale SOURCE TARGET_URL --layers …")
    resolved = _recipe_or_options(source, target_url, overrides, overwrite, address, _plain(locals()))
    with _in_options(source):
        console.show_plan(plan_transfer(resolved), resolved)
    with _in_options(source), progress() as on_event:
        report = transfer(resolved, logged(events, on_event) if events else on_event)
    console.show_transfer(report, resolved.transferred_url)


@_verb
def pretrain(
    recipe: RecipePath, overrides: Overrides = None, overwrite: Overwrite = False, address: Address = None
) -> None:
    """Continue pretraining from the recipe's transferred store."""
    from bot_dist.cli import console
    from bot_dist.cli.progress import progress
    from bot_dist.pipeline.pretrain import pretrain as train

    resolved = _recipe(recipe, overrides, overwrite, address)
    with progress() as on_event:
        result = train(resolved, on_event)
    console.show_pretrain(result)


@_verb
def compare(
    recipe: RecipePath, overrides: Overrides = None, address: Address = None, print_config: PrintConfig = False
) -> None:
    """Make one target in several ways, train all alike, and tell how much training each way saves over scratch."""
    from bot_dist.cli import console
    from bot_dist.compare.recipe import load_comparison

    resolved = load_comparison(recipe, [*(overrides or ()), *_flags(False, address)])
    if print_config:
        console.show_recipe(resolved)
        return
    from bot_dist.cli.progress import progress
    from bot_dist.compare.trials import compare as run_comparison

    with progress() as on_event:
        facts = run_comparison(resolved, on_event)
    console.show_trials(facts, resolved.output)


@_verb
def verify(
    url: RecipeOrUrl,
    quick: Annotated[bool, typer.Option("--quick", help="Look at existence and sizes only.")] = False,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Let so many Ray actors read, in place of threads.", show_default=False)
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Read every chunk of a committed store and check it against its manifest."""
    from bot_dist.cli import console
    from bot_dist.cli.progress import progress
    from bot_dist.pipeline import checks

    recipe = _recipe_or_options(url, None, overrides, False, address, ())
    url = recipe.transferred_url if _is_recipe(url) else url
    with progress() as on_event:
        found = checks.verify(url, on_event, quick=quick, actors=actors, cluster=recipe.cluster)
    if as_json:
        console.show_json({"url": label(url), "intact": not found.damaged, **dataclasses.asdict(found)})
    else:
        console.show_verification(url, found)
    if found.damaged:
        raise typer.Exit(1)


@_verb
def inspect(
    url: RecipeOrAny,
    as_json: Annotated[
        bool, typer.Option("--json", help="Show it as JSON; of a store, the manifest without digests of chunks.")
    ] = False,
    operators: Annotated[
        bool, typer.Option("--operators", help="Show the operators that a store was made with.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Show what a checkpoint is and, if it is a store, where it came from. No weight is read."""
    from bot_dist.cli import console
    from bot_dist.formats.describe import describe
    from bot_dist.formats.open import open_source
    from bot_dist.store import CheckpointReader
    from bot_dist.store.summary import operator_rows

    source = open_source(_store_url(url, overrides))
    if not isinstance(source, CheckpointReader):
        if operators:
            console.show_json([]) if as_json else console.show_operators(source.url, [])
        else:
            found = describe(source)
            console.show_json(dataclasses.asdict(found)) if as_json else console.show_description(found)
        return
    try:
        if operators:
            rows = operator_rows(source)
            if as_json:
                console.show_json([dataclasses.asdict(row) for row in rows])
            else:
                console.show_operators(source.url, rows)
        elif as_json:
            console.show_json(console.manifest_json(source.manifest))
        else:
            console.show_store(describe(source), source.manifest)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = "its manifest does not record what a transfer does"
        raise CheckpointError(f"{label(source.url)}: {what} ({error!r}); make the store again") from None


@_verb
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A store or another checkpoint.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    quick: Annotated[bool, typer.Option("--quick", help="Compare metadata and digests only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints. Exit status: 0 no difference, 1 some, 2 they can't be compared."""
    from bot_dist.cli import console
    from bot_dist.cli.progress import progress
    from bot_dist.pipeline import checks

    try:
        with progress() as on_event:
            found = checks.diff(first, second, on_event, quick=quick)
    except BotDistError as error:
        raise InputError(*error.args) from error
    if as_json:
        console.show_json({"equal": found.equal, **dataclasses.asdict(found)})
    else:
        console.show_diff(first, second, found)
    if not found.equal:
        raise typer.Exit(1)


@_verb
def export(
    url: RecipeOrSource,
    folder: Annotated[
        str | None,
        typer.Argument(metavar="FOLDER|FILE.gguf|hf://USER/MODEL", help="Where to; needed with SOURCE."),
    ] = None,
    to: Annotated[
        Literal["safetensors", "dcp", "gguf"] | None,
        typer.Option(help="Format of the weights (default: safetensors, or gguf for FILE.gguf).", show_default=False),
    ] = None,
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        typer.Option(
            help="Of all weights in safetensors (default: as stored), of matrices in GGUF (default: f16).",
            show_default=False,
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Most bytes of one safetensors file, e.g. 2GB (default: 5GB).", show_default=False),
    ] = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint for others: as a Hugging Face folder, here or on the hub, as GGUF, or for torch's DCP."""
    from bot_dist.cli import console
    from bot_dist.cli.progress import progress
    from bot_dist.pipeline.export import export as export_trained
    from bot_dist.pipeline.export import export_store

    to = to or ("gguf" if folder is not None and folder.endswith(".gguf") else "safetensors")
    options: dict[str, Any] = {"to": to, "dtype": dtype, "max_shard_bytes": _bytes("--max-shard-size", max_shard_size)}
    with progress() as on_event:
        if _is_recipe(url):
            report = export_trained(_recipe(url, overrides, overwrite), on_event, folder=folder, **options)
        elif folder is None:
            raise InputError("export needs a FOLDER (or FILE.gguf) too; write: bot_dist export SOURCE FOLDER")
        else:
            report = export_store(url, folder, overwrite=overwrite, on_event=on_event, **options)
    console.show_export(report)


@_verb
def schema(
    of: Annotated[
        Literal["run", "compare"], typer.Argument(metavar="VERB", help="The verb whose recipes it describes.")
    ] = "run",
) -> None:
    """Print the JSON schema of recipes, for editors that check and complete YAML."""
    from bot_dist.cli import console
    from bot_dist.compare.recipe import ComparisonRecipe
    from bot_dist.recipe import Recipe
    from bot_dist.recipe import schema as schema_of

    console.show_json(schema_of(Recipe if of == "run" else ComparisonRecipe))


def _bytes(option: str, text: str | None) -> int | None:
    """Bytes that an option names, if it is given. Raises InputError when it names none."""
    from bot_dist.recipe import parse_bytes

    try:
        size = parse_bytes(text) if text is not None else None
    except ValueError as error:
        raise InputError(f"{option}: {error}") from None
    if size == 0:
        raise InputError(f"{option} is 0; write a number of bytes or for example 2GB")
    return size


def _is_recipe(path: str) -> bool:
    from bot_dist.recipe import split_member

    return Path(split_member(path)[0]).suffix in (".yaml", ".yml")


def _members(recipe: Recipe) -> list[Recipe]:
    """The recipes of a family's members; of no family, the recipe itself."""
    from bot_dist.recipe import members_of

    return list(members_of(recipe).values()) or [recipe]


def _recipe(
    path: str,
    overrides: Sequence[str] | None,
    overwrite: bool = False,
    address: str | None = None,
    *,
    family: bool = False,
) -> Recipe:
    """``family``: whether it may hold one."""
    from bot_dist.recipe import load_recipe, refuse_family

    recipe = load_recipe(path, [*(overrides or ()), *_flags(overwrite, address)])
    return recipe if family else refuse_family(recipe)


def _flags(overwrite: bool, address: str | None) -> list[str]:
    return (["overwrite=true"] if overwrite else []) + ([f"cluster.address={address}"] if address else [])


@contextmanager
def _in_options(source: str) -> Iterator[None]:
    """Errors name options in place of keys of a recipe, where there is no recipe."""
    try:
        yield
    except BotDistError as error:
        if not _is_recipe(source):
            error.args = tuple(_as_options(str(line)) for line in error.args)
        raise


def _as_options(message: str) -> str:
    """``transfer.memory_limit=2GiB`` as ``--memory-limit 2GiB``, and ``train.steps=0`` as ``--set train.steps=0``."""
    options = {f"{section}.{name}": name for section, names in _SECTIONS.items() for name in names}
    options["calibrate.text"] = "calibrate"

    def option(match: re.Match[str]) -> str:
        return f"--{options[match[1]].replace('_', '-')}{' ' if match[2] else ''}"

    named = re.sub(rf"\b({'|'.join(map(re.escape, options))})\b(=?)", option, message)
    named = re.sub(r"(?<![\w.])(?<!--set )((?:calibrate|cluster|train|transfer)\.\w+=)", r"--set \1", named)
    return named.removeprefix("options: ") if named.startswith("options: --") else named


_SECTIONS = {
    "target": ("layers", "embed", "mlp", "heads", "kv_heads", "head_dim"),
    "transfer": (
        *("preset", "wavelet", "gain", "width", "depth", "analysis", "basis"),
        *("keep_details", "memory_limit", "allow_nonfinite"),
    ),
    "cluster": ("tensor", "data", "executor"),
}


def _plain(arguments: dict[str, Any]) -> list[str]:
    """The plain options that were given, as overrides of a recipe."""
    texts = [f"calibrate.text={json.dumps(arguments['calibrate'])}"] if arguments.get("calibrate") else []
    return texts + [
        f"{section}.{name}={str(arguments[name]).lower() if arguments[name] is True else arguments[name]}"
        for section, names in _SECTIONS.items()
        for name in names
        if arguments.get(name) is not None and arguments[name] is not False
    ]


def _recipe_or_options(
    source: str,
    target_url: str | None,
    overrides: Sequence[str] | None,
    overwrite: bool,
    address: str | None,
    plain: Sequence[str],
    *,
    family: bool = False,
) -> Recipe:
    """A recipe file, or the recipe that ``SOURCE TARGET_URL`` and plain options make."""
    from bot_dist.recipe import make_recipe

    if _is_recipe(source):
        target = [f"target_url={target_url}"] if target_url is not None else []
        return _recipe(source, [*target, *plain, *(overrides or ())], overwrite, address, family=family)
    data = {"source": source, "output": ".", "target_url": target_url}
    with _in_options(source):
        return make_recipe(data, [*plain, *(overrides or ()), *_flags(overwrite, address)], where="options")


def _store_url(url: str, overrides: Sequence[str] | None) -> str:
    if _is_recipe(url):
        return _recipe(url, overrides).transferred_url
    if overrides:
        raise InputError(f"--set {overrides[0]}: overrides a recipe, and {url} is a store; leave it out")
    return url


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not all terminals have all characters
            stream.reconfigure(errors="backslashreplace")
    stopped_by = [signal.SIGINT]
    _stop_as_ctrl_c(stopped_by)
    try:
        status = app(args=list(argv) if argv is not None else None, prog_name=app.info.name, standalone_mode=False)
    except BotDistError as error:
        _fail(str(error), error.exit_status)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            if message := error.format_message():
                _fail(presentable(message), 2)
            sys.exit(2)  # the help is shown already
        if (refused := told(error)) is not None:
            _fail(presentable(refused), 1)
        if isinstance(error, MemoryError):
            _fail(presentable(f"there is not enough memory: {error or 'none is left'}"), 1)
        sys.stderr.writelines(f"{presentable(line)}\n" for line in traceback.format_exc().splitlines())
        sys.exit(1)
    if status == INTERRUPTED:
        message = "interrupted; nothing unfinished was committed, run the same command again to resume"
        _fail(message, 128 + stopped_by[-1])
    sys.exit(status or 0)


def _stop_as_ctrl_c(stopped_by: list[signal.Signals]) -> None:
    """SIGTERM (a scheduler) and SIGHUP (a terminal that is gone) stop a verb as cleanly as Ctrl-C, and are remembered.

    They often come twice, from the scheduler and from its script: the first is enough, the others don't disturb it.
    """

    kinds = signal.SIGTERM, signal.SIGHUP

    def stop(number: int, frame: object) -> None:
        if len(stopped_by) == 1:
            stopped_by.append(signal.Signals(number))
            for kind in kinds:  # to the very end: Python takes its handlers away before it is gone
                signal.signal(kind, signal.SIG_IGN)
            raise KeyboardInterrupt

    for kind in kinds:
        if signal.getsignal(kind) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(kind, stop)


def _fail(message: str, status: int) -> NoReturn:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print("error:", style="bold red", end=" ")
    console.print(message)
    sys.exit(status)


if __name__ == "__main__":
    main()
