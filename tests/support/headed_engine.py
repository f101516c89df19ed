"""A tiny engine of few ids whose random head, guessing at random, is right now and then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.packed_adapters import taking_adapters
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, with_kernels, write_engine
from trierarch.builder.manifest import (
    MANIFEST_NAME,
    WEIGHTS_NAME,
    DrafterKind,
    EngineManifest,
    Head,
    Layer,
    Rope,
    Speculation,
)
from trierarch.builder.verify import digest_file

VOCABULARY = 6


def write_headed_engine(
    folder: Path, kind: DrafterKind, is_compiled: bool, max_draft_tokens: int, max_adapters: int = 0
) -> EngineManifest:
    """Write it into `folder`; it takes no adapters unless it is said how many at once.

    Raises:
        CompilerError: it is to be compiled, and there is no compiler.
    """
    block_size = 16 if is_compiled else 4
    shape: dict[str, Any] = {"head_dim": 16, "ropes": (Rope(rotary_dim=16),), "vocab_size": VOCABULARY}
    architecture = tiny_architecture(**shape)
    taps = (1, 2) if kind is DrafterKind.EAGLE3 else (2,)
    head = Head(kind=kind, taps=taps, target_hidden_size=32, target_vocab_size=VOCABULARY)
    own = tiny_architecture(**shape | {"layers": (Layer(),), "tie_embeddings": False})
    speculation = Speculation(drafters=(kind,), draft_engine="draft", max_draft_tokens=max_draft_tokens)
    manifest = tiny_manifest(architecture, num_blocks=128, block_size=block_size)
    write_engine(folder, manifest, random_weights(architecture))
    (folder / "draft").mkdir()
    draft = tiny_manifest(own, block_size=block_size).model_copy(update={"head": head})
    write_engine(folder / "draft", draft, random_weights(own, seed=1, head=head))
    if max_adapters:
        manifest = taking_adapters(manifest, folder, max_adapters=max_adapters)
    if is_compiled:
        manifest = with_kernels(folder, manifest)
    files = {name: digest_file(folder / name) for name in (WEIGHTS_NAME, f"draft/{MANIFEST_NAME}")}
    manifest = manifest.model_copy(update={"speculation": speculation, "files": files})
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return manifest


def take_head_away(folder: Path) -> None:
    """Let the engine guess nothing from the next time on that it is opened."""
    manifest = EngineManifest.load(folder).model_copy(update={"speculation": None})
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
