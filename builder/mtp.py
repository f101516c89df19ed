"""A multi-token prediction layer: the part of a checkpoint that was trained to guess for the rest of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from trierarch.builder.architectures import FAMILIES
from trierarch.builder.drafted import Drafted
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import DrafterKind, DType, Head, Layer
from trierarch.builder.model import Model
from trierarch.builder.weight import Source, Weight
from trierarch.builder.weights import layer_weights, matched, rope_weights
from trierarch.builder.weights_file import CheckpointWeights

_NORMS: Final = {
    "norm": "final_layernorm",
    "head.hidden_norm": "hidden_layernorm",
    "head.token_norm": "token_layernorm",
}
"""Engine weight -> the layer's tensor, beside those that every layer has."""


def read_mtp(drafted: Drafted) -> Model:
    """The first such layer of the drafted model's own checkpoint. All its guesses are made with it.

    Its weights keep the model's type where the model is quantised. It embeds and makes logits with copies of the
    model's matrices, and reads hidden states before the model's last norm, as the models' authors run it.

    Raises:
        CheckpointError: tensors are missing, misshapen, or nobody's.
        ConfigError: the checkpoint has none.
    """
    decoder, model, checkpoint = drafted.decoder, drafted.model, drafted.checkpoint
    family, prefix = decoder.family, decoder.family.mtp
    shapes = {name: shape for name, shape in checkpoint.shapes.items() if prefix and name.startswith(prefix)}
    if prefix is None or not shapes:
        known = ", ".join(name for name, one in FAMILIES.items() if one.mtp is not None)
        raise ConfigError(
            f"speculation names mtp, and {checkpoint.name} carries no multi-token prediction layer; leave it out, or take "
            f"a checkpoint that does (known are those of {known})"
        )
    # The layer sees all tokens, whatever windows the model's own have.
    architecture = decoder.architecture.model_copy(update={"layers": (Layer(),), "tie_embeddings": False})
    hidden = architecture.hidden_size
    head = Head(
        kind=DrafterKind.MTP,
        taps=(decoder.architecture.num_layers,),
        target_hidden_size=hidden,
        target_vocab_size=drafted.vocab_size,
    )
    fused = (hidden, head.fc_inputs)
    planned = [
        *layer_weights(architecture, family, 0, prefix, model.dtype),
        *(
            Weight(f"{name}.weight", (hidden,), DType.FLOAT32, (Source(f"{prefix}{source}.weight", (hidden,)),))
            for name, source in _NORMS.items()
        ),
        Weight("head.fc.weight", fused, model.dtype, (Source(f"{prefix}input_proj.weight", fused),)),
    ]
    weights = (
        *matched(planned, shapes, family, architecture),
        drafted.embedding(),
        drafted.lm_head(),
        *rope_weights(decoder),
        Weight("head.target_ids", (drafted.vocab_size,), None, value=torch.arange(drafted.vocab_size)),
    )
    return replace(
        model,
        name=f"{model.name}-mtp",
        architecture=architecture,
        quantization=None,
        weights=CheckpointWeights(checkpoint, weights),
        head=head,
    )
