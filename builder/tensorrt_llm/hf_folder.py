"""A Hugging Face checkpoint, whatever the source was: what the PyTorch flow loads, and what nvidia-modelopt quantises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from tokenizers import Tokenizer

from trierarch.builder.checkpoint import Checkpoint, TokenizerFiles
from trierarch.builder.decoder import Decoder
from trierarch.builder.manifest import DType, Tokens
from trierarch.builder.tensorrt_llm.package import Package
from trierarch.builder.weight import Source, Weight
from trierarch.builder.weights_file import CheckpointWeights

WEIGHTS_NAME: Final = "model.safetensors"


def hf_package(checkpoint: Checkpoint, decoder: Decoder, tokenizer: TokenizerFiles, dtype: DType, kind: str) -> Package:
    """Every tensor of `checkpoint` under its own name, as `dtype`; `kind` is the model_type, where nothing says it."""
    return Package(
        {WEIGHTS_NAME: _weights(checkpoint, decoder, dtype)}, describing_files(checkpoint, tokenizer, dtype, kind)
    )


def describing_files(checkpoint: Checkpoint, tokenizer: TokenizerFiles, dtype: DType, kind: str) -> dict[str, bytes]:
    """All of such a checkpoint but its tensors."""
    return {
        "config.json": _json(_config(checkpoint.config, dtype, kind)),
        "generation_config.json": _json(_generation(tokenizer.tokens)),
        "tokenizer_config.json": _json(_tokenizer(tokenizer)),
        **tokenizer.files(),
    }


def _weights(checkpoint: Checkpoint, decoder: Decoder, dtype: DType) -> CheckpointWeights:
    # A GGUF file stores 1 + w where Hugging Face stores w.
    offset = -decoder.family.norm_offset if checkpoint.has_folded_norms else 0.0
    weights = tuple(
        Weight(name, shape, dtype, (Source(name, shape),), offset if name.endswith("norm.weight") else 0.0)
        for name, shape in sorted(checkpoint.shapes.items())
    )
    return CheckpointWeights(checkpoint, weights)


def _config(raw: Mapping[str, Any], dtype: DType, kind: str) -> dict[str, Any]:
    config = {"model_type": kind, **raw}
    for place in (config, config.get("text_config")):
        if isinstance(place, dict):
            # Its name up to transformers 4, which later ones take as well.
            place.pop("dtype", None)
            place["torch_dtype"] = dtype.value
    return config


def _generation(tokens: Tokens) -> dict[str, Any]:
    return {"bos_token_id": tokens.bos, "eos_token_id": list(tokens.eos), "pad_token_id": tokens.pad}


def _tokenizer(tokenizer: TokenizerFiles) -> dict[str, Any]:
    encoder, tokens = Tokenizer.from_buffer(tokenizer.tokenizer_json), tokenizer.tokens
    ids = {"bos_token": tokens.bos, "eos_token": next(iter(tokens.eos), None), "pad_token": tokens.pad}
    named = {name: None if index is None else encoder.id_to_token(index) for name, index in ids.items()}
    own = {name: token for name, token in named.items() if token is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": tokenizer.chat_template, **own}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
