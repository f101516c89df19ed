"""PeftConfig: what an `adapter_config.json` says that decides what the adapter computes.

PEFT's own description: https://huggingface.co/docs/peft/package_reference/lora. What is not honoured here is refused by
name, and so is a key that nobody here knows, unless it says nothing.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trierarch.builder.errors import AdapterError

MAX_CONFIG_BYTES: Final = 1 << 20
CONFIG_NAME: Final = "adapter_config.json"
WHOLE_MODULES: Final = ("embed_tokens", "lm_head")
"""Of modules_to_save, by the last part of their names: those that a packed adapter holds whole."""

_SILENT: Final = frozenset(
    {
        # who made it, of what and how: the tensors tell the rest
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
        *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),
        *("fan_in_fan_out", "lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"),
        # how it was initialised or trained
        *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "velora_config"),
    }
)
"""Keys that change nothing of what a trained adapter computes."""

_MERGE: Final = "merge it into the checkpoint (PEFT's merge_and_unload) and build that"
_REFUSED: Final[Mapping[str, str]] = {
    "alora_invocation_tokens": f"an adapter that begins at a token is not served; train a plain LoRA, or {_MERGE}",
    "arrow_config": "adapters that are routed token by token are not served; name one of them",
    "kasa_config": f"KaSA changes the base model's weights; {_MERGE}",
    "layer_replication": f"layers that are there twice are another model; {_MERGE}",
    "lora_bias": f"biases of B are not served; train with lora_bias=False, or {_MERGE}",
    "megatron_config": "adapters of Megatron's layers are not read; convert it to Hugging Face's",
    "monteclora_config": f"its sampling is not served; {_MERGE}",
    "target_parameters": f"experts and other bare parameters are not adapted; train with target_modules, or {_MERGE}",
    "trainable_token_indices": f"single tokens' embeddings are not served; train with modules_to_save, or {_MERGE}",
    "use_bdlora": f"block-diagonal LoRA is not read; {_MERGE}",
    "use_qalora": f"QALoRA pools its inputs, which is not served; train with use_qalora=False, or {_MERGE}",
}
"""Key -> why a value that says something is refused, and the remedy."""

_BASE_CHANGING: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of init_lora_weights that change the base model's weights; what is saved without conversion is for those."""

_RISKY: Final = re.compile(r"\)[*+?{]|\(\?|\\[1-9]|\[\[|--|&&|\|\||~~")
"""Repeated groups, look-around, back references; and what Python may one day read otherwise."""
_MAX_PATTERN_LENGTH: Final = 512
_MAX_REPEATS: Final = 2
_MAX_CHOICES: Final = 8


class _Said(BaseModel):
    """The keys that count."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    r: Annotated[int, Field(gt=0)] = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    modules_to_save: tuple[str, ...] | None = None
    ensure_weight_tying: bool = False


_HONOURED: Final = frozenset({*_Said.model_fields, "peft_type", "bias", "init_lora_weights"})


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """A LoRA's configuration, checked."""

    use_rslora: bool
    use_dora: bool
    ensure_weight_tying: bool
    """Whether what is done to tied embeddings is done to the logits too."""
    _ranks: _Choice
    _alphas: _Choice

    @classmethod
    def parse(cls, content: bytes) -> PeftConfig:
        """From the bytes of the file.

        Raises:
            AdapterError: it is not JSON, no LoRA's, or asks for what is not honoured.
        """
        raw = _object(content)
        _refuse(raw)
        try:
            said = _Said.model_validate({key: value for key, value in raw.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise AdapterError(
                f"{CONFIG_NAME}: {field} is {reprlib.repr(first['input'])}: {first['msg']}; save the adapter anew with PEFT"
            ) from error
        _check_modules_to_save(said.modules_to_save or ())
        return cls(
            said.use_rslora,
            said.use_dora,
            said.ensure_weight_tying,
            _Choice.of("rank_pattern", said.rank_pattern, said.r),
            _Choice.of("alpha_pattern", said.alpha_pattern, said.lora_alpha),
        )

    def rank(self, module: str) -> int:
        """Of a module, by its name in the base model."""
        return int(self._ranks.of_module(module))

    def scaling(self, module: str) -> float:
        """What B A is multiplied by: alpha / r, or alpha / sqrt(r) where it `use_rslora`."""
        rank = self.rank(module)
        return self._alphas.of_module(module) / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A value for each module: that of the first pattern that the end of its name matches whole, as PEFT does it."""

    patterns: tuple[tuple[re.Pattern[str], float], ...]
    default: float

    @classmethod
    def of(cls, field: str, patterns: Mapping[str, float], default: float) -> _Choice:
        return cls(tuple((_compiled(field, key), value) for key, value in patterns.items()), default)

    def of_module(self, module: str) -> float:
        return next((value for pattern, value in self.patterns if pattern.match(module)), self.default)


def _object(content: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG_NAME} is not JSON ({error}); save the adapter anew with PEFT") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{CONFIG_NAME} is not a JSON object; save the adapter anew with PEFT")
    return raw


def _refuse(raw: Mapping[str, Any]) -> None:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"peft_type is {reprlib.repr(kind)}: only 'LORA' is served; train a LoRA, or {_MERGE}")
    bias = raw.get("bias") or "none"
    if bias != "none":
        raise AdapterError(
            f"bias is {reprlib.repr(bias)}: trained biases are not served; train with bias='none', or {_MERGE}"
        )
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        raise AdapterError(
            f"init_lora_weights is {reprlib.repr(start)}, which changes the base model's weights, and the adapter is for the "
            "changed ones; save it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), or "
            f"{_MERGE}"
        )
    for key, value in raw.items():
        if not value or key in _HONOURED or key in _SILENT:
            continue
        why = _REFUSED.get(key, f"it is not known here, and may change what the adapter computes; {_MERGE}")
        raise AdapterError(f"{reprlib.repr(key)[1:-1]} is {reprlib.repr(value)}: {why}")


def _check_modules_to_save(modules: tuple[str, ...]) -> None:
    for module in modules:
        if module.rpartition(".")[2] not in WHOLE_MODULES:
            raise AdapterError(
                f"modules_to_save has {reprlib.repr(module)}: only {' and '.join(WHOLE_MODULES)} are served whole; train "
                f"without, or {_MERGE}"
            )


def _compiled(field: str, key: str) -> re.Pattern[str]:
    """A key as PEFT matches it; one that could take the expression engine long is refused, since others wrote it."""
    repeats, choices = len(re.findall(r"[*+{]", key)), len(re.findall(r"[?|]", key))
    is_plain = len(key) <= _MAX_PATTERN_LENGTH and repeats <= _MAX_REPEATS and choices <= _MAX_CHOICES
    if not is_plain or _RISKY.search(key):
        raise AdapterError(
            f"{field} has the key {reprlib.repr(key)}, an expression that may take forever; save the adapter with module "
            "names for keys"
        )
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterError(
            f"{field} has the key {reprlib.repr(key)}: {error}; save the adapter anew with PEFT"
        ) from error
