"""Plan: an engine for TensorRT-LLM, decided and not yet written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from trierarch.builder import machine
from trierarch.builder.config import BuildConfig
from trierarch.builder.decoder import read_decoder
from trierarch.builder.errors import ConfigError
from trierarch.builder.evaluation_text import EvaluationText, read_evaluation_text
from trierarch.builder.manifest import (
    BuiltWith,
    DType,
    EngineManifest,
    Flow,
    TensorRTLLM,
    WeightType,
)
from trierarch.builder.model import safe_name
from trierarch.builder.progress import Progress
from trierarch.builder.source import open_checkpoint
from trierarch.builder.speculation import choose_drafters, plan_speculation
from trierarch.builder.tensorrt_llm.arguments import build_config, check_fields, llm_args
from trierarch.builder.tensorrt_llm.checkpoint import CONFIG_NAME, config_bytes, plan_ranks
from trierarch.builder.tensorrt_llm.compile import CHECKPOINT_FOLDER
from trierarch.builder.tensorrt_llm.contradictions import check_together
from trierarch.builder.tensorrt_llm.defaults import with_defaults
from trierarch.builder.tensorrt_llm.families import ENGINE_FAMILIES, MODEL_TYPES, check_family
from trierarch.builder.tensorrt_llm.hf_folder import hf_package
from trierarch.builder.tensorrt_llm.package import Package
from trierarch.builder.tensorrt_llm.pretrained_config import pretrained_config
from trierarch.builder.tensorrt_llm.quantization import (
    Format,
    check_hardware,
    choose_block_size,
    choose_format,
    kv_algo,
)
from trierarch.builder.tensorrt_llm.releases import find_release
from trierarch.builder.tensorrt_llm.spec import Source, Spec, make_spec
from trierarch.builder.tensorrt_llm.speculation import MODEL_FOLDER, the_drafter
from trierarch.builder.weights import plan_weights

_BITS: Final = {
    WeightType.INT8: 8.0,
    WeightType.INT8_SQ: 8.0,
    WeightType.FP8: 8.0,
    WeightType.INT4: 4.0,
    WeightType.INT4_AWQ: 4.25,
    WeightType.NVFP4: 4.5,
}
"""Of an element of a quantised matrix, with its share of the scales."""
_QUANTIZED: Final = (".qkv.weight", ".o.weight", ".gate_up.weight", ".down.weight")
"""What the names of matrices end with that are quantised; the vocabulary's are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What goes into an engine's directory, and what is worked out on the way."""

    spec: Spec
    source: Source
    quantization: Format | None
    manifest: EngineManifest
    """Its `files` are filled in once they are written."""
    package: Package
    """Every file that is known now: all but those that modelopt writes."""
    pretrained: dict[str, Any] | None
    """Engine flow: config.json of the checkpoint."""
    reference: Package | None
    """The unquantised model as a Hugging Face folder, where it is calibrated or compared with."""
    text: EvaluationText | None

    @property
    def is_calibrated(self) -> bool:
        """Whether nvidia-modelopt writes the weights."""
        is_kv_scaled = self.spec.kv_algo is not None and self.spec.flow is Flow.ENGINE
        return is_kv_scaled or (self.quantization is not None and self.quantization.is_calibrated)

    @property
    def num_bytes(self) -> int:
        """Bytes of disk that writing takes at most."""
        reference = 0 if self.reference is None else self.reference.num_bytes
        return self.package.num_bytes + reference * (2 if self.is_calibrated else 1)

    @property
    def weight_bytes(self) -> int:
        """Of each GPU, to within what all of them have: norms and the like."""
        bits = None if self.quantization is None else _BITS[self.quantization.weights]
        dtype, total = self.spec.dtype, 0.0
        for weight in plan_weights(self.source.decoder, self.source.checkpoint, dtype):
            is_quantized = bits is not None and weight.name.endswith(_QUANTIZED)
            total += weight.num_bytes * (bits or 0.0) / (8 * dtype.num_bytes) if is_quantized else weight.num_bytes
        return int(total) // self.spec.split.world_size


def make_plan(config: BuildConfig, progress: Progress, field: str = "model") -> Plan:
    """Decide everything that `config` leaves to be decided; `field` is what errors call its model.

    Raises:
        CheckpointError: the checkpoint cannot be read, or TensorRT-LLM does not compute what it does.
        ConfigError: options are out of range for it, for the release, or for the GPUs.
        ResourceError: it must be downloaded and cannot be.
    """
    asked = frozenset(config.model_fields_set)
    check_fields(asked)
    release = find_release(config.tensorrt_llm_version)
    flow = release.flow(config.tensorrt_llm_flow)
    config = with_defaults(config)
    quantization, kv = choose_format(config, flow), kv_algo(config)
    drafter = the_drafter(choose_drafters(config), release, flow)
    check_together(config, drafter)
    check_hardware((None if quantization is None else quantization.algo, kv), _gpu_architecture(config))

    checkpoint = open_checkpoint(config.model, progress, field)
    decoder = read_decoder(checkpoint.config, config.max_seq_len)
    check_family(decoder.architecture.family, flow)
    tokenizer = checkpoint.tokenizer(decoder.architecture.vocab_size)
    source = Source(checkpoint=checkpoint, decoder=decoder, tokenizer=tokenizer)
    spec = make_spec(config, asked, release, flow, source, quantization, kv, drafter)
    spec.split.check(decoder.architecture)
    return _plan(spec, source, quantization)


def _gpu_architecture(config: BuildConfig) -> str | None:
    return config.gpu_architecture or next(iter(machine.cuda_architectures()), None)


def _plan(spec: Spec, source: Source, quantization: Format | None) -> Plan:
    model = MODEL_FOLDER if spec.flow is Flow.PYTORCH else CHECKPOINT_FOLDER
    tokens, checkpoint = source.tokenizer.tokens, source.checkpoint
    manifest = EngineManifest(
        name=spec.config.name or safe_name(checkpoint),
        target=spec.config.target,
        built_with=BuiltWith(trierarch=version("trierarch"), torch=torch.__version__),
        source=checkpoint.name,
        source_quantization=checkpoint.quantization,
        architecture=spec.architecture,
        dtype=spec.dtype,
        limits=spec.limits,
        kv_cache=spec.kv_cache,
        tokens=tokens,
        lora=spec.lora,
        speculation=plan_speculation(spec.config, () if spec.drafter is None else (spec.drafter,), spec.limits),
        tensorrt_llm=TensorRTLLM(
            version=spec.release.name,
            flow=spec.flow,
            model=model,
            llm_args=llm_args(spec),
            tensor_parallel_size=spec.split.tensor_parallel_size,
            pipeline_parallel_size=spec.split.pipeline_parallel_size,
            quant_algo=spec.quant_algo,
            kv_cache_quant_algo=spec.kv_algo,
            checkpoint=CHECKPOINT_FOLDER if spec.flow is Flow.ENGINE else None,
            build_config=build_config(spec),
        ),
        files={},
    )
    draft = Plan(
        spec=spec,
        source=source,
        quantization=quantization,
        manifest=manifest,
        package=Package(small_files=source.tokenizer.files()),
        pretrained=_pretrained(spec, source),
        reference=None,
        text=None,
    )
    if draft.is_calibrated:
        _check_calibration(spec, source, quantization)
    if draft.is_calibrated or spec.config.measures_accuracy:
        text = _text(spec, source)
        draft = replace(draft, reference=_hf_package(spec, source), text=text)
    return replace(draft, package=draft.package | _model_files(draft).within(model))


def _model_files(plan: Plan) -> Package:
    """The model itself, as far as modelopt does not write it."""
    spec, source = plan.spec, plan.source
    if plan.pretrained is not None:
        if plan.is_calibrated:
            return Package()
        family = ENGINE_FAMILIES[source.family]
        ranks = plan_ranks(source.decoder, source.checkpoint, spec.dtype, family, spec.split)
        return Package(ranks, {CONFIG_NAME: config_bytes(plan.pretrained)})
    hf = plan.reference or _hf_package(spec, source)
    return Package(small_files=hf.small_files) if plan.is_calibrated else hf


def _hf_package(spec: Spec, source: Source) -> Package:
    return hf_package(source.checkpoint, source.decoder, source.tokenizer, spec.dtype, MODEL_TYPES[source.family])


def _pretrained(spec: Spec, source: Source) -> dict[str, Any] | None:
    if spec.flow is Flow.PYTORCH:
        return None
    quantization = {"quant_algo": spec.quant_algo, "kv_cache_quant_algo": spec.kv_algo}
    return pretrained_config(source.decoder, ENGINE_FAMILIES[source.family], spec.dtype, spec.split, quantization)


def _text(spec: Spec, source: Source) -> EvaluationText:
    architecture = spec.architecture
    path: Path | None = spec.config.accuracy_text
    return read_evaluation_text(path, source.tokenizer, architecture.vocab_size, spec.limits.max_seq_len)


def _check_calibration(spec: Spec, source: Source, quantization: Format | None) -> None:
    """What nvidia-modelopt is asked for, before it is asked.

    Raises:
        ConfigError: it does not write that.
    """
    what = spec.quant_algo or "FP8 keys and values"
    if spec.dtype is DType.FLOAT32:
        raise ConfigError(f"dtype is 'float32': {what} has activations of 16 bits; choose bfloat16 or float16")
    if quantization is not None:
        choose_block_size(quantization, spec.flow, spec.architecture, spec.split)
    if spec.flow is Flow.ENGINE:
        family = ENGINE_FAMILIES[source.family]
        if family.exporter is None:
            known = ", ".join(name for name, one in ENGINE_FAMILIES.items() if one.exporter is not None)
            raise ConfigError(
                f"quantization is {what}: nvidia-modelopt writes such TensorRT-LLM checkpoints of {known}, and not of "
                f"{source.family}; take int8 or int4, or build with --tensorrt-llm-version 1.3"
            )
