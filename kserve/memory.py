"""MemoryBudget: what an engine takes on a device, from its manifest alone, and whether that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from trierarch.builder.adapter import piece_names, piece_shape
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import ADAPTERS_NAME, EngineManifest, Target
from trierarch.kserve.gpu import PRODUCTS, memory_of
from trierarch.kserve.quantity import quantity_bytes
from trierarch.kserve.spec import DeploySpec

RESERVE_BYTES: Final = 2 << 30
"""Left for the device's context, activations and the allocator: an allowance, not a measured figure."""
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes over all devices of one replica."""

    weights: int
    """Of the files that are loaded: the engine's own and its draft's, to a few megabytes."""
    kv: int
    """What the engine was built to reserve; without that, one sequence of `max_seq_len`, the least it can serve."""
    lora: int
    """Slots times an adapter of the largest rank on everything that may be adapted."""
    reserve: int = RESERVE_BYTES
    tier: int = 0
    """Of host memory behind the KV cache, where a CPU's memory holds both."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.lora + self.reserve + self.tier

    def __str__(self) -> str:
        parts = {"weights": self.weights, "KV": self.kv, "LoRA slots": self.lora, "reserve": self.reserve}
        if self.tier:
            parts["KV tier"] = self.tier
        return " + ".join(f"{name} {num_bytes / GIB:.1f}" for name, num_bytes in parts.items()) + (
            f" = {self.total / GIB:.1f} GiB"
        )


def engine_bytes(engine: EngineManifest) -> int:
    """Bytes of the engine's files, adapters that it brings along included."""
    return sum(file.num_bytes for file in engine.files.values())


def memory_budget(engine: EngineManifest) -> MemoryBudget:
    """What `engine` takes."""
    cache = engine.kv_cache
    one_sequence = engine.limits.max_seq_len * cache.bytes_per_token * _kv_copies(engine)
    return MemoryBudget(
        weights=_loaded_bytes(engine) + _repeated_bytes(engine),
        kv=one_sequence if cache.num_bytes is None else cache.num_bytes,
        lora=_lora_bytes(engine),
    )


def replica_budget(spec: DeploySpec, engine: EngineManifest) -> MemoryBudget:
    """The same of one replica of `spec`: a reserve on each of its GPUs, or on a CPU the KV cache's tier beside the rest."""
    budget = memory_budget(engine)
    if spec.gpu is None:
        return replace(budget, tier=tier_bytes(spec, engine))
    return replace(budget, reserve=budget.reserve * num_devices(engine))


def tier_bytes(spec: DeploySpec, engine: EngineManifest) -> int:
    """Host memory of one replica behind its KV cache: TensorRT-LLM takes as much for each of its processes, one a GPU."""
    num_tiers = num_devices(engine) if engine.target is Target.TENSORRT_LLM else 1
    return (spec.kv_tiers.host_bytes or 0) * num_tiers


def host_memory(spec: DeploySpec, engine: EngineManifest) -> int:
    """Bytes that Triton's container asks for: what was said, or else enough for the engine, its processes and its tier.

    On a CPU everything lies there; on a GPU the weights pass through it.
    """
    if spec.resources.memory is not None:
        return int(quantity_bytes(spec.resources.memory))
    budget = memory_budget(engine)
    tier = tier_bytes(spec, engine)
    host_adapters = 0 if engine.lora is None else engine.lora.host_bytes
    inside = budget.total if spec.gpu is None else budget.weights + budget.reserve
    shared = int(quantity_bytes(spec.resources.shared_memory))
    return -(-(inside + tier + host_adapters + shared) // GIB) * GIB


def check_fits(spec: DeploySpec, engine: EngineManifest) -> None:
    """Refuse what cannot run on the devices that are asked for.

    Raises:
        ConfigError: too little memory, with the numbers; too few or too many devices; a device of another kind.
    """
    _check_tiers(spec, engine)
    budget = replica_budget(spec, engine)
    if spec.gpu is None:
        if engine.requires.device not in ("any", "cpu"):
            raise ConfigError(
                f"engine {engine.name!r} was built for {engine.requires.device}, and gpu is not said; name one with --gpu"
            )
        _check_total(budget, host_memory(spec, engine), "resources.memory", "ask for more with --memory")
        return
    _check_kind(spec, engine)
    needed = num_devices(engine)
    if spec.gpu.count != needed:
        raise ConfigError(
            f"gpu.count is {spec.gpu.count}: engine {engine.name!r} runs on {needed}; say --gpus {needed}"
        )
    name = f"{spec.gpu.count} × {spec.gpu.product}"
    larger = [other for other, product in PRODUCTS.items() if product.memory * needed >= budget.total]
    remedy = f"take one of {', '.join(larger)}, " if larger and spec.gpu.memory is None else ""
    _check_total(
        budget,
        memory_of(spec.gpu) * spec.gpu.count,
        name,
        f"{remedy}quantise the weights (--quantization int4), the cache (--kv-cache-dtype int8), or build with a smaller "
        "--kv-cache-bytes, --max-seq-len or --max-adapters",
    )


def num_devices(engine: EngineManifest) -> int:
    """Devices that one replica of `engine` runs on."""
    split = engine.parallel if engine.target is Target.TORCH else engine.tensorrt_llm
    return 1 if split is None else split.tensor_parallel_size * split.pipeline_parallel_size


def _check_tiers(spec: DeploySpec, engine: EngineManifest) -> None:
    """Refuse what an engine would refuse when it starts, and what its container would be killed for."""
    host_bytes, disk_bytes = spec.kv_tiers.host_bytes, spec.kv_tiers.disk_bytes
    if host_bytes is None:
        if disk_bytes is not None:
            raise ConfigError(
                f"kv_tiers.disk_bytes is {disk_bytes}, and blocks go to disk by way of host memory: give it some with "
                "--kv-host-bytes, such as 256MiB"
            )
        return
    what, remedy = f"kv_tiers.host_bytes is {host_bytes}", "leave it out"
    if not engine.kv_cache.enable_prefix_caching:
        raise ConfigError(f"{what}, and engine {engine.name!r} caches no prefixes: {remedy}, or rebuild it with them")
    block = engine.kv_cache.block_size * engine.kv_cache.bytes_per_token
    if min(host_bytes, disk_bytes or host_bytes) < block:
        raise ConfigError(
            f"{what}, disk_bytes {disk_bytes}, and one block of engine {engine.name!r} takes {block}: give more"
        )
    if engine.target is Target.TENSORRT_LLM and disk_bytes is not None:
        raise ConfigError(f"kv_tiers.disk_bytes is {disk_bytes}, and TensorRT-LLM keeps no blocks on disk: {remedy}")
    shared = int(quantity_bytes(spec.resources.shared_memory))
    if tier_bytes(spec, engine) + shared > host_memory(spec, engine):
        raise ConfigError(
            f"resources.memory is {spec.resources.memory!r}, and {what}, beside {spec.resources.shared_memory} of shared "
            "memory: ask for more with --memory, or for a smaller tier"
        )


def _check_kind(spec: DeploySpec, engine: EngineManifest) -> None:
    assert spec.gpu is not None
    product = PRODUCTS.get(spec.gpu.product)
    device = engine.requires.device
    if device == "cpu" or (product is not None and device not in ("any", product.architecture)):
        what = "the CPU" if device == "cpu" else device
        raise ConfigError(
            f"gpu.product is {spec.gpu.product!r}, and engine {engine.name!r} was built for {what}: build one on such a "
            "machine, or deploy this where it was built for"
        )


def _check_total(budget: MemoryBudget, available: int, what: str, remedy: str) -> None:
    if budget.total > available:
        raise ConfigError(f"{what} holds {available / GIB:.1f} GiB, and the engine takes {budget}; {remedy}")


def _kv_copies(engine: EngineManifest) -> int:
    """How often each key is held, where torch has more GPUs than heads of keys; TensorRT-LLM's records count that in."""
    if engine.parallel is None:
        return 1
    return max(1, engine.parallel.tensor_parallel_size // engine.architecture.num_kv_heads)


def _repeated_bytes(engine: EngineManifest) -> int:
    """Of the table of embeddings, which torch holds whole on every GPU that embeds."""
    if engine.parallel is None:
        return 0
    table = engine.architecture.vocab_size * engine.architecture.hidden_size * engine.dtype.num_bytes
    return (engine.parallel.tensor_parallel_size - 1) * table


def _loaded_bytes(engine: EngineManifest) -> int:
    """Of a TensorRT-LLM engine, its folder and its draft's: a checkpoint may lie beside what was compiled from it."""
    if engine.tensorrt_llm is None:
        return sum(file.num_bytes for name, file in engine.files.items() if not name.startswith(f"{ADAPTERS_NAME}/"))
    speculation = engine.tensorrt_llm.llm_args.get("speculative_config")
    draft = speculation.get("speculative_model_dir") if isinstance(speculation, dict) else None
    folders = tuple(f"{folder}/" for folder in (engine.tensorrt_llm.model, draft) if isinstance(folder, str))
    return sum(file.num_bytes for name, file in engine.files.items() if name.startswith(folders))


def _lora_bytes(engine: EngineManifest) -> int:
    if engine.lora is None:
        return 0
    sides = (sum(piece_shape(engine.architecture, piece)) for _, piece in piece_names(engine.architecture))
    return engine.lora.max_adapters * engine.lora.max_rank * sum(sides) * engine.dtype.num_bytes
