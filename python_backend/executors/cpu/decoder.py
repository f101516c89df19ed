"""CompiledDecoder: the eager `Decoder`'s interface over a compiled library, a whole step in one call."""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import Activation, Architecture, DType, KvType, Layer
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.cpu.abi import (
    Format,
    LayerStruct,
    ModelStruct,
    RopeStruct,
    StepStruct,
)
from trierarch.python_backend.executors.cpu.adapter import CpuAdapter, CpuAdapters
from trierarch.python_backend.executors.cpu.kv_arrays import KvArrays
from trierarch.python_backend.executors.cpu.packer import Packer, Release
from trierarch.python_backend.executors.cpu.paged_batch import PagedBatch
from trierarch.python_backend.executors.cpu.weights import Weights, to_bfloat16
from trierarch.python_backend.executors.sampling.token_history import Floats

_ELEMENTS: Final = {DType.FLOAT32: Format.FLOAT32, DType.BFLOAT16: Format.BFLOAT16}
_KV_ELEMENTS: Final = {
    KvType.FLOAT32: Format.FLOAT32,
    KvType.BFLOAT16: Format.BFLOAT16,
    KvType.INT8: Format.INT8,
}
_ACTIVATIONS: Final = {Activation.SILU: 0, Activation.GELU_TANH: 1}
_LINEARS: Final = ("qkv", "o", "gate_up", "down")


class CompiledDecoder:
    """Token ids → hidden states → logits. A row's result depends on no other row: not on the batch, not on chunks."""

    def __init__(
        self,
        library: ctypes.CDLL,
        architecture: Architecture,
        dtype: DType,
        kv_dtype: KvType,
        weights: Weights,
        num_threads: int,
        release: Release = lambda weight: None,
        taps: tuple[int, ...] = (),
    ) -> None:
        """Pack the weights (as `load_weights` returns them) for the kernels; `release` gets each matrix once packed.

        taps: counts of layers, ascending, after each of which `hidden` can give the hidden states too.

        Raises:
            ResourceError: there is no room for the packed weights.
        """
        self._library = library
        self._architecture = architecture
        self._adapters = CpuAdapters(library, architecture.num_layers)
        packer = Packer(library, weights, num_threads, release)
        model = _model_struct(architecture, dtype, kv_dtype, packer, taps)
        self._kept = packer.kept
        handle = library.trierarch_decoder_new(ctypes.byref(model), num_threads)
        if not handle:
            raise ResourceError("no room for the decoder's working memory: free some memory")
        self._handle = handle
        self._free = weakref.finalize(self, library.trierarch_decoder_free, handle)

    def arrange(self, tensors: AdapterTensors) -> CpuAdapter:
        """Lay an adapter out for the steps of sequences that have it; see Runner.arrange.

        Raises:
            ResourceError: there is no room.
        """
        return self._adapters.arrange(tensors)

    def hidden(self, batch: PagedBatch, kv: KvArrays, tapped: Floats | None = None) -> Floats:
        """Run the layers, storing keys and values. Returns (num_tokens, hidden) float32, before the last norm.

        tapped: (num_tokens, taps * hidden) float32, which is filled with what the taps give.
        """
        result = np.empty((batch.num_tokens, self._architecture.hidden_size), dtype=np.float32)
        assert kv.block_size % 16 == 0, "the builder compiles for no other block size"
        adapters = _addresses([item.sequence.adapter for item in batch.items])
        step = StepStruct(
            kv=kv.array.ctypes.data,
            kv_scales=None if kv.scales is None else kv.scales.ctypes.data,
            num_blocks=kv.num_blocks,
            block_size=kv.block_size,
            num_tokens=batch.num_tokens,
            token_ids=batch.token_ids.buffer_info()[0],
            num_sequences=len(batch.items),
            starts=batch.starts.buffer_info()[0],
            num_queries=batch.num_queries.buffer_info()[0],
            table_offsets=batch.table_offsets.buffer_info()[0],
            block_ids=batch.block_ids.buffer_info()[0],
            adapters=_address(adapters),
        )
        taps = None if tapped is None else tapped.ctypes.data
        self._check(self._library.trierarch_decoder_hidden(self._handle, ctypes.byref(step), result.ctypes.data, taps))
        return result

    def logits(self, hidden: Floats, adapters: Sequence[ActiveAdapter | None] = ()) -> Floats:
        """hidden: (n, hidden) float32, rows of what `hidden` returned → (n, vocab) float32.

        adapters: of each row; none at all is the base model.
        """
        row_adapters = _addresses(adapters)
        rows = np.ascontiguousarray(hidden)
        result = np.empty((len(rows), self._architecture.vocab_size), dtype=np.float32)
        self._check(
            self._library.trierarch_decoder_logits(
                self._handle, rows.ctypes.data, len(rows), _address(row_adapters), result.ctypes.data
            )
        )
        return result

    def _check(self, status: int) -> None:
        if status:
            raise MemoryError("no room for the step's working memory")


def _addresses(adapters: Sequence[ActiveAdapter | None]) -> array[int] | None:
    """Addresses of their structs, 0 for the base model; None where all are."""
    if not any(adapters):
        return None
    return array("q", [0 if adapter is None else _cpu_adapter(adapter).address for adapter in adapters])


def _cpu_adapter(adapter: ActiveAdapter) -> CpuAdapter:
    assert isinstance(adapter.weights, CpuAdapter), "it was arranged by another runner"
    return adapter.weights


def _address(addresses: array[int] | None) -> int | None:
    return None if addresses is None else addresses.buffer_info()[0]


def _model_struct(
    architecture: Architecture, dtype: DType, kv_dtype: KvType, packer: Packer, taps: tuple[int, ...]
) -> ModelStruct:
    is_tied, scale = architecture.tie_embeddings, architecture.embedding_scale
    # The largest matrix first: while it is packed it is in memory twice, and nothing else is yet.
    lm_head = packer.linear("embed" if is_tied else "lm_head")
    layers = [_layer_struct(layer, f"layers.{index}.", packer) for index, layer in enumerate(architecture.layers)]
    ropes = [
        RopeStruct(packer.floats(f"rope.{index}.inv_freq"), rope.rotary_dim, rope.attention_factor)
        for index, rope in enumerate(architecture.ropes)
    ]
    return ModelStruct(
        element=_ELEMENTS[dtype],
        kv_element=_KV_ELEMENTS[kv_dtype],
        hidden=architecture.hidden_size,
        intermediate=architecture.intermediate_size,
        vocab=architecture.vocab_size,
        num_heads=architecture.num_heads,
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        num_layers=architecture.num_layers,
        num_ropes=len(ropes),
        activation=_ACTIVATIONS[architecture.activation],
        norm_eps=architecture.norm_eps,
        attention_scale=architecture.attention_scale,
        attention_softcap=architecture.attention_softcap or 0.0,
        logit_softcap=architecture.logit_softcap or 0.0,
        # Rounded as the reference rounds it: in bfloat16, 576 ** 0.5 is 24.
        embedding_scale=to_bfloat16(scale) if dtype is DType.BFLOAT16 else float(np.float32(scale)),
        layers=(LayerStruct * len(layers))(*layers),
        ropes=(RopeStruct * len(ropes))(*ropes),
        norm=packer.floats("norm.weight"),
        embedding=None if is_tied else packer.address("embed.weight"),
        lm_head=lm_head,
        num_taps=len(taps),
        taps=(ctypes.c_int64 * len(taps))(*taps),
    )


def _layer_struct(layer: Layer, prefix: str, packer: Packer) -> LayerStruct:
    norms = {
        name: packer.floats(f"{prefix}{name}.weight")
        for name in ("attn_norm", "q_norm", "k_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm")
    }
    linears = {name: packer.linear(prefix + name) for name in _LINEARS}
    return LayerStruct(**norms, **linears, window=layer.window or 0, rope=-1 if layer.rope is None else layer.rope)
