"""An EAGLE-3 head (arXiv 2503.01840): its checkpoint, held against the model that it guesses for.

Heads are published under several names of one layout (vLLM, SGLang, speculators): tensors decide what one is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict

from trierarch.builder.architectures import Family
from trierarch.builder.config import BuildConfig
from trierarch.builder.decoder import decoder_of
from trierarch.builder.drafted import Drafted, about_draft
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.manifest import MANIFEST_NAME, Architecture, DrafterKind, DType, Head, PositiveInt
from trierarch.builder.model import Model, safe_name
from trierarch.builder.progress import DraftProgress, Progress
from trierarch.builder.safetensors_checkpoint import SafetensorsCheckpoint
from trierarch.builder.source import open_checkpoint
from trierarch.builder.validation import validated
from trierarch.builder.weight import Source, Weight
from trierarch.builder.weights import layer_weights, matched, rope_weights, spelling_of
from trierarch.builder.weights_file import CheckpointWeights

_NAME: Final = "LlamaForCausalLMEagle3"
_FAMILY: Final = Family(
    renames=(
        (r"(?:model\.)?(?:midlayer|layers\.0)\.", "model.layers.0."),
        (r"(?:model\.)?(fc|norm|embed_tokens)\.", r"model.\1."),
    ),
    ignorable=("d2t", "t2d"),  # the first becomes head.target_ids, the second is its inverse
)
_LAYER: Final = "model.layers.0."
_OTHER: Final = "take a head that was trained for this model"


class _Nested(BaseModel):
    """`eagle_config`, as SGLang's and NVIDIA's heads have it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    use_aux_hidden_state: bool = True
    eagle_aux_hidden_state_layer_ids: tuple[int, ...] | None = None
    """Layers from 0, whose outputs are read."""


class Eagle3Config(BaseModel):
    """What a head's `config.json` says beyond a Llama's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: PositiveInt
    """Of the model."""
    num_hidden_layers: PositiveInt = 1
    hidden_size: PositiveInt
    target_hidden_size: PositiveInt | None = None
    draft_vocab_size: PositiveInt | None = None
    max_position_embeddings: PositiveInt | None = None
    norm_before_residual: bool = False
    eagle_aux_hidden_state_layer_ids: tuple[int, ...] | None = None
    """As vLLM and speculators count: the hidden state after so many layers is read."""
    eagle_config: _Nested | None = None

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """After how many of the model's layers it reads the hidden state, ascending."""
        nested = None if self.eagle_config is None else self.eagle_config.eagle_aux_hidden_state_layer_ids
        if self.eagle_aux_hidden_state_layer_ids:
            return tuple(sorted(self.eagle_aux_hidden_state_layer_ids))
        if nested:
            return tuple(sorted(index + 1 for index in nested))
        return tuple(sorted((2, num_layers // 2, num_layers - 3)))


def is_head(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a checkpoint's tensors are those of a head."""
    common = spelling_of(shapes, _FAMILY)
    return "model.fc.weight" in common or f"{_LAYER}hidden_norm.weight" in common


def read_eagle3(config: BuildConfig, drafted: Drafted, progress: Progress) -> Model:
    """The head that `config.draft` names.

    Raises:
        CheckpointError: the checkpoint cannot be read, is damaged, or of a kind that is not run.
        ConfigError: nothing is there, it is no head, or one for another model.
        ResourceError: it must be downloaded and cannot be.
    """
    source = config.draft
    assert source is not None, "choose_drafters has seen to it"
    with about_draft(source):
        if (Path(source).expanduser() / MANIFEST_NAME).is_file():
            raise ConfigError("it is an engine; give the checkpoint of a head")
    checkpoint = open_checkpoint(source, DraftProgress(progress), "draft")
    with about_draft(source):
        if not isinstance(checkpoint, SafetensorsCheckpoint):
            raise CheckpointError("it is a GGUF file, and heads are read from safetensors; give such a directory")
        if not is_head(checkpoint.shapes):
            raise ConfigError(
                "it is no EAGLE-3 head, for it has neither fc.weight nor hidden_norm.weight; give one, or name "
                "draft_model in the speculation in place of eagle3"
            )
        return _model(checkpoint, drafted)


def _model(checkpoint: SafetensorsCheckpoint, drafted: Drafted) -> Model:
    raw, common, model = _flat(checkpoint.config), spelling_of(checkpoint.shapes, _FAMILY), drafted.model
    settings = validated(Eagle3Config, raw, "config.json: ")
    head = Head(
        kind=DrafterKind.EAGLE3,
        taps=_checked_taps(settings, drafted),
        target_hidden_size=drafted.decoder.architecture.hidden_size,
        target_vocab_size=drafted.vocab_size,
        fc_bias="model.fc.bias" in common,
        norm_before_residual=settings.norm_before_residual,
    )
    # Beyond the window that it was trained in a head guesses worse, and what it guesses is verified.
    window = max(settings.max_position_embeddings or 0, drafted.decoder.max_seq_len)
    decoder = decoder_of(_NAME, _FAMILY, {**raw, "max_position_embeddings": window}, drafted.decoder.max_seq_len)
    architecture = decoder.architecture.model_copy(
        update={
            "vocab_size": settings.draft_vocab_size or settings.vocab_size,
            "tie_embeddings": False,
            "qkv_bias": f"{_LAYER}self_attn.q_proj.bias" in common,
            "o_bias": f"{_LAYER}self_attn.o_proj.bias" in common,
            "mlp_bias": f"{_LAYER}mlp.down_proj.bias" in common,
        }
    )
    has_embedding = "model.embed_tokens.weight" in common
    if not has_embedding and architecture.hidden_size != head.target_hidden_size:
        raise CheckpointError(
            f"it has no embed_tokens.weight, and the model's does not fit: hidden_size is {architecture.hidden_size} and "
            f"the model's {head.target_hidden_size}; download it again"
        )
    planned = _weights(architecture, head, model.dtype, has_embedding)
    weights = (
        *matched(planned, checkpoint.shapes, _FAMILY, architecture),
        *(() if has_embedding else (drafted.embedding(),)),
        *rope_weights(decoder),
        _target_ids(checkpoint, architecture.vocab_size, drafted.vocab_size),
    )
    return replace(
        model,
        name=safe_name(checkpoint),
        source=checkpoint.name,
        source_quantization=None,
        architecture=architecture,
        quantization=None,
        weights=CheckpointWeights(checkpoint, weights),
        head=head,
    )


def _flat(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, with what speculators nests."""
    nested = raw.get("transformer_layer_config")
    return {**(nested if isinstance(nested, Mapping) else {}), **raw}


def _checked_taps(settings: Eagle3Config, drafted: Drafted) -> tuple[int, ...]:
    architecture = drafted.decoder.architecture
    if settings.num_hidden_layers != 1:
        raise CheckpointError(
            f"num_hidden_layers is {settings.num_hidden_layers}: heads of one layer are run; take one"
        )
    if settings.eagle_config is not None and not settings.eagle_config.use_aux_hidden_state:
        raise CheckpointError(
            "use_aux_hidden_state is false: heads that read several hidden states are run; take an EAGLE-3 head"
        )
    hidden_size = settings.target_hidden_size or settings.hidden_size
    if hidden_size != architecture.hidden_size:
        raise ConfigError(
            f"it reads hidden states of {hidden_size}, the model's are {architecture.hidden_size}; {_OTHER}"
        )
    if settings.vocab_size != architecture.vocab_size:
        raise ConfigError(
            f"it takes {settings.vocab_size} token ids, the model has {architecture.vocab_size}; {_OTHER}"
        )
    taps, num_layers = settings.taps(architecture.num_layers), architecture.num_layers
    if len(set(taps)) < len(taps) or taps[0] < 1 or taps[-1] > num_layers:
        counts = ", ".join(map(str, taps))
        raise ConfigError(f"it reads the hidden states after {counts} layers, and the model has {num_layers}; {_OTHER}")
    return taps


def _weights(architecture: Architecture, head: Head, dtype: DType, has_embedding: bool) -> Iterator[Weight]:
    hidden = architecture.hidden_size
    table, logits = (head.target_vocab_size, hidden), (architecture.vocab_size, hidden)
    if has_embedding:
        yield Weight("embed.weight", table, dtype, (Source("model.embed_tokens.weight", table),))
    yield Weight("lm_head.weight", logits, dtype, (Source("lm_head.weight", logits),))
    for name, source in (("norm", "model.norm"), ("head.hidden_norm", f"{_LAYER}hidden_norm")):
        yield Weight(f"{name}.weight", (hidden,), DType.FLOAT32, (Source(f"{source}.weight", (hidden,)),))
    fused = (hidden, head.fc_inputs)
    yield Weight("head.fc.weight", fused, dtype, (Source("model.fc.weight", fused),))
    if head.fc_bias:
        yield Weight("head.fc.bias", (hidden,), dtype, (Source("model.fc.bias", (hidden,)),))
    yield from layer_weights(architecture, _FAMILY, 0, _LAYER, dtype, qkv_inputs=head.qkv_inputs(hidden))


def _target_ids(checkpoint: SafetensorsCheckpoint, num_guesses: int, vocab_size: int) -> Weight:
    """The model's id of each guess. `d2t` holds how far each is from its place."""
    ids = torch.arange(num_guesses)
    if "d2t" in checkpoint.shapes:
        offsets = checkpoint.load_integers("d2t")
        if offsets.shape != ids.shape:
            raise CheckpointError(f"d2t has {offsets.numel()} entries for {num_guesses} guesses; download it again")
        ids = ids + offsets
    elif num_guesses != vocab_size:
        raise CheckpointError(
            f"it has no d2t that says which of the model's {vocab_size} token ids its {num_guesses} guesses are; download "
            "it again"
        )
    if not bool(((ids >= 0) & (ids < vocab_size)).all()):
        raise CheckpointError(f"d2t leads to ids beyond the {vocab_size} of the model; download it again")
    return Weight("head.target_ids", (num_guesses,), None, value=ids)
