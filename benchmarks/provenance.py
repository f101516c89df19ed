"""What a result was made with: versions, commit, date."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from trierarch.benchmarks.paths import ROOT


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Installed versions; what is not installed is left out."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checked-out commit, with `+` if the working tree differs from it; None outside a repository."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return None if head is None else head + ("+" if _git("status", "--porcelain") else "")


def now() -> str:
    """The present minute, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
