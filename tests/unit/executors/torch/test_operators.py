"""Which operators a model gets, by its device and its shape. What they compute is tested in ../gpu_kernels."""

from __future__ import annotations

import importlib.util
import logging
from types import SimpleNamespace

import pytest
import torch

from support.packed_adapters import taking_adapters
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.manifest import EngineManifest, KvType
from trierarch.python_backend.executors.torch import operators
from trierarch.python_backend.executors.torch.operators import Operators

CUDA = torch.device("cuda")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton's language is not installed"
)


def with_gpu(monkeypatch: pytest.MonkeyPatch, *capability: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))


def fp8_kv(manifest: EngineManifest) -> EngineManifest:
    return manifest.model_copy(update={"kv_cache": manifest.kv_cache.model_copy(update={"dtype": KvType.FP8})})


def test_a_cpu_takes_torchs_operators() -> None:
    manifest = taking_adapters(tiny_manifest(tiny_architecture()))
    chosen = Operators.best(manifest, torch.device("cpu"))
    assert str(chosen) == "attention by torch's operators, adapters by torch's operators, layers by torch's operators"


@needs_triton
def test_a_gpu_takes_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, 8, 9)
    manifest = tiny_manifest(tiny_architecture())
    for one in (manifest, fp8_kv(manifest)):
        chosen = str(Operators.best(one, CUDA))
        assert chosen == "attention by our kernels, adapters by torch's operators, layers by our kernels"


@needs_triton
@pytest.mark.parametrize(
    "capability, manifest, reason",
    [
        ((7, 5), tiny_manifest(tiny_architecture()), "compute capability 8.0 and this GPU has 7.5"),
        ((8, 0), fp8_kv(tiny_manifest(tiny_architecture())), "compute capability 8.9 and this GPU has 8.0"),
        ((9, 0), tiny_manifest(tiny_architecture(head_dim=320)), "heads of 320 elements"),
        ((9, 0), tiny_manifest(tiny_architecture(num_heads=80, num_kv_heads=1)), "more than 64 query heads"),
    ],
)
def test_what_no_kernel_can_do_is_done_by_torch_and_said(
    capability: tuple[int, int],
    manifest: EngineManifest,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_gpu(monkeypatch, *capability)
    with caplog.at_level(logging.WARNING):
        assert Operators.best(manifest, CUDA).attention.label == "torch's operators"
    assert reason in caplog.text


@needs_triton
def test_flashinfer_comes_before_our_kernels_but_in_recorded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, 9, 0)
    manifest = tiny_manifest(tiny_architecture())
    its = SimpleNamespace(label="FlashInfer 0.7.2")
    monkeypatch.setattr(operators, "open_flashinfer", lambda manifest, device, num_processors: its)
    chosen = Operators.best(manifest, CUDA)
    assert chosen.attention is its
    assert str(chosen).startswith("attention by FlashInfer 0.7.2, ")
    assert chosen.static_attention is not None
    assert chosen.static_attention.label == "our kernels"
    assert Operators.ours(manifest, CUDA).attention.label == "our kernels"
