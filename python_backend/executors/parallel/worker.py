"""A rank other than 0: a process that does what it is told on the connection that it was started with.

Started by `worker_process.py`. It ends with whoever started it, and at the first thing that goes wrong in a step: the others
are waiting for it by then, and only a new set of ranks would be of one mind again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue

import torch

from trierarch.builder.errors import EngineError, TrierarchError
from trierarch.python_backend.executors.offload.carrier import LocalCarrier
from trierarch.python_backend.executors.parallel.messages import (
    Arrange,
    Arranged,
    CloseTiers,
    Command,
    Drop,
    Failed,
    Identity,
    Join,
    Joined,
    Keep,
    Loaded,
    Logits,
    Move,
    Moved,
    Open,
    OpenTiers,
    Reply,
    TiersClosed,
    TiersOpened,
)
from trierarch.python_backend.executors.parallel.rank_model import RankModel
from trierarch.python_backend.executors.parallel.shard import shards
from trierarch.python_backend.executors.parallel.step_wire import StepWire
from trierarch.python_backend.executors.torch.device import prepare_cpu

logger = logging.getLogger(__name__)


class Worker:
    """One rank."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._speaking = threading.Lock()
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._model: RankModel | None = None
        self._carrier: LocalCarrier | None = None

    def serve(self) -> None:
        """Do what is told until the other side is gone, or something fails."""
        threading.Thread(target=self._read, daemon=True).start()
        try:
            with torch.inference_mode():
                while True:
                    self._do(self._commands.get())
        except Exception as error:
            logger.exception("a rank failed")
            self._say(Failed(_portable(error)))
            os._exit(1)

    def _read(self) -> None:
        """Take in what comes; end with whoever sends it, also where a step waits for other ranks."""
        try:
            while True:
                command = self._connection.recv()
                if isinstance(command, Arrange):
                    self._say(self._arrange(command))
                else:
                    self._commands.put(command)
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:
            logger.exception("a rank cannot be spoken to")
            os._exit(1)

    def _say(self, reply: Reply) -> None:
        with self._speaking:
            self._connection.send(reply)

    def _do(self, command: Command) -> None:
        if isinstance(command, Open):
            self._model = _open(command)
            self._say(Loaded(self._model.plan_num_blocks()))
            return
        model = self._model
        assert model is not None, "nothing is open"
        if isinstance(command, StepWire):
            model.compute(command)
        elif isinstance(command, Logits):
            model.logits(model.empty_hidden(command.num_rows), command.adapters)
        elif isinstance(command, Drop):
            for number in command.numbers:
                model.drop(number)
        elif isinstance(command, Join):
            model.join(command)
            self._say(Joined(model.block_bytes))
        elif isinstance(command, OpenTiers):
            self._carrier = carrier = model.open_tiers(command.share)
            self._say(TiersOpened(tuple(carrier.kept), carrier.pinned_bytes))
            carrier.start(lambda news: self._say(Moved(news)))
        elif isinstance(command, Keep | Move | CloseTiers):
            self._move(command)

    def _move(self, command: Keep | Move | CloseTiers) -> None:
        carrier = self._carrier
        assert carrier is not None, "no tiers are open"
        if isinstance(command, Move):
            carrier.delete(command.deleted)
            carrier.begin(command.copies)
        elif isinstance(command, Keep):
            carrier.keep(command.keys)
        else:
            carrier.close()
            self._say(TiersClosed())

    @torch.inference_mode()
    def _arrange(self, command: Arrange) -> Arranged:
        assert self._model is not None, "nothing is open"
        try:
            self._model.arrange(command.number, command.tensors)
        except Exception as error:  # noqa: BLE001 - no step needs it: whoever wants the adapter hears of it
            return Arranged(command.number, _portable(error))
        return Arranged(command.number, None)


def _open(command: Open) -> RankModel:
    """Raise EngineError where this rank is not of a kind with rank 0."""
    own = Identity.of(command.engine)
    if own.torch != command.identity.torch:
        raise EngineError(
            f"it runs torch {own.torch} ({sys.executable}), and rank 0 runs {command.identity.torch}: let both find the same"
        )
    if own.weights != command.identity.weights:
        raise EngineError(f"{command.engine} was replaced while it was loaded: load it again")
    device = torch.device(command.device)
    if device.type == "cpu":
        prepare_cpu()
        torch.set_num_threads(command.num_threads)
    else:
        torch.cuda.set_device(device)
    return RankModel(command.engine, command.manifest, shards(command.manifest)[command.index], device)


def _portable(error: Exception) -> Exception:
    """What another process can read: our own errors as they are, of others what they say."""
    if isinstance(error, TrierarchError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}".splitlines()[0])


if __name__ == "__main__":
    logging.basicConfig(format="%(process)d %(name)s: %(message)s")
    Worker(Connection(int(sys.argv[1]))).serve()
