from __future__ import annotations

from typing import Any

import pytest

from support.deployments import small_spec, weighty_engine
from support.random_engine import tiny_architecture
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import (
    WEIGHTS_NAME,
    Architecture,
    FileDigest,
    Flow,
    KvCache,
    KvType,
    Layer,
    Requires,
    Target,
    TensorRTLLM,
)
from trierarch.kserve.memory import (
    RESERVE_BYTES,
    check_fits,
    host_memory,
    memory_budget,
    replica_budget,
    tier_bytes,
)
from trierarch.kserve.quantity import format_bytes, is_quantity, quantity_bytes

GIB = 1 << 30


def one_layer() -> Architecture:
    """H = 32, 4 heads of 8, 2 of keys, I = 48, V = 50."""
    return tiny_architecture(layers=(Layer(),))


def test_the_budget_is_what_the_manifest_says() -> None:
    files = {
        WEIGHTS_NAME: FileDigest(num_bytes=1000, sha256="0" * 64),
        "adapters/french.safetensors": FileDigest(num_bytes=77, sha256="0" * 64),
    }
    budget = memory_budget(weighty_engine(files=files, architecture=one_layer()))

    assert budget.weights == 1000
    assert budget.kv == GIB
    # in + out of q, k, v, o, gate, up, down, lm_head and embed; two slots of rank 8 in bfloat16.
    sides = (32 + 32) + 2 * (16 + 32) + (32 + 32) + 2 * (48 + 32) + (32 + 48) + 2 * (50 + 32)
    assert budget.lora == 2 * 8 * sides * 2
    assert budget.total == 1000 + GIB + budget.lora + RESERVE_BYTES


def test_without_a_stated_cache_one_sequence_must_fit() -> None:
    cache = KvCache(dtype=KvType.BFLOAT16, bytes_per_token=1 << 16)
    assert memory_budget(weighty_engine(kv_cache=cache)).kv == 1024 << 16


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    told = r"1 × L4 holds 22.4 GiB, and the engine takes weights 37.3 \+ KV 1.0 \+ LoRA slots 0.0 \+ reserve 2.0 = 40.3 GiB"
    with pytest.raises(ConfigError, match=told) as refused:
        check_fits(small_spec(), weighty_engine(40_000_000_000))
    assert "take one of A40, A100-80GB, L40S" in str(refused.value)
    assert "--quantization int4" in str(refused.value)


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        ({"product": "H1000"}, "gpu.product is 'H1000', whose memory is not known"),
        ({"product": "L4", "count": 2}, "gpu.count is 2: engine 'tiny' runs on 1; say --gpus 1"),
    ],
)
def test_gpus_that_cannot_be_are_refused(gpu: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_fits(small_spec(gpu=gpu), weighty_engine())


def test_a_gpu_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gpu.product is 'L4', and engine 'tiny' was built for sm_90"):
        check_fits(small_spec(), weighty_engine(requires=Requires(device="sm_90")))
    with pytest.raises(ConfigError, match="was built for the CPU"):
        check_fits(small_spec(), weighty_engine(requires=Requires(device="cpu")))
    with pytest.raises(ConfigError, match="was built for sm_90, and gpu is not said"):
        check_fits(small_spec(gpu=None), weighty_engine(requires=Requires(device="sm_90")))


def test_a_gpu_that_the_table_does_not_know_is_taken_at_its_word() -> None:
    check_fits(small_spec(gpu={"product": "H1000", "memory": 8 * GIB}), weighty_engine())


def test_an_engine_of_several_devices_wants_them_all() -> None:
    record = TensorRTLLM(version="1.2", flow=Flow.PYTORCH, model="model", llm_args={}, tensor_parallel_size=2)
    files = {"model/weights.safetensors": FileDigest(num_bytes=30_000_000_000, sha256="0" * 64)}
    engine = weighty_engine(target=Target.TENSORRT_LLM, tensorrt_llm=record, files=files)

    check_fits(small_spec(gpu={"product": "L4", "count": 2}), engine)
    with pytest.raises(ConfigError, match="runs on 2; say --gpus 2"):
        check_fits(small_spec(), engine)


def test_of_a_compiled_engine_what_is_loaded_counts() -> None:
    sizes = {
        "model/rank0.engine": 7,
        "checkpoint/rank0.safetensors": 1000,
        "draft/rank0.engine": 2,
        "tokenizer.json": 1,
    }
    arguments = {"speculative_config": {"speculative_model_dir": "draft"}}
    record = TensorRTLLM(version="1.2", flow=Flow.ENGINE, model="model", llm_args=arguments)
    files = {name: FileDigest(num_bytes=size, sha256="0" * 64) for name, size in sizes.items()}
    engine = weighty_engine(target=Target.TENSORRT_LLM, tensorrt_llm=record, files=files)
    assert memory_budget(engine).weights == 9


def test_memory_of_a_cpu_holds_everything_and_of_a_gpu_what_passes_through() -> None:
    engine = weighty_engine()
    on_cpu, on_gpu = (host_memory(small_spec(gpu=gpu), engine) for gpu in (None, {"product": "L4"}))
    assert on_cpu >= memory_budget(engine).total
    assert memory_budget(engine).weights < on_gpu < on_cpu
    assert host_memory(small_spec(resources={"memory": "8Gi"}), engine) == 8 * GIB
    with pytest.raises(ConfigError, match=r"resources.memory holds 1.0 GiB"):
        check_fits(small_spec(gpu=None, resources={"memory": "1Gi"}), engine)


def test_a_tier_behind_the_cache_is_memory_of_the_container() -> None:
    tiers = {"host_bytes": 16 * GIB}
    for gpu in (None, {"product": "L4"}):
        without, held = (
            host_memory(small_spec(gpu=gpu, kv_tiers=kv_tiers), weighty_engine()) for kv_tiers in ({}, tiers)
        )
        assert held - without == 16 * GIB
    check_fits(small_spec(kv_tiers=tiers), weighty_engine())
    assert "KV tier 16.0" in str(replica_budget(small_spec(gpu=None, kv_tiers=tiers), weighty_engine()))
    assert "tier" not in str(replica_budget(small_spec(kv_tiers=tiers), weighty_engine())), (
        "a GPU's memory holds none of it"
    )

    record = TensorRTLLM(version="1.2", flow=Flow.PYTORCH, model="model", llm_args={}, tensor_parallel_size=2)
    split = weighty_engine(target=Target.TENSORRT_LLM, tensorrt_llm=record)
    assert tier_bytes(small_spec(kv_tiers=tiers), split) == 32 * GIB, "one a process"


@pytest.mark.parametrize(
    ("spec", "engine", "told"),
    [
        (
            {"kv_tiers": {"disk_bytes": 5}},
            {},
            "disk_bytes is 5, and blocks go to disk by way of host .* --kv-host-bytes",
        ),
        (
            {"kv_tiers": {"host_bytes": 9}},
            {"kv_cache": KvCache(dtype=KvType.BFLOAT16, bytes_per_token=4, enable_prefix_caching=False)},
            "host_bytes is 9, and engine 'tiny' caches no prefixes: leave it out",
        ),
        (
            {"kv_tiers": {"host_bytes": GIB, "disk_bytes": GIB}},
            {
                "target": Target.TENSORRT_LLM,
                "tensorrt_llm": TensorRTLLM(version="1.2", flow=Flow.PYTORCH, model="m", llm_args={}),
            },
            "disk_bytes is 1073741824, and TensorRT-LLM keeps no blocks on disk",
        ),
        (
            {"kv_tiers": {"host_bytes": 9}},
            {},
            "host_bytes is 9, .* one block of engine 'tiny' takes 1048576: give more",
        ),
        ({"kv_tiers": {"host_bytes": GIB, "disk_bytes": 5}}, {}, "disk_bytes 5, and one block of engine 'tiny' takes"),
        (
            {"kv_tiers": {"host_bytes": 8 * GIB}, "resources": {"memory": "8Gi"}},
            {},
            "resources.memory is '8Gi', and kv_tiers.host_bytes is .* beside 1Gi of shared memory: ask for more with --memory",
        ),
        (
            {"kv_tiers": {"host_bytes": 4 * GIB}, "resources": {"memory": "8Gi"}, "gpu": None},
            {},
            r"resources.memory holds 8.0 GiB, and the engine takes .* \+ KV tier 4.0 = .* ask for more with --memory",
        ),
    ],
)
def test_a_tier_that_cannot_be_is_refused(spec: dict[str, Any], engine: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_fits(small_spec(**spec), weighty_engine(**engine))


@pytest.mark.parametrize(("text", "number"), [("2Gi", 2 * GIB), ("1.5k", 1500), ("1e3", 1000), ("500m", 0.5), ("7", 7)])
def test_quantities_are_read_as_kubernetes_reads_them(text: str, number: float) -> None:
    assert is_quantity(text)
    assert float(quantity_bytes(text)) == number


@pytest.mark.parametrize("text", ["", "2 Gi", "Gi", "1kb", "1GB", "--1"])
def test_what_is_no_quantity(text: str) -> None:
    assert not is_quantity(text)


@pytest.mark.parametrize("num_bytes", [1, 1024, 3 << 20, 5 * GIB, 1000])
def test_bytes_are_written_exactly(num_bytes: int) -> None:
    assert quantity_bytes(format_bytes(num_bytes)) == num_bytes
