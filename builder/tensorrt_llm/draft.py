"""The draft of an engine for TensorRT-LLM: a smaller model or an EAGLE-3 head, which TensorRT-LLM loads beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trierarch.builder.config import BuildConfig
from trierarch.builder.drafted import Drafted, about_draft
from trierarch.builder.eagle3 import read_eagle3
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import MANIFEST_NAME, DrafterKind, EngineManifest
from trierarch.builder.model import read_model
from trierarch.builder.progress import DraftProgress, Progress
from trierarch.builder.safetensors_checkpoint import SafetensorsCheckpoint
from trierarch.builder.source import open_checkpoint
from trierarch.builder.speculation import SELF_DRAFTS
from trierarch.builder.tensorrt_llm.arguments import llm_args
from trierarch.builder.tensorrt_llm.package import Package
from trierarch.builder.tensorrt_llm.plan import Plan, make_plan
from trierarch.builder.tensorrt_llm.speculation import MODEL_FOLDER
from trierarch.builder.verify import digest_file
from trierarch.builder.vocabulary import check_same_vocabulary
from trierarch.builder.weights_file import CopiedWeights

_SHARED: Final = (
    "tensorrt_llm_version",
    "tensorrt_llm_flow",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "max_batch_size",
    "max_num_tokens",
    "block_size",
    "enable_prefix_caching",
    "kv_cache_memory_fraction",
    "kv_cache_dtype",
)
"""Fields that a draft has from the model that it drafts for, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft's engine, decided and not yet written."""

    manifest: EngineManifest
    package: Package

    @property
    def weight_bytes(self) -> int:
        """Of all GPUs together."""
        return sum(file.num_bytes for file in self.package.weights.values())


def share_memory(plan: Plan, draft: Draft | None) -> Plan:
    """The same plan, whose `kv_cache_bytes` hold the draft's keys and values too: both hold as many tokens."""
    kv_cache = plan.spec.kv_cache
    record = plan.manifest.tensorrt_llm
    if draft is None or kv_cache.num_bytes is None or record is None:
        return plan
    own, theirs = kv_cache.bytes_per_token, draft.manifest.kv_cache.bytes_per_token
    shared = kv_cache.model_copy(update={"num_bytes": kv_cache.num_bytes * own // (own + theirs)})
    spec = replace(plan.spec, kv_cache=shared)
    record = record.model_copy(update={"llm_args": llm_args(spec)})
    manifest = plan.manifest.model_copy(update={"kv_cache": shared, "tensorrt_llm": record})
    return replace(plan, spec=spec, manifest=manifest)


def plan_draft(config: BuildConfig, plan: Plan, progress: Progress) -> Draft | None:
    """The draft that `plan` names, if any; `config` asked for it.

    Raises:
        CheckpointError: its checkpoint cannot be read or is of an unknown kind.
        ConfigError: nothing is there, or it does not fit the model.
        ResourceError: it must be downloaded and cannot be.
    """
    source = config.draft
    if source is None or plan.spec.drafter is None:
        return None
    if plan.spec.drafter is DrafterKind.EAGLE3:
        return _head(config, source, plan, progress)
    if source in SELF_DRAFTS or (Path(source).expanduser() / MANIFEST_NAME).is_file():
        raise ConfigError(
            f"draft is {source!r}: TensorRT-LLM's draft is a checkpoint of its own, neither the model again nor an engine; "
            "give a smaller checkpoint of the same vocabulary"
        )
    with about_draft(source):
        draft = make_plan(_draft_config(config, source, plan), DraftProgress(progress), "draft")
        vocab_size, drafted = draft.spec.architecture.vocab_size, plan.spec.architecture.vocab_size
        if vocab_size > drafted:
            raise ConfigError(
                f"it has {vocab_size} token ids, and the model {drafted}; take a draft of the same family"
            )
        check_same_vocabulary(
            plan.source.tokenizer.tokenizer_json, draft.source.tokenizer.tokenizer_json, min(vocab_size, drafted)
        )
    return Draft(draft.manifest, draft.package)


def _draft_config(config: BuildConfig, source: str, plan: Plan) -> BuildConfig:
    shared = {name: getattr(config, name) for name in _SHARED if name in plan.spec.asked}
    own = {
        "target": config.target,
        "model": source,
        "output": config.output,
        "dtype": plan.spec.dtype,
        "max_seq_len": plan.spec.limits.max_seq_len,
        "accuracy_check": False,
        "speculation": (),
    }
    return BuildConfig.model_validate({name: value for name, value in (shared | own).items() if value is not None})


def _head(config: BuildConfig, source: str, plan: Plan, progress: Progress) -> Draft:
    """An EAGLE-3 head, its files as they came: TensorRT-LLM reads the layouts that are published."""
    spec, given = plan.spec, plan.source
    model = read_model(given.checkpoint, given.decoder, given.tokenizer.tokens, spec.dtype)
    head = read_eagle3(config, Drafted(given.checkpoint, given.decoder, given.tokenizer, model), progress)
    record = plan.manifest.tensorrt_llm
    assert record is not None
    manifest = plan.manifest.model_copy(
        update={
            "name": head.name,
            "source": head.source,
            "architecture": head.architecture,
            "head": head.head,
            "kv_cache": spec.kv_cache.model_copy(update={"bytes_per_token": head.kv_bytes_per_token}),
            "lora": None,
            "speculation": None,
            "tensorrt_llm": record.model_copy(update={"llm_args": {}}),
        }
    )
    checkpoint = open_checkpoint(source, DraftProgress(progress), "draft")
    assert isinstance(checkpoint, SafetensorsCheckpoint), "read_eagle3 reads no other"
    paths = sorted(checkpoint.directory.glob("*.safetensors"))
    extra = [
        path for path in sorted(checkpoint.directory.glob("*.json")) if path.name.startswith(("config.", "model."))
    ]
    package = Package(
        {path.name: CopiedWeights(path, digest_file(path)) for path in paths},
        {path.name: path.read_bytes() for path in extra},
    )
    return Draft(manifest, package.within(MODEL_FOLDER))
