"""Collected only where the interpreter of Triton's language was switched on from outside: see ../test_interpreted.py."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def _products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as its bits, and `dot` would multiply those (triton 3.9)."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def numbers(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: dot(self, numbers(a), numbers(b), *rest),
    )


@pytest.fixture(autouse=True)
def _rounding_to_fewer_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts float32 off where it becomes bfloat16, and loses a carry where it becomes E4M3 (triton 3.9)."""
    from triton import language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float
    rounded = {tl.bfloat16: (torch.bfloat16, torch.uint16), tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8)}

    def exact(data: Any, of: Any, to: Any, rounding: Any) -> Any:
        if of != tl.float32 or to not in rounded:
            return convert(data, of, to, rounding)
        dtype, bits = rounded[to]
        return torch.from_numpy(np.ascontiguousarray(data)).to(dtype).view(bits).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", exact)
