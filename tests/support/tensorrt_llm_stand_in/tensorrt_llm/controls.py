"""What tests set and see of the stand-in. Importing it touches nothing else of the package."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Controls:
    """Of all LLMs in the process."""

    gate: threading.Event = field(default_factory=threading.Event)
    """Each step waits for it."""
    pause_at: int | None = None
    """The step after which it closes."""
    step_seconds: float = 0.0
    """That each step takes."""
    shows_end_ids: bool = False
    """Whether an end token is among those that come back."""
    poison: int | None = None
    """A request with this token in its prompt fails, and no other."""
    fatal: int | None = None
    """A request with this token in its prompt is the engine's end."""
    fatal_text: str = "CUDA error: an illegal memory access was encountered"
    opening_error: str | None = None
    """Why an LLM cannot be opened."""
    is_dead: bool = False
    """The processes are gone; nobody has been told."""
    shutdown_hangs: bool = False
    submission_hangs: bool = False
    """Whether generate_async waits for a process that is gone."""
    lora_slots: int = 2
    num_stale_misses: int = 1
    """How often an evicted adapter is said to be there, and is not."""
    has_perf_metrics: bool = True
    cached_blocks: int = 100
    """That stay when their sequence has ended."""
    num_cuda_touches: int = 0
    """By parsing arguments, which asks the device for its properties."""
    llms: list[Any] = field(default_factory=list)
    """Those that are open."""
    submissions: list[dict[str, Any]] = field(default_factory=list)
    """Arguments of every generate_async."""
    num_aborts: int = 0
    num_lora_misses: int = 0
    num_lora_loads: int = 0


controls = Controls()
controls.gate.set()
