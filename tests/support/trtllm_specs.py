"""What is to be built for TensorRT-LLM, decided without a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import Architecture, DType, Flow, KvCache, KvType, Layer, Limits, Rope
from trierarch.builder.mapping import Mapping
from trierarch.builder.tensorrt_llm.releases import RELEASES
from trierarch.builder.tensorrt_llm.sampler import choose_sampler
from trierarch.builder.tensorrt_llm.spec import Spec


def trtllm_spec(release: str, flow: Flow, **changes: Any) -> Spec:
    """Of a tiny model; `changes` are fields of the Spec."""
    architecture = Architecture(
        family="LlamaForCausalLM",
        vocab_size=32,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        layers=(Layer(window=16), Layer()),
        ropes=(Rope(rotary_dim=16),),
        norm_eps=1e-5,
        attention_scale=0.25,
        tie_embeddings=False,
        max_position_embeddings=256,
    )
    config = BuildConfig(model="demo", output=Path("out"))
    chosen = {
        "config": config,
        "asked": frozenset(config.model_fields_set),
        "release": RELEASES[release],
        "flow": flow,
        "architecture": architecture,
        "dtype": DType.BFLOAT16,
        "limits": Limits(max_batch_size=32, max_seq_len=128, max_num_tokens=512),
        "kv_cache": KvCache(dtype=KvType.BFLOAT16, block_size=32, bytes_per_token=256, memory_fraction=0.9),
        "split": Mapping(),
        "quant_algo": None,
        "kv_algo": None,
        "lora": None,
        "drafter": None,
        "max_draft_len": 4,
        "sampler": choose_sampler(None, RELEASES[release], flow, changes.get("drafter")),
    }
    return Spec(**{**chosen, **changes})
