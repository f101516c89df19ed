"""The demo checkpoint in the form that rivals read: a Hugging Face directory in bfloat16, made from the same GGUF."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from trierarch.benchmarks.paths import RIVALS
from trierarch.benchmarks.rivals.rival import Say
from trierarch.builder.demo import find_demo
from trierarch.builder.progress import NoProgress

DIRECTORY: Final = RIVALS / "checkpoint"


def demo_gguf() -> Path:
    """The GGUF itself, downloaded if it is not here."""
    return find_demo(NoProgress())


def demo_directory(say: Say) -> Path:
    """The Hugging Face directory, made if it is not here."""
    if DIRECTORY.is_dir():
        return DIRECTORY
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    gguf = demo_gguf()
    say(f"converting {gguf.name} to {DIRECTORY.name}/")
    staging = DIRECTORY.with_name(".checkpoint-part")
    shutil.rmtree(staging, ignore_errors=True)
    quantization = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=quantization, dtype=torch.bfloat16
    )
    model.save_pretrained(staging)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging)
    staging.rename(DIRECTORY)
    return DIRECTORY
