"""Where benchmarks keep what they make; all of it ignored by git."""

from __future__ import annotations

from pathlib import Path
from typing import Final

HOME: Final = Path(__file__).resolve().parent
ROOT: Final = HOME.parent
OUT: Final = HOME / "out"
"""Results and the workers' logs."""
RIVALS: Final = HOME / ".rivals"
"""A folder for each rival: its environment, its sources, its form of the checkpoint."""
IMPORT_PATH: Final = ROOT / ".src"
"""What makes `trierarch.benchmarks` importable in a rival's environment."""
