"""An engine's embeddings are transformers' own: states behind the last norm, pooled, of length 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.asking import Client
from support.checkpoints import random_model, save_checkpoint
from trierarch.builder.build import build
from trierarch.builder.compile import find_compiler
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import DType, EngineManifest, Pooling, Target
from trierarch.builder.pooling import POOLING_FILE
from trierarch.python_backend.executors.factory import open_executor

TEXTS = [tuple(range(5, 5 + length)) for length in (1, 7, 50)]
ROOM: dict[str, Any] = {
    "dtype": DType.FLOAT32,
    "kv_cache_bytes": 1 << 20,
    "max_seq_len": 64,
    "max_num_tokens": 20,  # so that prompts are computed in pieces
    "max_batch_size": 4,
}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_embeddings_are_transformers(family: str, is_compiled: bool, tmp_path: Path) -> None:
    if is_compiled and find_compiler() is None:
        pytest.skip("no C++ compiler")
    model = random_model(family)
    save_checkpoint(model, tmp_path / "hf")
    for pooling in Pooling:
        engine = tmp_path / pooling.value
        build(BuildConfig(model=str(tmp_path / "hf"), output=engine, pooling=pooling, compile=is_compiled, **ROOM))
        executor = open_executor(engine)
        try:
            streams = Client(executor).ask(
                *({"prompt": text, "max_tokens": 1, "return_embedding": True} for text in TEXTS)
            )
        finally:
            executor.close()
        for text, stream in zip(TEXTS, streams, strict=True):
            (told,) = [delta.embedding for delta in stream.deltas if delta.embedding is not None]
            with torch.no_grad():
                states = model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0].numpy()
            expected = states[-1] if pooling is Pooling.LAST else states.mean(0)
            np.testing.assert_allclose(_unit(told), _unit(expected), atol=2e-5)


def test_a_checkpoint_of_sentence_transformers_says_how_it_is_pooled(tmp_path: Path) -> None:
    save_checkpoint(random_model("llama"), tmp_path / "hf")
    said = {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True, "word_embedding_dimension": 64}

    def built(name: str, **options: Any) -> EngineManifest:
        return build(BuildConfig(model=str(tmp_path / "hf"), output=tmp_path / name, compile=False, **ROOM, **options))

    assert built("without").pooling is None
    (tmp_path / "hf" / POOLING_FILE).parent.mkdir()
    (tmp_path / "hf" / POOLING_FILE).write_text(json.dumps(said))
    assert built("told").pooling is Pooling.LAST
    assert built("asked", pooling=Pooling.MEAN).pooling is Pooling.MEAN
    (tmp_path / "hf" / POOLING_FILE).write_text(json.dumps(said | {"pooling_mode_cls_token": True}))
    assert built("both").pooling is None
    with pytest.raises(ConfigError, match="pooling is given, and TensorRT-LLM tells no states"):
        built("elsewhere", pooling=Pooling.LAST, target=Target.TENSORRT_LLM)


def _unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)
