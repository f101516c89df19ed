"""Screen: a terminal, and beside it the picture of what it showed, for a README."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

PICTURE_WIDTH: Final = 96
WEB_FONTS: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class Screen:
    """Shows things on `terminal`; keeps a copy of each, as it looked at last."""

    def __init__(self, terminal: Console) -> None:
        """Begin with an empty picture."""
        self.terminal = terminal
        self._picture = Console(
            record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True, highlight=False
        )

    def show(self, *renderables: RenderableType) -> None:
        """Print on both."""
        for renderable in renderables:
            self.terminal.print(renderable)
            self._picture.print(renderable)

    def copy(self, renderable: RenderableType) -> None:
        """Add to the picture what the terminal has shown already, piece by piece."""
        self._picture.print(renderable)

    def stream(self, texts: Iterator[str], style: str) -> None:
        """Show text as it comes, wrapped at words where the terminal can be redrawn."""
        answer = Text(style=style)
        if self.terminal.is_terminal:
            with Live(answer, console=self.terminal, refresh_per_second=20) as live:
                for text in texts:
                    answer.append(text)
                    live.update(answer)
        else:
            for text in texts:
                answer.append(text)
                self.terminal.out(text, end="", highlight=False)
            self.terminal.out()
        self.copy(answer)

    def save(self, path: Path, title: str) -> None:
        """Write the picture as SVG, without rich's web fonts: in a README it loads nothing."""
        picture = self._picture.export_svg(title=title, unique_id="trierarch")
        path.write_text(WEB_FONTS.sub("", picture), encoding="utf-8")
