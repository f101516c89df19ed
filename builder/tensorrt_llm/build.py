"""Checkpoint to an engine for TensorRT-LLM: planned, written whole or not at all, and compiled where that can be done."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trierarch.builder.blueprint import DRAFT_FOLDER, write_manifest
from trierarch.builder.bundled_adapter import BundledAdapter, plan_adapters
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import MANIFEST_NAME, Accuracy, EngineManifest, FileDigest, Flow
from trierarch.builder.progress import NoProgress, Progress
from trierarch.builder.staging import staged_directory
from trierarch.builder.tensorrt_llm.accuracy import halves, measure
from trierarch.builder.tensorrt_llm.calibration import calibrate, export_hf, export_ranks, load_model
from trierarch.builder.tensorrt_llm.checkpoint import CONFIG_NAME, config_bytes, rank_name
from trierarch.builder.tensorrt_llm.compatibility import installed
from trierarch.builder.tensorrt_llm.compile import CHECKPOINT_FOLDER, build_command, can_compile, compile_engine, shown
from trierarch.builder.tensorrt_llm.dequantized import apply_nvfp4
from trierarch.builder.tensorrt_llm.draft import Draft, plan_draft, share_memory
from trierarch.builder.tensorrt_llm.families import ENGINE_FAMILIES
from trierarch.builder.tensorrt_llm.held_tensors import held_tensors
from trierarch.builder.tensorrt_llm.memory import check_memory
from trierarch.builder.tensorrt_llm.package import Package, synced_files
from trierarch.builder.tensorrt_llm.plan import Plan, make_plan
from trierarch.builder.tensorrt_llm.quantization import choose_block_size
from trierarch.builder.tensorrt_llm.speculation import MODEL_FOLDER
from trierarch.builder.tensorrt_llm.weight_only import BITS, round_weights
from trierarch.builder.verify import digest_file
from trierarch.builder.weights_file import CheckpointWeights


def build(config: BuildConfig, progress: Progress | None = None) -> EngineManifest:
    """Build the engine for TensorRT-LLM that `config` asks for at `config.output`, whole or not at all.

    An engine-flow one is compiled too, where its release of TensorRT-LLM and a GPU are here and `config.compile` is on.
    The same input gives the same bytes with the same versions; a compiled engine is as TensorRT makes it.

    Raises:
        AdapterError: an adapter cannot be read, does not fit the checkpoint, or is none that TensorRT-LLM serves.
        CheckpointError: the checkpoint cannot be read, or TensorRT-LLM does not compute what it does.
        ConfigError: an option is out of range or not TensorRT-LLM's, something else is at `output`, or quantization costs
            more than `config` allows.
        ResourceError: the disk is full, a library that is needed is not installed, or compiling fails.
    """
    progress = progress or NoProgress()
    plan, draft = _decide(config, progress)
    adapters = plan_adapters(config.adapters, plan.manifest)
    num_bytes = plan.num_bytes + (0 if draft is None else draft.package.num_bytes)
    num_bytes += sum(adapter.num_bytes for adapter in adapters)
    with staged_directory(config.output, num_bytes, config.overwrite) as staging:
        files, accuracy = _write(plan, staging, progress)
        if draft is not None:
            files |= _write_draft(draft, staging, progress)
        files |= _write_adapters(adapters, plan.manifest, staging, progress)
        manifest = plan.manifest.model_copy(update={"files": dict(sorted(files.items())), "accuracy": accuracy})
        write_manifest(staging, manifest)
        record = manifest.tensorrt_llm
        if record is not None and record.flow is Flow.ENGINE and config.compile:
            here = installed()
            if can_compile(record, here):
                manifest = compile_engine(staging, progress, here)
    return manifest


def describe(config: BuildConfig, progress: Progress | None = None) -> dict[str, Any]:
    """What `build` would write and run, without doing either.

    Raises:
        as `build`, but for what only writing shows.
    """
    plan, draft = _decide(config, progress or NoProgress())
    adapters = plan_adapters(config.adapters, plan.manifest)
    record = plan.manifest.tensorrt_llm
    assert record is not None
    found = {
        "tensorrt_llm_version": record.version,
        "flow": record.flow.value,
        "files": sorted({*plan.package.weights, *plan.package.small_files}),
        "quantization": {"quant_algo": record.quant_algo, "kv_cache_quant_algo": record.kv_cache_quant_algo},
        "llm_args": record.llm_args,
        "tensor_parallel_size": record.tensor_parallel_size,
        "pipeline_parallel_size": record.pipeline_parallel_size,
        "pretrained_config": plan.pretrained,
        "build_config": record.build_config,
        "command": None,
        "draft": None if draft is None else draft.manifest.name,
        "adapters": [adapter.name for adapter in adapters],
    }
    if record.flow is Flow.ENGINE:
        found["command"] = shown(build_command(config.output, record))
    return found


def _decide(config: BuildConfig, progress: Progress) -> tuple[Plan, Draft | None]:
    plan = make_plan(config, progress)
    draft = plan_draft(config, plan, progress)
    plan = share_memory(plan, draft)
    beside = 0 if draft is None else draft.weight_bytes // plan.spec.split.world_size
    check_memory(plan.spec, plan.weight_bytes + beside)
    return plan, draft


def _write_draft(draft: Draft, staging: Path, progress: Progress) -> dict[str, FileDigest]:
    folder = staging / DRAFT_FOLDER
    folder.mkdir()
    files = draft.package.write(folder, progress)
    write_manifest(folder, draft.manifest.model_copy(update={"files": dict(sorted(files.items()))}))
    nested = {f"{DRAFT_FOLDER}/{name}": file for name, file in files.items()}
    return {**nested, f"{DRAFT_FOLDER}/{MANIFEST_NAME}": digest_file(folder / MANIFEST_NAME)}


def _write_adapters(
    adapters: tuple[BundledAdapter, ...], manifest: EngineManifest, staging: Path, progress: Progress
) -> dict[str, FileDigest]:
    files: dict[str, FileDigest] = {}
    if adapters:
        progress.stage("adapters", len(adapters), "adapters")
    for adapter in adapters:
        files |= adapter.write(staging, manifest)
        progress.advance(1)
    return files


def _write(plan: Plan, staging: Path, progress: Progress) -> tuple[dict[str, FileDigest], Accuracy | None]:
    """Every file but the manifest and the draft, and what quantization cost."""
    if plan.reference is None:
        return plan.package.write(staging, progress), None
    with TemporaryDirectory(prefix=f"{staging.name}.", suffix=".reference", dir=staging.parent) as directory:
        reference = Path(directory)
        plan.reference.write(reference, progress)
        if plan.is_calibrated:
            return _write_calibrated(plan, reference, staging, progress)
        return plan.package.write(staging, progress), _rounding_cost(plan, reference, progress)


def _rounding_cost(plan: Plan, reference: Path, progress: Progress) -> Accuracy:
    """Of formats that nothing is calibrated for: weights are rounded as TensorRT-LLM will, keys and values as it does."""
    assert plan.text is not None
    model = load_model(reference, plan.spec.dtype)
    if plan.quantization is not None:
        round_weights(model, BITS[plan.quantization.weights])
    return measure(plan.spec, plan.text, load_model(reference, plan.spec.dtype), model, progress)


def _write_calibrated(
    plan: Plan, reference: Path, staging: Path, progress: Progress
) -> tuple[dict[str, FileDigest], Accuracy | None]:
    spec, text, quantization = plan.spec, plan.text, plan.quantization
    assert text is not None
    measures = spec.config.measures_accuracy
    calibrating, measured = halves(text) if measures else (text, text)
    model = load_model(reference, spec.dtype)
    block_size = (
        None if quantization is None else choose_block_size(quantization, spec.flow, spec.architecture, spec.split)
    )
    calibrate(model, quantization, block_size, spec.kv_algo is not None, calibrating.windows, progress)
    accuracy = None
    is_imitated = spec.quant_algo != "NVFP4" or model.device.type == "cuda"
    if measures and is_imitated:
        # modelopt imitates keys and values too, once it has calibrated them.
        accuracy = measure(replace(spec, kv_algo=None), measured, load_model(reference, spec.dtype), model, progress)
    files = plan.package.write(staging, progress)
    if measures and not is_imitated:
        accuracy = _dequantized_cost(plan, reference, model, progress)
    progress.stage("export", None)
    if spec.flow is Flow.PYTORCH:
        files |= _export_hf(plan, model, staging)
    else:
        files |= _export_ranks(plan, model, staging, progress)
    return files, accuracy


def _dequantized_cost(plan: Plan, reference: Path, model: Any, progress: Progress) -> Accuracy:
    """Of what is written, read back: where the format cannot be imitated as modelopt does."""
    assert plan.text is not None
    with TemporaryDirectory(prefix=f"{reference.name}.", dir=reference.parent) as directory:
        export_hf(copy.deepcopy(model), Path(directory))
        quantized = load_model(reference, plan.spec.dtype)
        apply_nvfp4(quantized, Path(directory))
        measured = halves(plan.text)[1]
        return measure(plan.spec, measured, load_model(reference, plan.spec.dtype), quantized, progress)


def _export_hf(plan: Plan, model: Any, staging: Path) -> dict[str, FileDigest]:
    folder = staging / MODEL_FOLDER
    folder.mkdir(exist_ok=True)
    described = {path.name: path.read_bytes() for path in folder.iterdir()}
    export_hf(model, folder)
    for name, content in described.items():
        if name != CONFIG_NAME:  # modelopt's own says how the weights are quantised
            (folder / name).write_bytes(content)
    return synced_files(folder, MODEL_FOLDER)


def _export_ranks(plan: Plan, model: Any, staging: Path, progress: Progress) -> dict[str, FileDigest]:
    spec, pretrained = plan.spec, plan.pretrained
    exporter = ENGINE_FAMILIES[plan.source.family].exporter
    assert pretrained is not None
    assert exporter is not None
    files: dict[str, FileDigest] = {}
    found: list[dict[str, Any]] = []
    for index, tensors, quantization in export_ranks(model, exporter, spec.dtype, spec.split):
        _check_export(plan, quantization)
        package = Package({rank_name(index): CheckpointWeights(plan.source.checkpoint, held_tensors(tensors))})
        files |= package.within(CHECKPOINT_FOLDER).write(staging, progress)
        found.append(quantization)
    assert len(found) == spec.split.world_size, f"{len(found)} ranks for {spec.split.world_size} GPUs"
    config = config_bytes(pretrained | {"quantization": _united(found)})
    return files | Package(small_files={CONFIG_NAME: config}).within(CHECKPOINT_FOLDER).write(staging, progress)


def _united(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The QuantConfig of all ranks: a module that is not quantised is known to the rank that has it."""
    united = {name: value for name, value in found[-1].items() if name != "quantized_layers"}
    excluded = {module for one in found for module in one.get("exclude_modules") or ()}
    return united | ({"exclude_modules": sorted(excluded)} if excluded else {})


def _check_export(plan: Plan, quantization: dict[str, Any]) -> None:
    """nvidia-modelopt wrote what was asked for."""
    spec = plan.spec
    found = (quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo"))
    if found != (spec.quant_algo, spec.kv_algo):
        raise ConfigError(
            f"quantization is {spec.quant_algo}: nvidia-modelopt made {found[0]} with keys and values of {found[1]} of it; "
            "choose another --quantization, or another version of nvidia-modelopt"
        )
