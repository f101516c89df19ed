"""Case: one run of a client that somebody else wrote, unmodified, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Server(StrEnum):
    """What a client is run against: the demo engine, served in one way or another."""

    DECOUPLED = "decoupled"
    """As `trierarch serve` composes it: streams, and answers that are not streamed over a stream."""
    UNARY = "unary"
    """Composed with --unary, as clients with unary calls need it: Triton refuses them on decoupled models."""
    CLEAN = "clean"
    """Unary, started for this case alone, on Triton's own ports (8000 to 8002), which the client has written in it."""
    CLEAN_DECOUPLED = "clean, decoupled"
    """The same with streams."""
    VLLM = "clean, --vllm"
    """The same, with a model of the vLLM backend's tensors that is called as that backend's tests call it."""
    SHORT = "decoupled, short"
    """Of an engine whose sequences have 320 tokens: chats that name no bound end soon."""

    @property
    def is_clean(self) -> bool:
        """Whether it is on Triton's own ports, and its case's alone."""
        return self in (Server.CLEAN, Server.CLEAN_DECOUPLED, Server.VLLM)


class Verdict(StrEnum):
    """What came of a case."""

    PASSES = "passes"
    FAILS = "fails"
    DIFFERS = "fails, by choice"
    """It asserts what we do differently on purpose; the note says why."""
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command. `{grpc}`, `{http}`, `{tokenizer}`, `{client}` (the checkout), `{work}` and the like are filled in."""

    client: str
    """The repository's folder among the checkouts."""
    command: str = ""
    """After `python`; of a shell's syntax it has quotes alone."""
    server: Server = Server.DECOUPLED
    status: int = 0
    """What it must exit with."""
    shows: str = ""
    """What its output must have, besides that status: clients that print an error and end with 0 are many."""
    shows_not: str = ""
    """What its output must not have."""
    environment: tuple[tuple[str, str], ...] = ()
    keeps_metrics: str = ""
    """File of the working directory that the metrics page is kept in afterwards; later cases read it."""
    keeps_output: tuple[tuple[str, str], ...] = ()
    """(file of the working directory, pattern): what the pattern's group finds in the output is kept; likewise."""
    differs: str = ""
    """Why it fails and shall."""
    differs_by: str = ""
    """What its output has then: it may fail for nothing else."""
    reason: str = ""
    """Why it is not run; its `command` is then only a name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case that was run, or was not."""

    case: Case
    verdict: Verdict
    status: int | None
    """The exit status."""
    said: str
    """The end of what it printed."""
