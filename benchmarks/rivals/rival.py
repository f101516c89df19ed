"""Rival: one engine of somebody else's, how it is installed and how its worker is started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trierarch.benchmarks.paths import RIVALS
from trierarch.benchmarks.subjects.worker import Launch
from trierarch.builder.errors import ResourceError

STAMP: Final = "installed"
"""Written when an installation is whole."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """What is known of it before it is here."""

    name: str
    summary: str
    """What of it runs, in what precision."""
    install: Callable[[Say], None]
    """Bring it here; may be run again and then does only what is missing."""
    launch: Callable[[], Launch]
    """For an installed rival."""
    bits: int = 16
    """Of a weight, scales not counted."""
    base: Rival | None = None
    """The rival of which this is a variant: another form of the checkpoint, which lies beside the base's, or other options."""

    @property
    def is_installed(self) -> bool:
        """Whether `install` came to its end, and the base's."""
        return self._stamp.is_file() and (self.base is None or self.base.is_installed)

    def ensure(self, say: Say) -> None:
        """Install it unless it is here.

        Raises:
            ResourceError: a step failed, such as a download or a compiler.
        """
        if self.is_installed:
            say(f"{self.name} is installed")
            return
        if self.base is not None:
            self.base.ensure(say)
        self._stamp.parent.mkdir(parents=True, exist_ok=True)
        self.install(say)
        self._stamp.touch()

    @property
    def _stamp(self) -> Path:
        return home(self.name) / STAMP if self.base is None else home(self.base.name) / f"{STAMP}-{self.name}"


def with_options(base: Rival, suffix: str, summary: str) -> Rival:
    """`base` by the worker `<its module>_<suffix>`, which sets other options; there is nothing to install."""
    name = f"{base.name}-{suffix}"

    def launch() -> Launch:
        of_base = base.launch()
        return replace(of_base, name=name, module=f"{of_base.module}_{suffix}")

    return Rival(name=name, summary=summary, install=lambda say: None, launch=launch, base=base)


def home(name: str) -> Path:
    """A rival's folder."""
    return RIVALS / name


def environment(name: str, requirements: Sequence[str], say: Say) -> Path:
    """Make a rival's virtual environment with `requirements`; the path of its Python."""
    python = python_of(name)
    if not python.is_file():
        run([sys.executable, "-m", "venv", str(home(name) / "venv")])
    say(f"{name}: installing {', '.join(requirements)}")
    run([str(python), "-m", "pip", "install", "--quiet", *requirements])
    return python


def python_of(name: str) -> Path:
    """Python of a rival's environment."""
    return home(name) / "venv" / "bin" / "python"


def run(command: Sequence[str], working_directory: Path | None = None) -> None:
    """Run one step; its output is shown only if it fails.

    Raises:
        ResourceError: it is missing or ended with another status than 0.
    """
    try:
        done = subprocess.run(command, cwd=working_directory, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ResourceError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        last_lines = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise ResourceError(f"{' '.join(map(str, command))} ended with status {done.returncode}:\n{last_lines}")
