"""Attention alone, by each of the backends that a device has: one line of JSON for each, and each kind of step.

python -m trierarch.benchmarks.attention DEVICE [--quick]

Heads as Llama-3.1-8B has them. `plan_us` is what the host does once a step, `layer_us` what a layer takes then, of which
`gb_per_s` counts the keys and values that must be read, and `tflop_per_s` the products of what is seen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from trierarch.benchmarks.gpu_limits import best_seconds
from trierarch.builder.manifest import (
    Architecture,
    BuiltWith,
    DType,
    EngineManifest,
    KvCache,
    KvType,
    Layer,
    Limits,
    Rope,
    Target,
    Tokens,
)
from trierarch.python_backend.executors.torch.attention_backend import AnyAttentionBackend, AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.attention_trial import disordered_plan
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.scheduling.plan import Plan

_NUM_HEADS: Final = 32
_SHAPE: Final = AttentionShape(num_kv_heads=8, scale=128**-0.5, softcap=None)
_HEAD_DIM: Final = 128
_BLOCK_SIZE: Final = 16
_ELEMENT_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """Of step: (sequences, queries of each, tokens before them), one after the other."""

    name: str
    parts: tuple[tuple[int, int, int], ...]

    def plan(self) -> Plan:
        """Over blocks in disorder, none of them shared."""
        return disordered_plan([part[1:] for part in self.parts for _ in range(part[0])], _BLOCK_SIZE)

    @property
    def kv_bytes(self) -> int:
        """Of keys and values, each read once."""
        keys = sum(count * (before + queries) for count, queries, before in self.parts)
        return 2 * keys * _SHAPE.num_kv_heads * _HEAD_DIM * _ELEMENT_BYTES

    @property
    def flops(self) -> float:
        """Of scores and of mixing values, of what each query sees."""
        seen = sum(count * queries * (before + (queries + 1) / 2) for count, queries, before in self.parts)
        return 4.0 * seen * _NUM_HEADS * _HEAD_DIM


KINDS: Final = (
    Kind("one decodes at 8192", ((1, 1, 8191),)),
    Kind("64 decode at 2048", ((64, 1, 2047),)),
    Kind("a prompt of 4096", ((1, 4096, 0),)),
    Kind("a piece of 2048 beside 64 that decode", ((64, 1, 2047), (1, 2048, 2048))),
)
QUICK: Final = (Kind("two decode", ((2, 1, 40),)), Kind("a piece beside one that decodes", ((1, 1, 40), (1, 20, 30))))


def backends(device: torch.device) -> dict[str, AnyAttentionBackend]:
    """By label: the one that would serve, ours, torch's operators; fewer where these are the same."""
    manifest = _manifest()
    found = Operators.best(manifest, device), Operators.ours(manifest, device), Operators.eager()
    return {operators.attention.label: operators.attention for operators in found}


def measure(device: torch.device, kinds: tuple[Kind, ...]) -> Iterator[dict[str, Any]]:
    """One kind after the other, each by all backends."""
    contestants = backends(device)
    for kind in kinds:
        plan = kind.plan()
        num_blocks = sum(len(item.sequence.block_table) for item in plan.scheduled)
        shape = BlockShape(_BLOCK_SIZE, _SHAPE.num_kv_heads, padding_block=num_blocks)
        pages = (2, num_blocks + 1, _SHAPE.num_kv_heads, _BLOCK_SIZE, _HEAD_DIM)
        layer = LayerKv(torch.randn(pages, device=device).bfloat16(), None)
        queries = torch.randn(plan.num_tokens, _NUM_HEADS, _HEAD_DIM, device=device).bfloat16()
        for label, backend in contestants.items():
            build = partial(InputBatch.build, plan, {None}, shape, torch.bfloat16, device, backend)
            planning = best_seconds(device, build)
            seconds = best_seconds(device, partial(build().attention[None], queries, layer, _SHAPE))
            yield {
                "step": kind.name,
                "attention": label,
                "plan_us": round(planning * 1e6, 1),
                "layer_us": round(seconds * 1e6, 1),
                "gb_per_s": round(kind.kv_bytes / seconds / 1e9, 1),
                "tflop_per_s": round(kind.flops / seconds / 1e12, 2),
            }


def _manifest() -> EngineManifest:
    """As much of an engine as its operators depend on."""
    architecture = Architecture(
        family="AttentionAlone",
        vocab_size=8,
        hidden_size=_NUM_HEADS * _HEAD_DIM,
        num_heads=_NUM_HEADS,
        num_kv_heads=_SHAPE.num_kv_heads,
        head_dim=_HEAD_DIM,
        intermediate_size=8,
        layers=(Layer(),),
        ropes=(Rope(rotary_dim=_HEAD_DIM),),
        norm_eps=1e-5,
        attention_scale=_SHAPE.scale,
        tie_embeddings=True,
        max_position_embeddings=16384,
    )
    bytes_per_token = architecture.kv_bytes_per_token(KvType.BFLOAT16)
    return EngineManifest(
        name="attention",
        target=Target.TORCH,
        built_with=BuiltWith(trierarch="0", torch="0"),
        source="nothing",
        architecture=architecture,
        dtype=DType.BFLOAT16,
        limits=Limits(max_seq_len=16384, max_batch_size=64),
        kv_cache=KvCache(dtype=KvType.BFLOAT16, block_size=_BLOCK_SIZE, bytes_per_token=bytes_per_token),
        tokens=Tokens(bos=None, eos=(0,), pad=0, add_bos=False),
        files={},
    )


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    for row in measure(torch.device(sys.argv[1]), QUICK if "--quick" in sys.argv[2:] else KINDS):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
