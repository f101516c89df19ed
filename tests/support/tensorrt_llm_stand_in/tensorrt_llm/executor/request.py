"""LoRARequest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorrt_llm.recorded import class_of


class LoRARequest(class_of("LoRARequest")):  # type: ignore[misc]
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        if not Path(self.lora_path).exists():
            raise ValueError(f"lora_path ({self.lora_path}) does not exist.")
