"""Kernels in Triton's language compiled for GPUs that are not here, exactly as they would be launched."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import pytest
import torch

_POINTERS: Final = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel and what it was launched with."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]

    def compile(self, capability: int) -> Any:
        """For a GPU of a capability, such as 90, down to machine code; raises what the compiler raises."""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int], list[list[Any]]] = {}
        for parameter in self.kernel.params:
            name, value = parameter.name, self.arguments[parameter.name]
            is_special = not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (is_special and type(value) is int and value == 1):
                signature[name], constants[name] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor) or (is_special and isinstance(value, int) and value % 16 == 0):
                attributes[(parameter.num,)] = [["tt.divisibility", 16]]
            if isinstance(value, torch.Tensor):
                signature[name] = _POINTERS[value.dtype]
            else:
                signature[name] = "i32" if isinstance(value, int) else "fp32"
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)


class Launches(list[Launch]):
    """Those of a module's kernels, which do not run."""

    def record(self, module: ModuleType, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Launches:
        """From now on."""
        for name in names:
            monkeypatch.setattr(module, name, _Recorder(getattr(module, name), self))
        return self


class _Recorder:
    def __init__(self, kernel: Any, launches: Launches) -> None:
        self._kernel = kernel
        self._launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **named: Any) -> None:
            options = {name: named.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
            given = dict(zip(self._kernel.arg_names, arguments, strict=False)) | named
            assert given.keys() == set(self._kernel.arg_names)
            assert all(1 <= size < 2**16 for size in grid[1:]), "CUDA's limit for all axes but the first"
            self._launches.append(Launch(self._kernel, given, options))

        return launch
