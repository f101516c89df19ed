"""Checkpoint to engine: the whole journey, one step a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version

import torch

from trierarch.builder import machine
from trierarch.builder.accuracy_gate import AccuracyGate, Evaluator
from trierarch.builder.blueprint import Blueprint, write_manifest
from trierarch.builder.checkpoint import Checkpoint, TokenizerFiles
from trierarch.builder.compile import compile_kernels
from trierarch.builder.config import BuildConfig
from trierarch.builder.decoder import Decoder, read_decoder
from trierarch.builder.errors import ConfigError
from trierarch.builder.evaluation_text import EvaluationText, read_evaluation_text
from trierarch.builder.manifest import (
    CHAT_TEMPLATE_NAME,
    TOKENIZER_NAME,
    Architecture,
    BuiltWith,
    DType,
    EngineManifest,
    KvCache,
    KvType,
    Limits,
    Quantization,
    Requires,
    Target,
)
from trierarch.builder.progress import NoProgress, Progress
from trierarch.builder.source import open_checkpoint
from trierarch.builder.staging import staged_directory
from trierarch.builder.weights import Weight, plan_weights


def build(config: BuildConfig, progress: Progress | None = None, measure: Evaluator | None = None) -> EngineManifest:
    """Build the engine that `config` asks for at `config.output`, whole or not at all.

    The same input gives the same bytes, wherever and whenever it is built with the same versions; only what
    quantization cost may differ in its last digit where `measure` sums in another order.

    `measure` runs engines over a text: with it, a quantised one is compared with an unquantised one of the
    same options, which is built beside it and removed.

    Raises:
        CheckpointError: the checkpoint cannot be read or is of an unknown kind.
        ConfigError: an option is out of range for this checkpoint, something else is at `output`, quantization costs
            more than `config` allows, or its cost is to be measured and there is no `measure`.
        EngineError: `measure` cannot run here what was built.
        ResourceError: the disk is full, there is no room to `measure`, or `demo` and hub ids find no network.
    """
    progress = progress or NoProgress()
    _check_accuracy_options(config, measure)
    if config.target is not Target.TORCH:
        raise ConfigError(f"target is {config.target.value!r}: this builder writes {Target.TORCH.value!r} engines")
    checkpoint = open_checkpoint(config.model, progress)
    dtype = config.dtype or machine.default_dtype()
    decoder = read_decoder(checkpoint.config, config.max_seq_len)
    weights = plan_weights(decoder, checkpoint, dtype, config.quantization)
    tokenizer = checkpoint.tokenizer(decoder.architecture.vocab_size)
    limits, kv_cache = _limits(config, decoder), _kv_cache(config, decoder, dtype)
    text = _evaluation_text(config, tokenizer, decoder)
    kernels = compile_kernels(decoder.architecture, dtype, kv_cache, progress) if config.compile else None
    small_files = _small_files(tokenizer)
    if kernels is not None:
        small_files[kernels.name] = kernels.content
    manifest = EngineManifest(
        name=config.name or _safe_name(checkpoint),
        target=config.target,
        built_with=BuiltWith(trierarch=version("trierarch"), torch=torch.__version__),
        requires=Requires(cpu_flags=() if kernels is None else kernels.cpu_flags),
        source=checkpoint.name,
        source_quantization=checkpoint.quantization,
        architecture=decoder.architecture,
        dtype=dtype,
        quantization=_quantization(config, weights, decoder.architecture),
        limits=limits,
        kv_cache=kv_cache,
        tokens=tokenizer.tokens,
        kernels=None if kernels is None else kernels.name,
        files={},
    )
    blueprint = Blueprint(checkpoint, manifest, weights, small_files)
    gate = None
    if measure is not None and text is not None:
        gate = AccuracyGate(measure, text, _unquantized(blueprint, decoder), config.max_perplexity_increase)
    num_bytes = blueprint.num_bytes + (0 if gate is None else gate.num_bytes)
    with staged_directory(config.output, num_bytes, config.overwrite) as staging:
        manifest = blueprint.write(staging, progress)
        if gate is not None:
            manifest = gate.check(staging, manifest, progress)
            write_manifest(staging, manifest)
    return manifest


def _check_accuracy_options(config: BuildConfig, measure: Evaluator | None) -> None:
    """Refuse what nobody would measure, before any work is done."""
    if not config.measures_accuracy and config.accuracy_text is not None:
        reason = "nothing is quantised" if config.accuracy_check else "accuracy_check is off"
        raise ConfigError(f"accuracy_text is {str(config.accuracy_text)!r}, but {reason}; leave it out")
    if config.measures_accuracy and measure is None:
        raise ConfigError(
            "accuracy_check is on, but build() was given no `measure` to say what quantization costs; give one, or set "
            "accuracy_check to False"
        )


def _evaluation_text(config: BuildConfig, tokenizer: TokenizerFiles, decoder: Decoder) -> EvaluationText | None:
    if not config.measures_accuracy:
        return None
    return read_evaluation_text(config.accuracy_text, tokenizer, decoder.architecture.vocab_size, decoder.max_seq_len)


def _unquantized(blueprint: Blueprint, decoder: Decoder) -> Blueprint:
    """The same engine with weights, keys and values of its dtype."""
    manifest, dtype = blueprint.manifest, KvType(blueprint.manifest.dtype)
    kv_cache = manifest.kv_cache.model_copy(
        update={"dtype": dtype, "bytes_per_token": decoder.architecture.kv_bytes_per_token(dtype)}
    )
    return Blueprint(
        blueprint.checkpoint,
        manifest.model_copy(update={"quantization": None, "kv_cache": kv_cache}),
        plan_weights(decoder, blueprint.checkpoint, manifest.dtype),
        blueprint.small_files,
    )


def _quantization(config: BuildConfig, weights: Iterable[Weight], architecture: Architecture) -> Quantization | None:
    if config.quantization is None:
        return None
    matrices = Counter(weight.bits for weight in weights if architecture.may_quantize(weight.name))
    return Quantization(
        weights=config.quantization,
        num_int8=matrices[8],
        num_int4=matrices[4],
        num_unquantized=matrices[None],
    )


def _limits(config: BuildConfig, decoder: Decoder) -> Limits:
    return Limits(
        max_batch_size=config.max_batch_size,
        max_seq_len=decoder.max_seq_len,
        max_num_tokens=config.max_num_tokens,
        max_queue_size=config.max_queue_size,
    )


def _kv_cache(config: BuildConfig, decoder: Decoder, dtype: DType) -> KvCache:
    kv_dtype = config.kv_cache_dtype or KvType(dtype)
    bytes_per_token = decoder.architecture.kv_bytes_per_token(kv_dtype)
    block_bytes = bytes_per_token * config.block_size
    if config.kv_cache_bytes is not None and config.kv_cache_bytes < block_bytes:
        raise ConfigError(f"kv_cache_bytes is {config.kv_cache_bytes}: one block of this model takes {block_bytes}")
    return KvCache(
        dtype=kv_dtype,
        block_size=config.block_size,
        num_bytes=config.kv_cache_bytes,
        memory_fraction=config.kv_cache_memory_fraction,
        bytes_per_token=bytes_per_token,
        enable_prefix_caching=config.enable_prefix_caching,
    )


def _small_files(tokenizer: TokenizerFiles) -> dict[str, bytes]:
    files = {TOKENIZER_NAME: tokenizer.tokenizer_json}
    if tokenizer.chat_template is not None:
        files[CHAT_TEMPLATE_NAME] = tokenizer.chat_template.encode()
    return files


def _safe_name(checkpoint: Checkpoint) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.name.rpartition("/")[2]).strip("-._")
    return name or "engine"
