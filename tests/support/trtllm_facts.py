"""Recorded facts about TensorRT-LLM's interfaces, and whether what we write agrees with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parents[1] / "data"

NESTED = {
    "kv_cache_config": "KvCacheConfig",
    "scheduler_config": "SchedulerConfig",
    "cuda_graph_config": "CudaGraphConfig",
    "peft_cache_config": "PeftCacheConfig",
    "lora_config": "LoraConfig",
    "plugin_config": "PluginConfig",
}
"""Field -> the class that an object in it becomes."""
_DECODING = {
    "NGram": "NGramDecodingConfig",
    "DraftTarget": "DraftTargetDecodingConfig",
    "Draft_Target": "DraftTargetDecodingConfig",
    "Eagle": "EagleDecodingConfig",
    "Eagle3": "Eagle3DecodingConfig",
    "MTP": "MTPDecodingConfig",
    "SA": "SADecodingConfig",
}
CHOICES = {
    "capacity_scheduler_policy": "CapacitySchedulerPolicy",
    "context_chunking_policy": "ContextChunkingPolicy",
    "batching_type": "BatchingType",
}


@cache
def facts() -> dict[str, Any]:
    """Of building; classes of the LLM API are in `_classes`."""
    found: dict[str, Any] = json.loads((_DATA / "tensorrt_llm_building.json").read_text(encoding="utf-8"))
    return found


@cache
def _classes(release: str) -> dict[str, Any]:
    """Class -> its bases, and its own fields by name."""
    recorded_classes = json.loads((_DATA / "tensorrt_llm_signatures.json").read_text(encoding="utf-8"))[release]
    found = {
        name: {"bases": one.get("bases", []), "fields": {field["name"]: field for field in one.get("fields", [])}}
        for name, one in recorded_classes.items()
        if not one.get("absent") and name != "errors"
    }
    return found | {
        name: facts()[release][name] for name in ("BuildConfig", "PluginConfig") if name in facts()[release]
    }


BETWEEN: Mapping[str, frozenset[str]] = {"1.1": frozenset({"sampler_type"})}
"""Release that is not recorded -> what its release notes name, and the one before it has not."""


def recorded(release: str) -> tuple[str, ...]:
    """Releases that are recorded for one of ours; 1.1 is held to both its neighbours."""
    return ("1.0", "1.2") if release == "1.1" else (release,)


def fields(release: str, name: str) -> dict[str, dict[str, Any]]:
    """Fields of a class, its bases' included."""
    one = _classes(release)[name]
    found: dict[str, dict[str, Any]] = {}
    for base in one["bases"]:
        found |= fields(release, base)
    own = {key: field for key, field in one["fields"].items() if field.get("init", True)}
    dropped = one["fields"].keys() - own.keys()
    return {key: field for key, field in (found | own).items() if key not in dropped}


def mistakes(release: str, name: str, given: Mapping[str, Any]) -> Iterator[str]:
    """What class `name` of `release` would refuse of `given`, nested objects included."""
    if name not in _classes(release):
        yield f"{release} has no {name}"
        return
    known = fields(release, name)
    aliases = {one["alias"] for one in known.values() if "alias" in one}
    for key, value in given.items():
        if key == "speculative_config":
            yield from _decoding_mistakes(release, value)
        elif key not in known and key not in aliases:
            yield f"{release}: {name} has no {key}"
        elif key in NESTED and isinstance(value, Mapping):
            yield from mistakes(release, NESTED[key], value)
        elif key in CHOICES and value not in facts()[release][CHOICES[key]]:
            yield f"{release}: {key} takes no {value!r}"
    # The model is its own argument, given by whoever loads the engine.
    yield from (
        f"{release}: {name} wants {key}"
        for key, one in known.items()
        if one.get("required") and key not in given and key != "model"
    )


def _decoding_mistakes(release: str, given: Mapping[str, Any]) -> Iterator[str]:
    kind = given["decoding_type"]
    if kind not in facts()[release]["decoding_types"]:
        yield f"{release}: decoding_type takes no {kind!r}"
        return
    name = _DECODING[kind]
    yield from mistakes(release, name, {key: value for key, value in given.items() if key != "decoding_type"})
    known = fields(release, name)
    given_names = {known_key for known_key, one in known.items() if known_key in given or one.get("alias") in given}
    for wanted in facts()[release]["required_by_validator"].get(name, ()):
        if wanted not in given_names:
            yield f"{release}: {name} wants {wanted}"


def command_mistakes(release: str, flags: list[str]) -> Iterator[str]:
    """What `trtllm-build` of `release` would refuse of its command line."""
    recorded_flags, plugin_flags = (
        facts()[release]["trtllm-build"]["flags"],
        facts()[release]["trtllm-build"]["plugin_flags"],
    )
    values: dict[str, list[str]] = {}
    for word in flags:
        if word.startswith("--"):
            if word in values:
                yield f"{word} is given twice"
            values[word] = []
        else:
            values[list(values)[-1]].append(word)
    for flag, given in values.items():
        name = flag.removeprefix("--")
        if name in plugin_flags:
            default = fields(release, "PluginConfig")[name].get("default")
            if isinstance(default, bool) and given not in (["enable"], ["disable"]):
                yield f"{flag} takes enable or disable, not {given}"
            continue
        if flag not in recorded_flags:
            yield f"{release}: trtllm-build has no {flag}"
            continue
        one = recorded_flags[flag]
        num_values = 0 if one.get("action") == "store_true" else 1
        if len(given) != num_values and one.get("nargs") != "+":
            yield f"{flag} takes {num_values} values, not {given}"
        if one.get("choices") and not set(given) <= set(one["choices"]):
            yield f"{flag} takes {one['choices']}, not {given}"
