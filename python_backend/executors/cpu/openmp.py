"""The OpenMP runtime that compiled kernels share with whatever else of this process computes."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from trierarch.builder.errors import EngineError
from trierarch.python_backend.executors import machine

_NAME: Final = "libgomp.so.1"


@cache
def load_openmp() -> ctypes.CDLL:
    """The runtime, loaded so that libraries which ask for it by name find it.

    The one that is loaded already if there is one, else the system's, else the one that torch brings along: a machine
    that only runs engines need not have a compiler's.

    Raises:
        EngineError: there is none.
    """
    try:
        return ctypes.CDLL(_NAME)
    except OSError as error:
        torch = find_spec("torch")  # finds its folder and imports nothing
        for place in (torch.submodule_search_locations or ()) if torch is not None else ():
            bundled = Path(place, "lib", _NAME)
            if bundled.exists():
                return ctypes.CDLL(str(bundled))
        raise EngineError(
            f"compiled kernels need {_NAME} ({error}); install it (Debian: apt install libgomp1)"
        ) from error


def num_threads() -> int:
    """Threads to compute with: as many as there are cores, and no more than OpenMP would take.

    OpenMP's own count obeys OMP_NUM_THREADS and the process's affinity.
    """
    return min(int(load_openmp().omp_get_max_threads()), machine.num_cores())
