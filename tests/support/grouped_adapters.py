"""Rows of several adapters in one step: by kernels, and by the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from support.packed_adapters import random_packed, taking_adapters
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.adapter import LAYER_PIECES, STACKED, AdapterTensors, piece_shape
from trierarch.builder.manifest import Architecture, DType, EngineManifest
from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows, AdapterBackend, OwnedRows
from trierarch.python_backend.executors.torch.adapter import TorchAdapter
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES

NUM_ROWS = 24
MAX_RANK = 20


def adapted_manifest(dtype: DType = DType.FLOAT32, **sizes: int) -> EngineManifest:
    """Of sizes that are no multiple of anything, unless said otherwise."""
    fields = {"vocab_size": 83, "hidden_size": 40, "intermediate_size": 72, "head_dim": 12, **sizes}
    return taking_adapters(tiny_manifest(tiny_architecture(**fields), dtype), max_rank=MAX_RANK, max_adapters=4)


def packed_adapters(manifest: EngineManifest) -> list[AdapterTensors]:
    """Of different ranks, pieces and kinds."""
    everything = (*LAYER_PIECES, "lm_head", "embed")
    return [
        random_packed(manifest, rank=1, pieces=("k", "down"), seed=1),
        random_packed(manifest, rank=MAX_RANK, pieces=everything, is_dora=True, seed=2),
        random_packed(manifest, rank=7, pieces=("q", "v", "o", "gate", "up"), whole=("lm_head", "embed"), seed=3),
        random_packed(manifest, rank=16, pieces=everything, seed=4),
    ]


def adapters(manifest: EngineManifest, device: torch.device) -> list[TorchAdapter]:
    """The same on a device."""
    return [TorchAdapter(manifest.architecture, one, device) for one in packed_adapters(manifest)]


def owned_rows(members: list[TorchAdapter], seed: int) -> list[OwnedRows]:
    """Scattered rows for each, in slots 1 and on; a third are the base model's."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(0, len(members) + 2, (NUM_ROWS,), generator=generator)
    rows = [tuple((owner == number).nonzero().flatten().tolist()) for number in range(len(members))]
    return [OwnedRows(mine, slot, one) for slot, (one, mine) in enumerate(zip(members, rows, strict=True), 1) if mine]


def check_linears(
    manifest: EngineManifest,
    backend: AdapterBackend,
    reference: AdapterBackend,
    owned: list[OwnedRows],
    tolerance: float,
    matrices: Iterable[str] = STACKED,
) -> None:
    """Matrices of a layer and lm_head, with bias and without; the base model's rows are poisoned, and stay so."""
    device, dtype = owned[0].owner.device, TORCH_DTYPES[manifest.dtype]
    for number, stacked in enumerate(matrices):
        generator = torch.Generator().manual_seed(number)
        name = stacked if stacked == "lm_head" else f"layers.1.{stacked}"
        shapes = [piece_shape(manifest.architecture, piece) for piece in STACKED[stacked]]
        num_outputs, num_inputs = sum(out for out, _ in shapes), shapes[0][1]
        x, y = (
            torch.randn(NUM_ROWS, size, generator=generator).to(device, dtype) for size in (num_inputs, num_outputs)
        )
        for bias in (None, torch.randn(num_outputs, generator=generator).to(device, dtype)):
            check(
                backend,
                reference,
                owned,
                y,
                lambda adapted, y, base, name=name, x=x, bias=bias: adapted.add(name, _poisoned(x, base), y, bias),
                tolerance,
            )


def check_embeddings(
    manifest: EngineManifest,
    backend: AdapterBackend,
    reference: AdapterBackend,
    owned: list[OwnedRows],
    tolerance: float,
) -> None:
    """Look-ups, scaled."""
    device, dtype = owned[0].owner.device, TORCH_DTYPES[manifest.dtype]
    generator = torch.Generator().manual_seed(0)
    architecture: Architecture = manifest.architecture
    tokens = torch.randint(architecture.vocab_size, (NUM_ROWS,), generator=generator).to(device)
    x = torch.randn(NUM_ROWS, architecture.hidden_size, generator=generator).to(device, dtype)
    check(backend, reference, owned, x, lambda adapted, x, _: adapted.embed(tokens, x, 1.5), tolerance)


def check(
    backend: AdapterBackend,
    reference: AdapterBackend,
    owned: list[OwnedRows],
    y: torch.Tensor,
    compute: Callable[[AdaptedRows, torch.Tensor, torch.Tensor], torch.Tensor],
    tolerance: float,
) -> None:
    """`compute` is given who adapts, a y to change, and which rows are the base model's."""
    base = torch.ones(len(y), dtype=torch.bool, device=y.device)
    base[[number for one in owned for number in one.numbers]] = False
    results = []
    for one in (reference, backend):
        adapted = one.adapt(owned)
        assert adapted is not None
        results.append(compute(adapted, _poisoned(y, base), base))
    expected, found = results
    assert found[base].isnan().all()
    assert found.dtype is y.dtype
    torch.testing.assert_close(found[~base].float(), expected[~base].float(), rtol=tolerance, atol=tolerance)


def _poisoned(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A copy."""
    return tensor.masked_fill(rows[:, None], torch.nan)
