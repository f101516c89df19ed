"""Whether FlashInfer serves a model: by what is known of it, and by a trial. Here a stand-in is all there is of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch

from support.flashinfer_stand_in import NUM_PROCESSORS, VERSIONS, broken, install
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.manifest import DType, EngineManifest, KvType, Layer
from trierarch.python_backend.executors.torch import flashinfer_library
from trierarch.python_backend.executors.torch.flashinfer_library import open_flashinfer

CPU = torch.device("cpu")


def manifest_of(dtype: DType = DType.BFLOAT16, kv_dtype: KvType | None = None, **changes: Any) -> EngineManifest:
    return tiny_manifest(tiny_architecture(**{"head_dim": 64} | changes), dtype, kv_dtype=kv_dtype)


def why_not(manifest: EngineManifest, caplog: pytest.LogCaptureFixture) -> str:
    caplog.set_level(logging.INFO)
    assert open_flashinfer(manifest, CPU, NUM_PROCESSORS) is None
    return caplog.messages[-1]


@pytest.mark.parametrize("version, dtype", [(VERSIONS[0], DType.BFLOAT16), (VERSIONS[-1], DType.FLOAT16)])
def test_what_holds_its_trial_serves(version: str, dtype: DType, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version)
    attention = open_flashinfer(manifest_of(dtype, attention_softcap=20.0), CPU, NUM_PROCESSORS)
    assert attention is not None
    assert attention.label == f"FlashInfer {version}"


@pytest.mark.parametrize(
    "manifest, reason",
    [
        (manifest_of(DType.FLOAT32), "activations are float32; it takes bfloat16 and float16"),
        (manifest_of(kv_dtype=KvType.FP8), "fp8 with a scale for each token and head, which only our kernels know"),
        (manifest_of(kv_dtype=KvType.FLOAT16), "keys and values are float16 beside activations in bfloat16"),
        (manifest_of(head_dim=80), "heads of 80 elements; it takes 64, 128, 256"),
    ],
)
def test_what_it_does_not_take_is_said(
    manifest: EngineManifest, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch)
    assert reason in why_not(manifest, caplog)


def test_an_unknown_release_is_left_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    install(monkeypatch)
    monkeypatch.setattr(flashinfer_library, "version", lambda name: "0.8.0rc1")
    assert "flashinfer-python is 0.8.0rc1, and 0.5, 0.6, 0.7 are known here" in why_not(manifest_of(), caplog)


def test_without_it_nothing_is_imported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(flashinfer_library, "version", version)
    assert why_not(manifest_of(), caplog) == "tiny: without FlashInfer: flashinfer-python is not installed"


def wider(plan: dict[str, Any]) -> None:
    plan["window_left"] += plan["window_left"] >= 0


def uncapped(plan: dict[str, Any]) -> None:
    plan["logits_soft_cap"] = None


def shifted(plan: dict[str, Any]) -> None:
    plan["paged_kv_indices"] = plan["paged_kv_indices"].roll(1)


def unscaled(plan: dict[str, Any]) -> None:
    plan["sm_scale"] = plan["head_dim_qk"] ** -0.5


@pytest.mark.parametrize("change", [wider, uncapped, shifted, unscaled])
def test_what_differs_from_torchs_operators_does_not_serve(
    change: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, wrapper=broken(change))
    manifest = manifest_of(attention_softcap=30.0, attention_scale=0.15, layers=(Layer(), Layer(window=4096)))
    reason = why_not(manifest, caplog)
    assert "FlashInfer is installed, and not used: its attention differs from torch's by" in reason


def test_what_cannot_be_compiled_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def uncompiled(plan: dict[str, Any]) -> None:
        raise RuntimeError("Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist\nand more")

    install(monkeypatch, wrapper=broken(uncompiled))
    assert why_not(manifest_of(), caplog) == (
        "tiny: FlashInfer is installed, and not used: RuntimeError: "
        "Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"
    )
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_library_that_cannot_be_imported_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch)
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    assert "not used: ModuleNotFoundError: import of flashinfer halted" in why_not(manifest_of(), caplog)
