"""DraftAdapters: what the draft model runs with, so that it guesses what the served model says with an adapter."""

from __future__ import annotations

import logging

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.errors import TrierarchError
from trierarch.python_backend.adapters.active_adapter import Arranged
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.cache import Arrange
from trierarch.python_backend.adapters.directory import DRAFT_SUFFIX, AdapterDirectories
from trierarch.python_backend.errors import UnknownAdapter, UnusableAdapter

logger = logging.getLogger(__name__)


class DraftAdapters:
    """An ArrangeDraft. A draft without its adapter guesses less well and changes no answer, so nothing here is an error."""

    def __init__(self, arrange: Arrange, directories: AdapterDirectories, is_same_architecture: bool) -> None:
        """`arrange`: the draft model's. `directories` check adapters against its engine. If the draft
        `is_same_architecture` as the served model, it runs with the adapter itself.
        """
        self._arrange = arrange
        self._directories = directories
        self._is_same_architecture = is_same_architecture

    def __call__(self, adapter: Adapter, tensors: AdapterTensors) -> Arranged | None:
        """The adapter itself, or NAME.draft, or nothing."""
        try:
            if self._is_same_architecture:
                return self._arrange(tensors)
            return self._arrange(self._directories.find(adapter.name + DRAFT_SUFFIX).read())
        except UnknownAdapter:
            return None
        except (TrierarchError, UnusableAdapter) as error:
            logger.warning("the draft model runs without adapter %s: %s", adapter.name, error)
            return None
