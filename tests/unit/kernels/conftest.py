"""What the kernels' tests share: the library, compiled once for each instruction set."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from trierarch.builder import compile as kernels
from trierarch.python_backend.executors.cpu.abi import open_library


def instruction_sets() -> Iterator[kernels.InstructionSet]:
    """This machine's best, and the plainest: the same source without a vector unit of that width."""
    yield kernels.best_instruction_set()
    if kernels.best_instruction_set() is not kernels.INSTRUCTION_SETS[-1]:
        yield kernels.INSTRUCTION_SETS[-1]


@pytest.fixture(scope="session", params=instruction_sets(), ids=lambda one: one.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    if kernels.find_compiler() is None:
        pytest.skip("no C++ compiler")
    path.write_bytes(kernels.compile_library(request.param))
    return open_library(path)
