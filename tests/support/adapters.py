"""PEFT adapters, made by peft itself, so that its word is the reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
"""Of every family but phi3, whose modules are PHI3's."""
PHI3 = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def linear_modules(checkpoint: Path) -> tuple[str, ...]:
    """Those of a checkpoint that LoRA may adapt; of one with experts, attention's alone."""
    import json

    kind = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    if kind.startswith("Phi3"):
        return PHI3
    return ATTENTION if "Mixtral" in kind or "Moe" in kind else LINEAR


def random_adapter(
    checkpoint: Path,
    directory: Path,
    *,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] | str | None = None,
    seed: int = 0,
    use_dora: bool = False,
    use_rslora: bool = False,
    modules_to_save: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    strength: float = 1.0,
    **options: Any,
) -> Path:
    """Save a random LoRA for the checkpoint at `checkpoint` into `directory`, as PEFT saves one.

    `targets` are PEFT's target_modules; None takes `linear_modules`. Each adapted matrix changes by about `strength`
    times its own size, DoRA's magnitudes by a fifth, modules_to_save by as much as `strength`. `options` go into the
    LoraConfig.
    """
    model = adapted_model(
        checkpoint,
        rank=rank,
        alpha=alpha,
        targets=targets,
        use_dora=use_dora,
        use_rslora=use_rslora,
        modules_to_save=modules_to_save,
        **options,
    )
    randomize_adapter(model, seed, strength)
    save_adapter(model, directory, dtype)
    return directory


def adapted_model(
    checkpoint: Path,
    *,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] | str | None = None,
    modules_to_save: Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """The checkpoint in float32 with a fresh LoRA on it: a PeftModel, which computes as the checkpoint does."""
    import peft

    chosen = linear_modules(checkpoint) if targets is None else targets
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=chosen if isinstance(chosen, str) else list(chosen),
        modules_to_save=None if modules_to_save is None else list(modules_to_save),
        task_type="CAUSAL_LM",
        **options,
    )
    with _quiet():
        return peft.get_peft_model(base_model(checkpoint), config).eval()


def load_adapter(checkpoint: Path, directory: Path) -> Any:
    """A PeftModel in float32 of a checkpoint and a saved adapter."""
    import peft

    with _quiet():
        return peft.PeftModel.from_pretrained(base_model(checkpoint), str(directory)).eval()


def merged_model(checkpoint: Path, directory: Path) -> Any:
    """The checkpoint in float32 with a saved adapter merged into its weights, by PEFT."""
    with _quiet():
        return load_adapter(checkpoint, directory).merge_and_unload().eval()


def base_model(checkpoint: Path) -> Any:
    """The checkpoint in float32, as transformers loads it."""
    import transformers

    with _quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(
            str(checkpoint), dtype=torch.float32, attn_implementation="eager"
        ).eval()


def randomize_adapter(model: Any, seed: int, strength: float = 1.0) -> None:
    """Overwrite what PEFT would train, so that everything counts; equal seeds give equal numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.2 * noise)
            elif "lora_A" in name or "lora_embedding_A" in name:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            elif "lora_B" in name or "lora_embedding_B" in name:
                rank = parameter.shape[1]
                parameter.copy_(strength * noise / _scaling(model, name) * rank**-0.5)
            elif "modules_to_save" in name:
                parameter.add_(strength * noise * parameter.std())


def train_adapter(
    checkpoint: Path, directory: Path, text: str, *, steps: int = 30, seed: int = 0, **options: Any
) -> Path:
    """Train a LoRA on `text` for a few steps and save it; `options` are those of `adapted_model`.

    The checkpoint has its tokenizer beside it.
    """
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    torch.manual_seed(seed)  # PEFT draws A from the global generator
    model = adapted_model(checkpoint, **options).train()
    optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=5e-3)
    rows = torch.tensor([ids])
    with _quiet():
        for _ in range(steps):
            loss = model(input_ids=rows, labels=rows).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    save_adapter(model.eval(), directory)
    return directory


def save_adapter(model: Any, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """As PEFT does, in `dtype`."""
    from safetensors.torch import load_file, save_file

    with _quiet():
        model.save_pretrained(str(directory))
    if dtype is not torch.float32:
        path = str(directory / "adapter_model.safetensors")
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def _scaling(model: Any, name: str) -> float:
    """Of the LoRA layer that a parameter of this name is in."""
    layer = model.get_submodule(name.partition(".lora_")[0])
    return float(layer.scaling["default"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries warn a lot, and warnings are errors in tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
