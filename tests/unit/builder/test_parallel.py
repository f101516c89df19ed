"""Whether a torch engine can be split over the GPUs that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import DrafterKind, Layer, Moe, Parallel, WeightType
from trierarch.builder.parallel import plan_parallel
from trierarch.kserve.memory import memory_budget, num_devices
from trierarch.orchestrator.engine_summary import summary_rows

EXPERTS = Moe(num_experts=4, experts_per_token=2, intermediate_size=96, normalize_top_k=True)


def asked(**options: Any) -> BuildConfig:
    return BuildConfig(model="a", output=Path("b"), **options)


def test_one_gpu_is_no_split() -> None:
    assert plan_parallel(asked(), tiny_architecture(), ()) is None


def test_what_is_asked_for_is_recorded_and_deployed() -> None:
    parallel = plan_parallel(asked(tensor_parallel_size=2, pipeline_parallel_size=2), tiny_architecture(), ())
    assert parallel == Parallel(tensor_parallel_size=2, pipeline_parallel_size=2)
    manifest = tiny_manifest(tiny_architecture())
    assert num_devices(manifest) == 1
    manifest = manifest.model_copy(update={"parallel": parallel})
    assert num_devices(manifest) == 4
    parts, whole = memory_budget(manifest), memory_budget(tiny_manifest(tiny_architecture()))
    assert (parts.kv, parts.weights - whole.weights) == (whole.kv, 50 * 32 * 4)  # the table of embeddings once more
    assert dict(summary_rows(manifest))["split over"] == "4 GPUs: each layer over 2, the layers over 2"


@pytest.mark.parametrize(
    "options, architecture, drafters, message",
    [
        (
            {"tensor_parallel_size": 3},
            {},
            (),
            r"tensor_parallel_size is 3: .* has 4 attention heads, .*; take 1, 2 or 4$",
        ),
        (
            {"tensor_parallel_size": 4},
            {"num_heads": 12, "num_kv_heads": 3},
            (),
            r"tensor_parallel_size is 4: .* has 3 key and value heads, .* evenly; take 1, 3, 6 or 12$",
        ),
        (
            {"pipeline_parallel_size": 3},
            {},
            (),
            r"pipeline_parallel_size is 3: 2 layers do not split evenly; take 1 or 2",
        ),
        (
            {"pipeline_parallel_size": 2},
            {},
            (DrafterKind.EAGLE3,),
            r"pipeline_parallel_size is 2, and eagle3 reads hidden states of layers that other GPUs have; split each",
        ),
        (
            {"tensor_parallel_size": 2, "quantization": WeightType.INT4},
            {"intermediate_size": 96, "head_dim": 16},
            (),
            r"quantization is 'int4', in groups of 32 .* is 2: a GPU's share of down would have 48 inputs; take a smaller",
        ),
        (
            {"tensor_parallel_size": 2, "quantization": WeightType.INT8},
            {"intermediate_size": 64, "head_dim": 16, "layers": (Layer(is_moe=True), Layer()), "moe": EXPERTS},
            (),
            r"a GPU's share of experts' down would have 48 inputs",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_numbers(
    options: dict[str, Any], architecture: dict[str, Any], drafters: tuple[DrafterKind, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_parallel(asked(**options), tiny_architecture(**architecture), drafters)


@pytest.mark.parametrize("stored, is_refused", [((), False), ((WeightType.FP8,), False), ((WeightType.INT4,), True)])
def test_what_is_kept_is_split_as_it_is_stored(stored: tuple[WeightType, ...], is_refused: bool) -> None:
    architecture = tiny_architecture(intermediate_size=96, head_dim=16)
    config = asked(tensor_parallel_size=2, quantization=WeightType.SOURCE)
    if is_refused:
        with pytest.raises(
            ConfigError, match=r"quantization is 'source', in groups of 32 .* down would have 48 inputs"
        ):
            plan_parallel(config, architecture, (), stored)
    else:
        assert plan_parallel(config, architecture, (), stored) is not None


@pytest.mark.parametrize("quantization", [None, WeightType.INT8])
def test_matrices_without_groups_are_split_anywhere(quantization: WeightType | None) -> None:
    architecture = tiny_architecture(intermediate_size=48, head_dim=16)
    assert plan_parallel(asked(tensor_parallel_size=2, quantization=quantization), architecture, ()) is not None
