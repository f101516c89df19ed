"""Logits of FP8 checkpoints against those of transformers, which dequantises them where no GPU multiplies them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.checkpoints import VOCAB_SIZE, random_checkpoint
from support.forward import prompt_logits
from support.fp8_checkpoints import Block, by_blocks, elements, fp8_config, publish
from support.trtllm_models import WIDE, build_for, save_random
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.evaluation_text import BUNDLED
from trierarch.builder.manifest import DType, EngineManifest
from trierarch.python_backend.executors.torch.teacher_forcing import teacher_forced_logits
from trierarch.python_backend.executors.torch.weights import load_weights

PROMPT = torch.randint(VOCAB_SIZE, (40,), generator=torch.Generator().manual_seed(7)).tolist()
CPU = torch.device("cpu")


def transformers_logits(checkpoint: Path, block: Block) -> torch.Tensor:
    import transformers

    how = transformers.FineGrainedFP8Config(weight_block_size=block, dequantize=True)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(checkpoint), dtype=torch.float32, quantization_config=how, attn_implementation="eager"
        )
        logits: torch.Tensor = model(torch.tensor([PROMPT])).logits[0]
    return logits


def build_engine(checkpoint: Path, output: Path, **options: Any) -> EngineManifest:
    options = {"dtype": DType.FLOAT32, "accuracy_check": False, "compile": False} | options
    return build(BuildConfig.model_validate({"model": str(checkpoint), "output": output} | options))


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3-moe"])
def test_blocks_compute_what_transformers_computes(family: str, tmp_path: Path) -> None:
    """Of sizes that blocks divide: of others transformers spreads the scales otherwise than they were made."""
    block = (32, 16)
    checkpoint = random_checkpoint(family, tmp_path / "hf", seed=1)
    publish(checkpoint, by_blocks(block), fp8_config(block))
    reference = transformers_logits(checkpoint, block)
    assert reference.std(dim=1).min() > 0.1
    manifest = build_engine(checkpoint, tmp_path / "kept", quantization="source")
    assert manifest.quantization is not None
    assert manifest.quantization.fp8_block == block
    build_engine(checkpoint, tmp_path / "plain")
    for name in ("kept", "plain"):
        logits = prompt_logits(tmp_path / name, PROMPT, [31, 1, 8])
        assert ((logits - reference).norm(dim=1) / reference.norm(dim=1)).max() < 1e-4


def test_what_is_kept_is_measured(tmp_path: Path) -> None:
    """Dequantised on a CPU it is the model itself."""
    checkpoint = random_checkpoint("llama", tmp_path / "hf", num_hidden_layers=1)
    publish(checkpoint, by_blocks((48, 40)), fp8_config((48, 40)))
    (tmp_path / "text").write_text(BUNDLED.read_text(encoding="utf-8")[:400], encoding="utf-8")
    config = BuildConfig.model_validate(
        {
            "model": str(checkpoint),
            "output": tmp_path / "engine",
            "quantization": "source",
            "dtype": "float32",
            "accuracy_text": tmp_path / "text",
        }
    )
    accuracy = build(config, measure=teacher_forced_logits).accuracy
    assert accuracy is not None
    assert accuracy.greedy_agreement == 1
    assert accuracy.perplexity == pytest.approx(accuracy.reference_perplexity, rel=1e-5)


def test_what_modelopt_exports_is_read_back(tmp_path: Path) -> None:
    """Our own checkpoints for TensorRT-LLM's PyTorch flow, with scales of keys and values."""
    save_random("llama", tmp_path / "hf", **WIDE)
    (tmp_path / "text").write_text(BUNDLED.read_text(encoding="utf-8")[:600], encoding="utf-8")
    options = {"dtype": DType.BFLOAT16, "accuracy_check": False, "accuracy_text": tmp_path / "text", "max_seq_len": 256}
    build_for(tmp_path / "hf", tmp_path / "trt", "1.3", quantization="fp8", kv_cache_dtype="fp8", **options)
    exported = tmp_path / "trt" / "model"
    assert json.loads((exported / "config.json").read_text())["quantization_config"]["quant_method"] == "modelopt"
    tensors = load_file(exported / "model.safetensors")
    assert any(name.endswith("k_scale") for name in tensors)
    for said_in in ("config.json", "hf_quant_config.json"):
        manifest = build_engine(exported, tmp_path / said_in, quantization="source")
        assert manifest.quantization is not None
        assert manifest.quantization.num_fp8 == 4 * manifest.architecture.num_layers
        matrix = load_weights(tmp_path / said_in, manifest, CPU)["layers.0.qkv.weight"]
        names = [f"model.layers.0.self_attn.{piece}_proj.weight" for piece in "qkv"]
        assert not isinstance(matrix, torch.Tensor)
        assert matrix.dequantize(torch.float32).equal(torch.cat([elements(tensors, name, None) for name in names]))
        config = json.loads((exported / "config.json").read_text())
        config.pop("quantization_config", None)
        (exported / "config.json").write_text(json.dumps(config))
