"""ImportPlan: what an existing repository becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from trierarch.builder.errors import ConfigError
from trierarch.ensembles.compose import ComposeOptions
from trierarch.orchestrator.importing.config_file import read_configs
from trierarch.orchestrator.importing.entry import Entry, Fate
from trierarch.orchestrator.importing.settings import Settings, take_parameter, take_triton

_MODELS: Final = ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls")
_OTHERS: Final = "this model has no counterpart here; its clients find text models alone"
_ELSEWHERE: Final = (
    ("model.yaml", "TensorRT-LLM's llmapi model", "--llmapi"),
    ("model.json", "Triton's vLLM backend", "--vllm"),
)
"""A version's file, whose it is, and the option that gives a model the same tensors."""
_ENGINE_LIMITS: Final = ("max_seq_len", "max_batch_size", "max_num_tokens")


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """An engine to build, a repository to compose, and where each setting went."""

    model: str | None
    """SOURCE of the checkpoint; None where nothing tells it."""
    hints: tuple[str, ...]
    """What the repository says of its model."""
    build: Mapping[str, Any]
    """Fields of BuildConfig, but for where the engine goes."""
    compose: ComposeOptions
    kv_tokens: int | None
    """Tokens that the KV cache is to hold; None leaves it to `build`."""
    entries: tuple[Entry, ...]


def plan_import(repository: Path, model: str | None) -> ImportPlan:
    """Read a repository of TensorRT-LLM's backend.

    Raises:
        ConfigError: it is none, it has templates that were not filled in, or a value cannot be read; or it is of another
            model's kind, whose settings are not in config.pbtxt.
    """
    configs = read_configs(repository)
    for name, kind, option in _ELSEWHERE:
        for path in sorted(repository.glob(f"*/*/{name}")):
            raise ConfigError(
                f"{path} has settings of {kind}, and only config.pbtxt is read here; say them to trierarch build, and serve its "
                f"clients with trierarch compose {option} NAME"
            )
    if not any(config.model == "tensorrt_llm" for config in configs):
        raise ConfigError(
            f"{str(repository)!r} has no model tensorrt_llm: it is no repository of TensorRT-LLM's backend"
        )
    settings = Settings()
    entries: list[Entry] = []
    for config in configs:
        if config.model not in _MODELS:
            entries.append(Entry(config.model, "", "", Fate.NONE, _OTHERS))
            continue
        entries += take_triton(settings, config)
        entries += [take_parameter(settings, config.model, name, value) for name, value in config.parameters.items()]
    if settings.engine is not None:
        entries += _take_engine(settings, Path(settings.engine))
    if not settings.build.get("enable_prefix_caching", True) and settings.compose.pop("kv_host_bytes", None):
        entries = [_unkept(entry) for entry in entries]
    return ImportPlan(
        model or _checkpoint(settings),
        _hints(settings),
        settings.build,
        ComposeOptions(**settings.compose),
        settings.kv_tokens,
        tuple(entries),
    )


def _unkept(entry: Entry) -> Entry:
    """What becomes of a setting where no prefix is cached."""
    if entry.name != "kv_cache_host_memory_bytes":
        return entry
    return replace(entry, fate=Fate.NONE, why="only cached blocks go to the host, and enable_kv_cache_reuse is off")


def _take_engine(settings: Settings, engine: Path) -> list[Entry]:
    """The limits that TensorRT-LLM's engine was built with, where it lies on this machine; they go before Triton's."""
    limits = _section(engine, "build_config")
    entries = []
    for name in _ENGINE_LIMITS:
        value = limits.get(name)
        if isinstance(value, int) and value > 0:
            settings.build[name] = value
            entries.append(Entry("engine", name, str(value), Fate.CARRIED, "--" + name.replace("_", "-")))
    lora = limits.get("lora_config")
    rank = lora.get("max_lora_rank") if isinstance(lora, dict) else None
    if isinstance(rank, int) and rank > 0:
        settings.build.setdefault("max_lora_rank", rank)
        entries.append(Entry("engine", "max_lora_rank", str(rank), Fate.CARRIED, "--max-lora-rank"))
    return entries


def _checkpoint(settings: Settings) -> str | None:
    """The tokenizer's directory, where the whole checkpoint lies there."""
    place = settings.tokenizer
    if place is not None and (Path(place) / "config.json").is_file() and any(Path(place).glob("*.safetensors")):
        return place
    return None


def _hints(settings: Settings) -> tuple[str, ...]:
    hints = [] if settings.tokenizer is None else [f"its tokenizer is {settings.tokenizer!r}"]
    if settings.engine is not None:
        kind = _section(Path(settings.engine), "pretrained_config").get("architecture")
        hints.append(f"its engine is {settings.engine!r}" + (f", a {kind}" if kind else ""))
    return tuple(hints)


def _section(engine: Path, name: str) -> dict[str, Any]:
    """A part of what TensorRT-LLM wrote beside an engine. One that is elsewhere, or is none, tells nothing."""
    try:
        content = json.loads((engine / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    section = content.get(name) if isinstance(content, dict) else None
    return section if isinstance(section, dict) else {}
