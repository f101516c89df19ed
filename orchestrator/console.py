"""Where the command line writes: results to standard output, everything about them to standard error."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from trierarch.builder.errors import ConfigError, TrierarchError

OUT: Final = Console(highlight=False)
ERR: Final = Console(stderr=True, highlight=False)

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2


def report(error: TrierarchError) -> int:
    """Show `error` on one line of standard error; the exit status it deserves."""
    ERR.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
    return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE


def say(message: str) -> None:
    """Tell what is going on."""
    ERR.print(Text.assemble(("==> ", "bold cyan"), message), soft_wrap=True)


def warn(message: str) -> None:
    """Tell what went wrong and is being dealt with."""
    ERR.print(Text.assemble(("==> ", "bold yellow"), message), soft_wrap=True)
