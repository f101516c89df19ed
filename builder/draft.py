"""The draft: a smaller model of the same vocabulary, whose guesses the engine's own model verifies."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from trierarch.builder.config import BuildConfig
from trierarch.builder.decoder import read_decoder
from trierarch.builder.drafted import Drafted, about_draft
from trierarch.builder.eagle3 import is_head
from trierarch.builder.errors import ConfigError, EngineError
from trierarch.builder.manifest import MANIFEST_NAME, TOKENIZER_NAME, WEIGHTS_NAME, EngineManifest, Target
from trierarch.builder.model import Model, read_model
from trierarch.builder.progress import DraftProgress, Progress
from trierarch.builder.source import open_checkpoint
from trierarch.builder.speculation import SELF_DRAFTS
from trierarch.builder.verify import verify
from trierarch.builder.vocabulary import check_same_vocabulary
from trierarch.builder.weights_file import CopiedWeights

logger = logging.getLogger(__name__)


def find_draft(config: BuildConfig, drafted: Drafted, progress: Progress) -> Model | None:
    """The model that `config.draft` names, if any: a quantised copy of the drafted one, an engine, or a checkpoint.

    It takes the ids that the drafted model takes, and computes sequences as long. It need not be accurate, since what
    it guesses is verified. One that is not smaller than the drafted model is let through with a warning.

    Raises:
        CheckpointError: the checkpoint cannot be read or is of an unknown kind.
        ConfigError: nothing is there, or its vocabulary is another, its window too short or its size no gain.
        EngineError: the engine is corrupt, foreign to this machine, or has no tokenizer.
        ResourceError: it must be downloaded and cannot be.
    """
    source = config.draft
    if source is None:
        return None
    if source in SELF_DRAFTS:
        return _own(source, drafted)
    if (Path(source).expanduser() / MANIFEST_NAME).is_file():
        draft = _built(config, Path(source).expanduser(), source, drafted)
    else:
        draft = _read(config, source, drafted, progress)
    if draft.weights.num_bytes >= drafted.model.weights.num_bytes:
        logger.warning(
            "the draft has %d bytes of weights and the model %d: guessing takes longer than computing; take a smaller "
            "draft, or quantise it with --draft-quantization",
            draft.weights.num_bytes,
            drafted.model.weights.num_bytes,
        )
    return draft


def _own(source: str, drafted: Drafted) -> Model:
    model = drafted.model
    with about_draft(source):
        draft = read_model(
            drafted.checkpoint, drafted.decoder, model.tokens, model.dtype, SELF_DRAFTS[source], model.kv_dtype
        )
    if draft.weights.num_bytes >= model.weights.num_bytes:
        raise ConfigError(
            f"draft is {source!r}: the model itself takes {model.weights.num_bytes} bytes and so quantised "
            f"{draft.weights.num_bytes}, so that guessing would take as long as computing; quantise the draft more than "
            "the model, or take a smaller checkpoint"
        )
    return replace(draft, name=f"{model.name}-{source}")


def _read(config: BuildConfig, source: str, drafted: Drafted, progress: Progress) -> Model:
    checkpoint = open_checkpoint(source, DraftProgress(progress), "draft")
    max_seq_len = drafted.decoder.max_seq_len
    with about_draft(source):
        if is_head(checkpoint.shapes):
            raise ConfigError(
                "it is a head on hidden states, no model; name eagle3 in the speculation in place of draft_model"
            )
        _check_window(read_decoder(checkpoint.config, None).architecture.max_position_embeddings, max_seq_len)
        decoder = read_decoder(checkpoint.config, max_seq_len)
        tokenizer = checkpoint.tokenizer(drafted.vocab_size)
        check_same_vocabulary(drafted.tokenizer.tokenizer_json, tokenizer.tokenizer_json, drafted.vocab_size)
        return read_model(
            checkpoint,
            decoder,
            tokenizer.tokens,
            drafted.model.dtype,
            config.draft_quantization,
            drafted.model.kv_dtype,
            drafted.vocab_size,
        )


def _built(config: BuildConfig, engine: Path, source: str, drafted: Drafted) -> Model:
    """Its weights are copied; kernels are compiled for this machine, as they are for the engine it becomes part of."""
    manifest = verify(engine, digests=True)
    with about_draft(source):
        _check_engine(config, manifest)
        _check_window(manifest.limits.max_seq_len, drafted.decoder.max_seq_len)
        vocab_size = drafted.vocab_size
        check_same_vocabulary(drafted.tokenizer.tokenizer_json, (engine / TOKENIZER_NAME).read_bytes(), vocab_size)
        if manifest.architecture.vocab_size != vocab_size:
            raise ConfigError(
                f"it was built for {manifest.architecture.vocab_size} token ids, the model has {vocab_size}; give the "
                "checkpoint it was built from, whose embeddings can still be fitted"
            )
    return Model(
        name=manifest.name,
        source=manifest.source,
        source_quantization=manifest.source_quantization,
        architecture=manifest.architecture,
        dtype=manifest.dtype,
        quantization=manifest.quantization,
        kv_dtype=manifest.kv_cache.dtype,
        tokens=manifest.tokens,
        weights=CopiedWeights(engine / WEIGHTS_NAME, manifest.files[WEIGHTS_NAME]),
    )


def _check_engine(config: BuildConfig, manifest: EngineManifest) -> None:
    if manifest.target is not Target.TORCH:
        raise ConfigError(f"its target is {manifest.target.value!r}; give one built for {Target.TORCH.value!r}")
    if config.draft_quantization is not None:
        raise ConfigError(
            f"draft_quantization is {config.draft_quantization.value!r}, but an engine's weights are written already; "
            "leave it out, or give the checkpoint"
        )
    if not manifest.files.keys() >= {TOKENIZER_NAME, WEIGHTS_NAME}:
        raise EngineError(
            f"it has no {TOKENIZER_NAME} to compare vocabularies by: it is another engine's draft; give the checkpoint "
            "it was built from"
        )


def _check_window(window: int, max_seq_len: int) -> None:
    if window < max_seq_len:
        raise ConfigError(
            f"its window is {window} tokens and max_seq_len is {max_seq_len}, so that it could not guess to the end; take "
            f"a draft with a longer window, or build with --max-seq-len {window}"
        )
