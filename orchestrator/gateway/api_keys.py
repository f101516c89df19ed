"""API keys, which the operator writes into a file or an environment variable: never on a command line, which all can read."""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Final

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.gateway.errors import ApiError

NOBODY: Final = 0
"""The number of a request's key where none is needed."""
_SCHEME: Final = b"bearer "


class ApiKeys:
    """Any number of keys; none lets everybody in."""

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        """Raise ConfigError for a key that no header can hold."""
        for key in keys:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("an API key has characters that no header can hold; use letters, digits and dashes")
        self._keys = tuple(key.encode() for key in keys)

    @classmethod
    def read(cls, file: Path | None = None, variable: str | None = None) -> ApiKeys:
        """Keys from a file, one a line (lines that begin with # are not), or from an environment variable, by commas.

        Raises:
            ConfigError: one is named and holds no key.
        """
        keys: list[str] = []
        if file is not None:
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--api-keys is {str(file)!r}: it cannot be read ({error})") from error
            found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            if not found:
                raise ConfigError(f"--api-keys is {str(file)!r}: it has no key; write one a line")
            keys += found
        if variable is not None:
            found = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
            if not found:
                raise ConfigError(f"--api-keys-variable is {variable!r}: the variable holds no key; set it")
            keys += found
        return cls(tuple(keys))

    def check(self, authorization: bytes | None) -> int:
        """The number of the key in an Authorization header; NOBODY where there are no keys.

        Raises:
            ApiError: it is none of them.
        """
        if not self._keys:
            return NOBODY
        sent = authorization or b""
        key = sent[len(_SCHEME) :].strip() if sent[: len(_SCHEME)].lower() == _SCHEME else b""
        # Every key is compared, each in the same time, so that how long it takes tells nothing of any.
        matches = [hmac.compare_digest(key, known) for known in self._keys]
        if True not in matches:
            problem = (
                "Incorrect API key provided" if key else "You did not provide an API key: Authorization: Bearer KEY"
            )
            raise ApiError(401, problem, code="invalid_api_key")
        return matches.index(True) + 1
