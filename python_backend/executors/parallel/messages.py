"""What rank 0 says to the other ranks, and what they say, pickled both ways. Each rank gets the same in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.manifest import WEIGHTS_NAME, EngineManifest
from trierarch.python_backend.executors.offload.carrier import News
from trierarch.python_backend.executors.offload.share import Share
from trierarch.python_backend.executors.parallel.step_wire import AdapterRef, StepWire
from trierarch.python_backend.kv.copies import Copies


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same for all ranks, beyond what they are told."""

    torch: str
    weights: tuple[int, int, int]
    """Inode, bytes and time of the file."""

    @classmethod
    def of(cls, engine: Path) -> Identity:
        """Of this process. Raise OSError where there are no weights."""
        stat = (engine / WEIGHTS_NAME).stat()
        return cls(str(torch.__version__), (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@dataclass(frozen=True, slots=True)
class Open:
    """Load what rank `index` has. Answered by Loaded."""

    index: int
    engine: Path
    manifest: EngineManifest
    device: str
    num_threads: int
    identity: Identity


@dataclass(frozen=True, slots=True)
class Join:
    """Allocate keys and values, and meet the other ranks. Answered by Joined."""

    num_blocks: int
    meeting: Path
    """A file that all ranks write to until they have met."""
    timeout: float
    """Seconds after which a rank that others wait for is lost."""


@dataclass(frozen=True, slots=True)
class Logits:
    """Make those of so many rows of hidden states, which rank 0 hands out."""

    num_rows: int
    adapters: tuple[AdapterRef | None, ...]
    """Of each row; none at all is the base model."""


@dataclass(frozen=True, slots=True)
class Arrange:
    """Hold an adapter. Answered by Arranged, and the only thing that is done beside steps."""

    number: int
    tensors: AdapterTensors
    """This rank's part."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Let go of adapters, of which no later step knows."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OpenTiers:
    """Lend host memory and files to this rank's share of blocks. Answered by TiersOpened."""

    share: Share


@dataclass(frozen=True, slots=True)
class Keep:
    """Delete the files that were there at the start, but for those of these keys."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """Copy this rank's share of blocks. Answered by a Moved for each recall and each saving."""

    copies: Copies
    deleted: tuple[bytes, ...]
    """Keys of files that go first."""


@dataclass(frozen=True, slots=True)
class CloseTiers:
    """Copy no more. Answered by TiersClosed, after all that was begun."""


Command = Open | Join | StepWire | Logits | Arrange | Drop | OpenTiers | Keep | Move | CloseTiers


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights are there."""

    num_blocks: int
    """That there is room for."""


@dataclass(frozen=True, slots=True)
class Joined:
    """It computes from now on."""

    block_bytes: int
    """Of its share of a block."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """An adapter is there, or could not be."""

    number: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class TiersOpened:
    """Its share has room."""

    kept: tuple[bytes, ...]
    pinned_bytes: int
    """Both as Carrier has them."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How a copy ended."""

    news: News


@dataclass(frozen=True, slots=True)
class TiersClosed:
    """All its copies have ended."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The last word of a rank."""

    error: Exception


Reply = Loaded | Joined | Arranged | TiersOpened | Moved | TiersClosed | Failed
