"""A model's configuration as the installed ``transformers`` takes it: the one place where a stranger's ``config.json``
reaches it.

Its own class checks types, some ranges, and the lengths of per-layer lists. What it lets through, and fails at only
when a model is built or run, is in the table ``RULES``.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bot_dist.errors import FamilyError, nearest
from bot_dist.model import family_of, model_of

CODE = (
    *("attn_implementation", "experts_implementation", "kernels", "kernel_config", "use_kernels"),
    *("auto_map", "trust_remote_code", "custom_pipelines", "code_revision", "revision", "name_or_path"),
    *("quantization_config", "fusion_config", "transformers_weights", "dtype", "torch_dtype"),
)
"""Fields that choose code, name a repository, or say how weights are read, which is ours to choose; none of them
reaches ``transformers``, and none whose name begins with an underscore or is that of a method."""
RUN = {"use_cache": False, "return_dict": True, "output_hidden_states": False, "output_attentions": False}
"""Fields with which a model is run here."""
BUILDING = threading.Lock()
"""Held by the thread that has ``transformers`` build a model: to leave out the weights at first, it and ``accelerate``
change ``torch.nn.Module`` and ``PreTrainedModel`` for the whole process."""
_PROPERTIES = ("num_labels", "rope_scaling")
"""Fields of files that are properties of the configuration class."""
_ROPE = ("rope_parameters", "rope_scaling")
_LARGEST_LENGTH = 2**31
_MOST_LABELS = 2**20


@dataclass(frozen=True)
class Rule:
    """A rule that the values of some fields have to keep; null is always right."""

    names: str
    """Regular expression of the names of the fields."""
    holds: Callable[[Any, Mapping[str, Any]], bool]
    """Whether a value is right, given it and the whole configuration."""
    wanted: str


def _is_number(low: float, high: float = math.inf, *, open_low: bool = False) -> Callable[[Any, Any], bool]:
    def holds(value: Any, _: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
        return number and low <= value <= high and not (open_low and value == low)

    return holds


def _is_length(value: Any, _: Any) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST_LENGTH


def _in_vocabulary(value: Any, config: Mapping[str, Any]) -> bool:
    """Whether a token is in the vocabulary, or is the class's own default (GPT-2: 50256), which says nothing of this
    vocabulary."""
    ids = value if isinstance(value, list) else [value]
    return all(type(i) is int and 0 <= i < config.get("vocab_size", math.inf) for i in ids) or value in _unsaid(config)


def _unsaid(config: Mapping[str, Any]) -> list[Any]:
    """The ids of tokens that a configuration's class has by default."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind: Any = CONFIG_MAPPING[config["model_type"]]
    return [field.default for field in dataclasses.fields(kind) if field.name.endswith("_token_id")]


RULES = (
    Rule(r"\w+_(eps|epsilon)", _is_number(0, 1), "a number from 0 to 1"),
    Rule(r"\w*dropout(_prob)?|\w+_pdrop", _is_number(0, 1), "a probability"),
    Rule(r"initializer_range|initializer_factor", _is_number(0, 100), "a standard deviation"),
    Rule(r"(bos|eos|pad|unk|sep|cls|mask|decoder_start)_token_id", _in_vocabulary, "null or an id in the vocabulary"),
    Rule(r"(original_)?max_position_embeddings|n_positions|sliding_window", _is_length, "a number of tokens"),
    Rule(r"\w+_softcapping|query_pre_attn_scalar", _is_number(0, open_low=True), "a number above 0"),
    Rule(r"rope_theta|rotary_emb_base|rope_local_base_freq", _is_number(0, open_low=True), "a number above 0"),
    Rule(r"partial_rotary_factor|rotary_pct", _is_number(0, 1, open_low=True), "a share above 0"),
    Rule(r"num_labels", lambda value, _: type(value) is int and 1 <= value <= _MOST_LABELS, "a number of labels"),
    Rule(
        r"architectures",
        lambda value, _: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "a list of classes",
    ),
    Rule(
        r"id2label",
        lambda value, _: isinstance(value, Mapping) and all(str(key).isdecimal() for key in value),
        "names by the numbers of classes",
    ),
    Rule(r"per_layer_config", lambda value, _: False, "null: all layers alike"),
)
ROPE_RULES = (
    Rule(
        r"factor|attention_factor|low_freq_factor|high_freq_factor|beta_fast|beta_slow",
        _is_number(0, open_low=True),
        "a number above 0",
    ),
    Rule(r"mscale|mscale_all_dim", _is_number(0), "a number"),
    Rule(
        r"short_factor|long_factor",
        lambda value, _: isinstance(value, list) and all(_is_number(0, open_low=True)(x, None) for x in value),
        "a list of numbers above 0",
    ),
)
"""Rules for fields of ``rope_parameters``, beside the others."""


def check_configuration(config: Mapping[str, Any], where: str) -> None:
    """Raise FamilyError, naming ``where`` it is, for a configuration that the installed ``transformers`` refuses, can
    build no model from, or understands otherwise than the family does."""
    try:
        family_of(config)
        for path, value, rules in _fields(config):
            _check(path, value, rules, config)
        built = transformers_config(config)
        _check_rotary(built)
        _check_alike(model_of(config).sizes, model_of({**config, **_understood(built)}).sizes)
    except FamilyError as error:
        raise FamilyError(f"{where}: {error}") from None


def transformers_config(config: Mapping[str, Any], **fields: Any) -> Any:
    """The ``PreTrainedConfig`` of a configuration, with some ``fields`` in place of its own, and without those that are
    not the model's (``CODE``). Raises FamilyError when ``transformers`` refuses it."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind: Any = CONFIG_MAPPING[config["model_type"]]
    own = {field.name for field in dataclasses.fields(kind)} | {*kind.attribute_map, *_PROPERTIES}

    def reaches(key: str) -> bool:
        return key not in ("model_type", *CODE) and key[:1] != "_" and (key in own or not hasattr(kind, key))

    given = {**copy.deepcopy(dict(config)), **fields}  # it changes what it is given
    passed = {key: value for key, value in given.items() if reaches(key)}
    try:
        return kind(**passed)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FamilyError(
            f"config.json: transformers {transformers.__version__} refuses it: {reason}; correct the file"
        ) from None


def _understood(built: Any) -> dict[str, Any]:
    """All fields as ``transformers`` has them, but for ``architectures``, which it does not look at."""
    return {key: value for key, value in built.to_dict().items() if key not in ("architectures", *CODE)}


def _fields(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, tuple[Rule, ...]]]:
    """Every field with its path, and the rules for it; those of ``rope_parameters`` one by one."""
    for key, value in config.items():
        if key in _ROPE and isinstance(value, Mapping):
            for inner, field in value.items():
                by_layer = isinstance(field, Mapping) and inner.endswith("_attention")
                nested = field.items() if by_layer else [("", field)]
                for name, one in nested:
                    yield ".".join(filter(None, [key, inner, name])), one, (*RULES, *ROPE_RULES)
        else:
            yield key, value, RULES


def _check(path: str, value: Any, rules: tuple[Rule, ...], config: Mapping[str, Any]) -> None:
    if value is None:
        return
    name = path.rpartition(".")[2]
    for rule in rules:
        if re.fullmatch(rule.names, name) and not rule.holds(value, config):
            raise FamilyError(f"config.json: {path} is {value!r}, wanted {rule.wanted}; correct the file")
    for names, known in _known().items():
        if re.fullmatch(names, name if path == name else f"rope.{name}") and str(value) not in known:
            raise FamilyError(
                f"config.json: {path} is {value!r}, which transformers has not; {nearest(str(value), known)}"
            )


def _check_rotary(built: Any) -> None:
    """Raise FamilyError where the angles of rotary positions can't be computed."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = getattr(built, "rope_parameters", None) or {}
    by_layer = {key: rope[key] for key in built.nested_rope_parameter_keys(rope)} or {None: rope}
    for layer_type, fields in by_layer.items():
        if (kind := (fields or {}).get("rope_type", "default")) == "default":
            continue
        try:
            angles, _ = ROPE_INIT_FUNCTIONS[kind](built, "cpu", layer_type=layer_type)
            right = bool(angles.isfinite().all())
        except Exception:  # whatever arithmetic makes of fields that go with no others
            right = False
        if not right:
            raise FamilyError(f"config.json: rope_parameters {fields} give no angles; correct the file")


def _known() -> dict[str, set[str]]:
    """Values that fields may have: of activations, and of kinds of rotary positions."""
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return {
        r"hidden_act|hidden_activation|activation_function|pooler_act": {*ACT2FN},
        r"rope\.(rope_)?type": {"default", *ROPE_INIT_FUNCTIONS},
    }


def _check_alike(ours: Mapping[str, int], theirs: Mapping[str, int]) -> None:
    """Raise FamilyError where a field under another name makes other sizes of it."""
    if differ := [axis for axis in ours if ours[axis] != theirs.get(axis)]:
        sizes = ", ".join(f"{axis} {ours[axis]} and {theirs.get(axis)}" for axis in differ)
        raise FamilyError(f"config.json: fields contradict each other ({sizes}); correct the file")
