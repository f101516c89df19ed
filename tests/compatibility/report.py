"""docs/compatibility.md: what was run, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date

from case import Outcome, Verdict

_INTRODUCTION = """\
# Clients written for others

Clients, benchmarks and tests that TensorRT-LLM's Triton backend ships or shipped, and neighbours of it, run unmodified
against the demo engine. Written by `python tests/compatibility CHECKOUTS`, {day}, from
{commits}.
A case passes where the client ends with the status that its case expects (0, but for refusals), prints what its case looks for, and no error of the server. *Server* is how
the engine was composed: decoupled as `trierarch serve` does it, unary with `--unary`, clean on ports of its own.
`$TOKENIZER`, `$GRPC` and the like stand for what was filled in.
"""

_WORDS = {
    Verdict.PASSES: "pass",
    Verdict.FAILS: "fail",
    Verdict.DIFFERS: "fail by choice",
    Verdict.NOT_RUN: "not run",
}


def render(outcomes: Sequence[Outcome], commits: Mapping[str, str], day: date) -> str:
    """The page. commits: client's repository -> commit and its date."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    summary = ", ".join(f"{counts[verdict]} {words}" for verdict, words in _WORDS.items() if counts[verdict])
    known = "; ".join(f"{client} at {commit}" for client, commit in commits.items())
    parts = [_INTRODUCTION.format(day=day.isoformat(), commits=known), f"{len(outcomes)} cases: {summary}.\n"]
    for client in dict.fromkeys(outcome.case.client for outcome in outcomes):
        parts += [
            f"## {client}\n",
            "| command | server | status | what it printed, or why | verdict |",
            "| --- | --- | --- | --- | --- |",
        ]
        parts += [_row(outcome) for outcome in outcomes if outcome.case.client == client]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _row(outcome: Outcome) -> str:
    case = outcome.case
    is_run = outcome.status is not None
    last = (outcome.said.splitlines() or [""])[-1]
    note = case.reason or (case.differs if outcome.verdict is Verdict.DIFFERS else last)
    cells = [
        f"`{_shown(case.command)}`",
        case.server.value if is_run else "",
        str(outcome.status) if is_run else "",
        note if case.reason or outcome.verdict is Verdict.DIFFERS else f"`{_shown(note)}`",
        outcome.verdict.value,
    ]
    return "| " + " | ".join(cells) + " |"


def _shown(text: str) -> str:
    for name in ("client", "here", "work", "tokenizer", "end", "grpc", "http", "metrics"):
        text = text.replace("{" + name + "}/", "" if name == "client" else f"${name.upper()}/")
        text = text.replace("{" + name + "}", f"${name.upper()}")
    return text.replace("{{", "{").replace("}}", "}").replace("|", "\\|").replace("`", "'")
