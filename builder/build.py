"""Checkpoint to engine: the whole journey, one step a line."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from importlib.metadata import version

import torch

from trierarch.builder import machine
from trierarch.builder.accuracy_gate import AccuracyGate, Evaluator
from trierarch.builder.blueprint import Blueprint, write_manifest
from trierarch.builder.bundled_adapter import plan_adapters
from trierarch.builder.checkpoint import Checkpoint, TokenizerFiles
from trierarch.builder.compile import compile_kernels
from trierarch.builder.config import BuildConfig
from trierarch.builder.decoder import Decoder, read_decoder
from trierarch.builder.draft import find_draft
from trierarch.builder.drafted import Drafted
from trierarch.builder.eagle3 import read_eagle3
from trierarch.builder.errors import ConfigError
from trierarch.builder.evaluation_text import EvaluationText, read_evaluation_text
from trierarch.builder.kv_budget import plan_kv_cache
from trierarch.builder.manifest import (
    BuiltWith,
    DrafterKind,
    EngineManifest,
    KvCache,
    Limits,
    Requires,
    Speculation,
    Target,
    WeightType,
)
from trierarch.builder.model import Model, read_model
from trierarch.builder.mtp import read_mtp
from trierarch.builder.parallel import plan_parallel
from trierarch.builder.pooling import read_pooling
from trierarch.builder.progress import DraftProgress, NoProgress, Progress
from trierarch.builder.safetensors_checkpoint import SafetensorsCheckpoint
from trierarch.builder.source import open_checkpoint
from trierarch.builder.speculation import choose_drafters, plan_speculation
from trierarch.builder.staging import staged_directory
from trierarch.builder.target import check_torch_options

logger = logging.getLogger(__name__)


def build(config: BuildConfig, progress: Progress | None = None, measure: Evaluator | None = None) -> EngineManifest:
    """Build the engine that `config` asks for at `config.output`, whole or not at all.

    The same input gives the same bytes, wherever and whenever it is built with the same versions; only what
    quantization cost may differ in its last digit where `measure` sums in another order.

    `measure` runs engines over a text: with it, a quantised one is compared with an unquantised one of the
    same options, which is built beside it and removed. Those for TensorRT-LLM are compared without it.

    Raises:
        AdapterError: an adapter cannot be read, or does not fit the checkpoint.
        CheckpointError: the checkpoint cannot be read or is of an unknown kind.
        ConfigError: an option is out of range for this checkpoint, something else is at `output`, quantization costs
            more than `config` allows, or its cost is to be measured and there is no `measure`.
        EngineError: `measure` cannot run here what was built, or the draft is an engine that is corrupt or foreign.
        ResourceError: the disk is full, there is no room to `measure`, or `demo` and hub ids find no network.
    """
    progress = progress or NoProgress()
    if config.target is Target.TENSORRT_LLM:
        from trierarch.builder.tensorrt_llm.build import build as build_for_tensorrt_llm

        return build_for_tensorrt_llm(config, progress)
    check_torch_options(config)
    _check_accuracy_options(config, measure)
    drafters = choose_drafters(config)
    checkpoint = open_checkpoint(config.model, progress)
    stored = {one.weights for one in checkpoint.code_types.values()}
    config = _with_kept_fp8(config, stored)
    _check_accuracy_options(config, measure)  # what is kept is measured too
    decoder = read_decoder(checkpoint.config, config.max_seq_len)
    parallel = plan_parallel(config, decoder.architecture, drafters, stored)
    tokenizer = checkpoint.tokenizer(decoder.architecture.vocab_size)
    model = _model(config, checkpoint, decoder, tokenizer)
    limits = config.limits(decoder.max_seq_len)
    speculation = plan_speculation(config, drafters, limits)
    text = _evaluation_text(config, tokenizer, decoder)
    draft_model = _draft_model(config, drafters, Drafted(checkpoint, decoder, tokenizer, model), progress)
    kv_cache = plan_kv_cache(config, model, beside=draft_model)
    # No kernels are compiled for what runs as one of several.
    main = config if parallel is None else config.model_copy(update={"compile": False})
    blueprint = _blueprint(main, model, limits, kv_cache, speculation, progress)
    blueprint = replace(blueprint, manifest=blueprint.manifest.model_copy(update={"parallel": parallel}))
    blueprint = replace(blueprint, small_files={**blueprint.small_files, **tokenizer.files()})
    blueprint = _with_pooling(_with_adapters(blueprint, config), config, checkpoint)
    if draft_model is not None:
        kv_cache = plan_kv_cache(config, draft_model, beside=model)
        draft = _blueprint(config, draft_model, limits, kv_cache, None, DraftProgress(progress))
        blueprint = replace(blueprint, draft=draft)
    gate = None
    if measure is not None and text is not None:
        gate = AccuracyGate(measure, text, _unquantized(blueprint, checkpoint, decoder), config.max_perplexity_increase)
    num_bytes = blueprint.num_bytes + (0 if gate is None else gate.num_bytes)
    with staged_directory(config.output, num_bytes, config.overwrite) as staging:
        manifest = blueprint.write(staging, progress)
        if gate is not None:
            manifest = gate.check(staging, manifest, progress)
            write_manifest(staging, manifest)
    return manifest


def _with_kept_fp8(config: BuildConfig, stored: Collection[WeightType]) -> BuildConfig:
    """`config`, keeping what is FP8 in the checkpoint where this machine multiplies it and nothing else was asked for."""
    if config.quantization is not None or WeightType.FP8 not in stored:
        return config
    if machine.multiplies_fp8():
        return config.model_copy(update={"quantization": WeightType.SOURCE})
    logger.warning(
        "the checkpoint's FP8 weights are dequantised, since no GPU here multiplies them; keep them with --quantization source"
    )
    return config


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


def _model(config: BuildConfig, checkpoint: Checkpoint, decoder: Decoder, tokenizer: TokenizerFiles) -> Model:
    dtype = config.dtype or machine.default_dtype()
    model = read_model(checkpoint, decoder, tokenizer.tokens, dtype, config.quantization, config.kv_cache_dtype)
    return replace(model, name=config.name or model.name)


def _draft_model(
    config: BuildConfig, drafters: tuple[DrafterKind, ...], drafted: Drafted, progress: Progress
) -> Model | None:
    """What goes into the engine's draft folder, if anything."""
    if DrafterKind.EAGLE3 in drafters:
        return read_eagle3(config, drafted, progress)
    return read_mtp(drafted) if DrafterKind.MTP in drafters else find_draft(config, drafted, progress)


def _with_adapters(blueprint: Blueprint, config: BuildConfig) -> Blueprint:
    """The same engine, taking adapters, and with those that it brings along."""
    if config.lora is None:
        if config.adapters:
            raise ConfigError(
                f"max_adapters is 0, and there are {len(config.adapters)} adapters for the engine; leave one of them out"
            )
        return blueprint
    manifest = blueprint.manifest.model_copy(update={"lora": config.lora})
    return replace(blueprint, manifest=manifest, adapters=plan_adapters(config.adapters, manifest))


def _with_pooling(blueprint: Blueprint, config: BuildConfig, checkpoint: Checkpoint) -> Blueprint:
    """The same engine, making embeddings if it is to."""
    pooling = config.pooling
    if pooling is None and isinstance(checkpoint, SafetensorsCheckpoint):
        pooling = read_pooling(checkpoint.directory)
    return replace(blueprint, manifest=blueprint.manifest.model_copy(update={"pooling": pooling}))


def _blueprint(
    config: BuildConfig,
    model: Model,
    limits: Limits,
    kv_cache: KvCache,
    speculation: Speculation | None,
    progress: Progress,
) -> Blueprint:
    """An engine's weights, kernels and manifest."""
    is_compiled = config.compile and model.head is None
    kernels = None
    if is_compiled:
        kernels = compile_kernels(model.architecture, model.dtype, kv_cache, progress, model.quantization)
    manifest = EngineManifest(
        name=model.name,
        target=config.target,
        built_with=BuiltWith(trierarch=version("trierarch"), torch=torch.__version__),
        requires=Requires(cpu_flags=() if kernels is None else kernels.cpu_flags),
        source=model.source,
        source_quantization=model.source_quantization,
        architecture=model.architecture,
        dtype=model.dtype,
        quantization=model.quantization,
        limits=limits,
        kv_cache=kv_cache,
        tokens=model.tokens,
        speculation=speculation,
        head=model.head,
        kernels=None if kernels is None else kernels.name,
        files={},
    )
    return Blueprint(manifest, model.weights, {} if kernels is None else {kernels.name: kernels.content})


def _unquantized(blueprint: Blueprint, checkpoint: Checkpoint, decoder: Decoder) -> Blueprint:
    """The same engine with weights, keys and values of its dtype, and nobody to guess ahead."""
    manifest = blueprint.manifest
    model = read_model(checkpoint, decoder, manifest.tokens, manifest.dtype)
    kv_cache = manifest.kv_cache.model_copy(
        update={"dtype": model.kv_dtype, "bytes_per_token": model.kv_bytes_per_token}
    )
    update = {"quantization": None, "kv_cache": kv_cache, "speculation": None, "lora": None}
    return replace(
        blueprint, manifest=manifest.model_copy(update=update), weights=model.weights, draft=None, adapters=()
    )
