"""Whole engines with the kernels draw token for token what they draw by torch's operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support.adapted_answers import GREEDY, answers
from support.packed_adapters import random_packed, taking_adapters
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_engine, write_weights
from support.stepping import Stepper
from trierarch.builder.manifest import Activation, KvType
from trierarch.builder.packed_adapter import write_packed
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.executors.torch.kernels.grouped_adapters import GroupedAdapters
from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.runner import TorchRunner

FLAGS: dict[str, tuple[dict[str, Any], KvType | None]] = {
    "norms": ({"qk_norm": True, "post_norms": True, "qkv_bias": True}, None),
    "softcaps": ({"attention_softcap": 5.0, "logit_softcap": 10.0, "activation": Activation.GELU_TANH}, KvType.INT8),
}
PROMPTS = [[3], list(range(2, 16)), [4, 4, 4]]


def eagerly(draw: Callable[[], list[list[int]]]) -> list[list[int]]:
    """What `draw` draws without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Operators, "best", lambda manifest, device: Operators.eager())
        return draw()


@pytest.mark.parametrize("flags, kv_type", FLAGS.values(), ids=FLAGS)
def test_chunks_decoding_and_drafts(tmp_path: Path, flags: dict[str, Any], kv_type: KvType | None) -> None:
    architecture = tiny_architecture(**flags)
    manifest = tiny_manifest(architecture, kv_dtype=kv_type)
    write_weights(tmp_path, random_weights(architecture))

    def draw(answers: dict[int, list[int]] | None = None) -> list[list[int]]:
        stepper = Stepper.open(manifest, TorchRunner(tmp_path, manifest, torch.device("cpu")), max_num_tokens=9)
        stepper.answers, stepper.rightness = answers or {}, "mixed"
        return stepper.generate(PROMPTS, max_tokens=5)

    assert isinstance(Operators.best(manifest, torch.device("cpu")).attention, RaggedAttention)
    drawn = eagerly(draw)
    assert draw(dict(enumerate(drawn))) == drawn


def test_adapters_beside_the_base_model(tmp_path: Path) -> None:
    architecture = tiny_architecture()
    manifest = tiny_manifest(architecture)
    engine, shelf = tmp_path / "engine", tmp_path / "shelf"
    engine.mkdir()
    shelf.mkdir()
    write_engine(engine, manifest, random_weights(architecture))
    manifest = taking_adapters(manifest, engine, max_adapters=2)
    write_engine(engine, manifest, random_weights(architecture))
    for seed, (name, options) in enumerate(
        (("a", {"rank": 3, "is_dora": True}), ("b", {"rank": 8, "whole": ("lm_head",)}), ("c", {"rank": 1}))
    ):
        write_packed(random_packed(manifest, seed=seed, strength=4.0, **options), shelf / f"{name}.safetensors")

    def draw() -> list[list[int]]:
        executor = open_executor(engine, adapter_directories=(shelf,))
        try:
            return answers(executor, ("", "a", "b", "c"), replace(GREEDY, max_tokens=5), prompts=((3, 4, 5, 6, 7),))
        finally:
            executor.close()

    operators = Operators.best(manifest, torch.device("cpu"))
    assert isinstance(operators.adapters, GroupedAdapters)
    assert str(operators) == "attention by our kernels, adapters by our kernels, layers by our kernels"
    drawn = eagerly(draw)
    assert len({tuple(one) for one in drawn}) == len(drawn)
    assert draw() == drawn
