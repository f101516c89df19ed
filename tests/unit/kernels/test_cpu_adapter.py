"""Adapters laid out by one call are those laid out tensor by tensor, bit for bit; arenas go from one to the next."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.eventually import eventually
from support.packed_adapters import load_packed, random_packed, taking_adapters
from support.plain_cpu_adapter import PlainCpuAdapter
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.adapter import LAYER_PIECES, PIECES, AdapterTensors, piece_shape
from trierarch.builder.adapter_check import manifest_of
from trierarch.builder.manifest import Architecture, DType
from trierarch.builder.packed_adapter import write_packed
from trierarch.builder.tensors import Tensors, headers_of
from trierarch.python_backend.executors.cpu.abi import (
    AdaptedLayerStruct,
    AdapterStruct,
    Format,
    MatrixStruct,
    PieceStruct,
)
from trierarch.python_backend.executors.cpu.adapter import CpuAdapter, CpuAdapters
from trierarch.python_backend.executors.cpu.adapter_layout import AdapterLayout
from trierarch.python_backend.executors.cpu.arena import Arena
from trierarch.python_backend.executors.cpu.arena_pool import ArenaPool

ARCHITECTURE = tiny_architecture(tie_embeddings=False, vocab_size=51)
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"rank": 8},
    "odd": {"rank": 3},
    "one": {"rank": 1, "pieces": ("q", "v", "down")},
    "dora": {"rank": 5, "pieces": ("k", "o", "up", "lm_head"), "is_dora": True},
    "all": {"rank": 6, "pieces": PIECES},
    "whole": {"rank": 2, "pieces": ("gate",), "whole": ("lm_head", "embed")},
    "outer": {"rank": 7, "pieces": ("lm_head", "embed")},
}
T = TypeVar("T")
ADAPTERS = st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 3))


def packed(kind: str, dtype: DType, seed: int = 0) -> AdapterTensors:
    return random_packed(taking_adapters(tiny_manifest(ARCHITECTURE, dtype)), seed=seed, **KINDS[kind])


class Content:
    """What an adapter's structs say and point to."""

    def __init__(self, library: ctypes.CDLL, dtype: DType, address: int) -> None:
        self._library, self._dtype = library, dtype
        self._item = dtype.num_bytes
        self._adapter = AdapterStruct.from_address(address)

    def read(self) -> dict[str, Any]:
        adapter, vocab, hidden = self._adapter, ARCHITECTURE.vocab_size, ARCHITECTURE.hidden_size
        layers = (AdaptedLayerStruct * ARCHITECTURE.num_layers).from_address(adapter.layers)
        found: dict[str, Any] = {"z_width": adapter.z_width, "rank": adapter.embedding_rank}
        for index, layer in enumerate(layers):
            found[f"{index} bytes"] = layer.num_bytes
            for piece in LAYER_PIECES:
                found[f"{index} {piece}"] = self._piece(piece, getattr(layer, piece))
                assert getattr(layer, piece).rank == 0 or layer.data <= getattr(layer, piece).a
        found["lm_head"] = self._piece("lm_head", adapter.lm_head)
        own = adapter.own_lm_head
        found["own"] = own.weight and (own.format, self._packed(own.weight, vocab, hidden))
        found["embed"] = self._bytes(adapter.embedding, vocab * hidden)
        found["embed.a"] = self._bytes(adapter.embedding_a, vocab * adapter.embedding_rank)
        found["embed.b"] = self._bytes(adapter.embedding_b, hidden * adapter.embedding_rank)
        return found

    def _piece(self, name: str, piece: PieceStruct) -> tuple[Any, ...] | None:
        out_features, in_features = piece_shape(ARCHITECTURE, name)
        if piece.rank == 0:
            assert (piece.a, piece.b, piece.gain) == (None, None, None)
            return None
        gain = piece.gain and ctypes.string_at(piece.gain, 4 * out_features)
        b = self._packed(piece.b, out_features, piece.rank)
        return piece.rank, self._bytes(piece.a, piece.rank * in_features), b, gain

    def _packed(self, address: int, out_features: int, in_features: int) -> bytes:
        element = Format.FLOAT32 if self._dtype is DType.FLOAT32 else Format.BFLOAT16
        matrix = MatrixStruct(format=element, out_features=out_features, in_features=in_features)
        assert address % 64 == 0
        return ctypes.string_at(address, self._library.trierarch_packed_bytes(ctypes.byref(matrix)))

    def _bytes(self, address: int | None, count: int) -> bytes | None:
        return None if address is None else ctypes.string_at(address, count * self._item)


def content(library: ctypes.CDLL, dtype: DType, adapter: CpuAdapter | PlainCpuAdapter) -> dict[str, Any]:
    return Content(library, dtype, adapter.address).read()


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("kind", KINDS)
def test_one_call_lays_out_what_many_do(library: ctypes.CDLL, tmp_path: Path, kind: str, dtype: DType) -> None:
    tensors = packed(kind, dtype)
    write_packed(tensors, tmp_path / "x.safetensors")
    from_file = load_packed(tmp_path / "x.safetensors")
    assert isinstance(from_file.arrays, Tensors)
    expected = content(library, dtype, PlainCpuAdapter(library, ARCHITECTURE.num_layers, tensors))
    adapters = CpuAdapters(library, ARCHITECTURE.num_layers)
    assert expected["z_width"] >= KINDS[kind]["rank"] or kind == "whole"
    assert content(library, dtype, adapters.arrange(from_file)) == expected
    assert content(library, dtype, adapters.arrange(tensors)) == expected
    read_only = {name: np.asfortranarray(array) for name, array in tensors.arrays.items()}
    assert content(library, dtype, adapters.arrange(AdapterTensors(tensors.manifest, read_only))) == expected


def test_what_lies_askew_in_its_file_is_laid_out_too(library: ctypes.CDLL, tmp_path: Path) -> None:
    """Behind an odd number of bfloat16, tensors begin between two words."""
    dtype = DType.BFLOAT16
    manifest = taking_adapters(tiny_manifest(ARCHITECTURE, dtype))
    odd, even = (
        random_packed(manifest, rank=rank, pieces=pieces) for rank, pieces in ((3, ("embed",)), (4, ("q", "up")))
    )
    arrays = {**odd.arrays, **even.arrays}
    assert odd.arrays["embed.a"].size % 2 == 1
    tensors = AdapterTensors(manifest_of(arrays, manifest, "askew"), arrays)
    write_packed(tensors, tmp_path / "x.safetensors")
    loaded = load_packed(tmp_path / "x.safetensors")
    assert loaded.arrays["layers.0.q.b"].ctypes.data % 4 == 2
    expected = content(library, dtype, PlainCpuAdapter(library, ARCHITECTURE.num_layers, tensors))
    assert content(library, dtype, CpuAdapters(library, ARCHITECTURE.num_layers).arrange(loaded)) == expected


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(order=st.lists(ADAPTERS, min_size=2, max_size=12))
def test_nothing_of_an_adapter_is_left_in_the_next(library: ctypes.CDLL, order: list[tuple[str, int]]) -> None:
    dtype = DType.BFLOAT16
    adapters = CpuAdapters(library, ARCHITECTURE.num_layers)
    held = None
    for index, (kind, seed) in enumerate(order):
        tensors = packed(kind, dtype, seed)
        laid_out = adapters.arrange(tensors)
        expected = content(library, dtype, PlainCpuAdapter(library, ARCHITECTURE.num_layers, tensors))
        assert content(library, dtype, laid_out) == expected
        if held is not None:
            assert content(library, dtype, held[0]) == held[1], "one that is held was written to"
        held = (laid_out, expected) if index % 2 else held


@pytest.mark.parametrize("kind", KINDS)
def test_structs_move_with_their_base(library: ctypes.CDLL, kind: str) -> None:
    layout = AdapterLayout(library, ARCHITECTURE.num_layers, headers_of(packed(kind, DType.FLOAT32).arrays))
    for base in (0, 64, 0x7F12_3456_7000):
        assert np.array_equal(layout.structs_at(base), layout.structs(base))


@pytest.fixture
def pool() -> ArenaPool:
    return ArenaPool()


def test_the_next_of_a_size_gets_what_another_left(pool: ArenaPool) -> None:
    arena = pool.take(1000)
    assert pool.take(1000) is not arena
    pool.give_back(arena)
    assert pool.take(1001) is not arena
    assert pool.take(1000) is arena
    assert pool.take(1000) is not arena


def test_few_are_kept(pool: ArenaPool) -> None:
    arenas = [Arena(100) for _ in range(5)]
    for arena in arenas:
        pool.give_back(arena)
    taken = [pool.take(100) for _ in range(5)]
    assert sum(arena in arenas for arena in taken) == 2


def test_the_next_finds_an_arena_whose_pages_are_there() -> None:
    pool, num_bytes = ArenaPool(AtOnce()), 1 << 20
    assert resident_pages(pool.take(num_bytes)) == 0
    assert resident_pages(pool.take(num_bytes)) == num_bytes // mmap.PAGESIZE


def test_a_thread_of_the_pools_own_makes_the_next_ready(pool: ArenaPool) -> None:
    pool.take(1 << 20)
    eventually(lambda: resident_pages(pool.take(1 << 20)) > 0, "an arena with pages")


class AtOnce(Executor):
    """Runs what it is given within the call."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def resident_pages(arena: Arena) -> int:
    """How many of its pages the kernel has given it."""
    states = (ctypes.c_ubyte * -(-arena.num_bytes // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(arena.begin), ctypes.c_size_t(arena.num_bytes), states) == 0
    return sum(state & 1 for state in states)


def test_an_adapter_gives_its_arena_back_when_nobody_has_it(library: ctypes.CDLL) -> None:
    adapters = CpuAdapters(library, ARCHITECTURE.num_layers)
    first = adapters.arrange(packed("linear", DType.FLOAT32))
    address = first.address
    assert adapters.arrange(packed("linear", DType.FLOAT32, 1)).address != address
    del first
    gc.collect()
    assert address in {adapters.arrange(packed("linear", DType.FLOAT32, 2)).address for _ in range(2)}


def test_an_architecture_of_no_layers_in_the_adapter_is_laid_out(library: ctypes.CDLL) -> None:
    architecture: Architecture = ARCHITECTURE
    layout = AdapterLayout(library, architecture.num_layers, headers_of(packed("outer", DType.FLOAT32).arrays))
    layers = (AdaptedLayerStruct * architecture.num_layers).from_buffer_copy(
        layout.structs(64).tobytes()[ctypes.sizeof(AdapterStruct) :]
    )
    assert [layer.num_bytes for layer in layers] == [0] * architecture.num_layers
