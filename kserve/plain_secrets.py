"""Finds secrets that stand where everybody reads them: manifests lie in repositories, and Kubernetes shows them."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_NAMES: Final = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY(?:_ID)?|PRIVATE_KEY|CREDENTIALS?)$"
)
_SAFE: Final = re.compile(r"^(?:|true|false|[0-9]{1,6}|/[\w./-]*)$", re.IGNORECASE)
"""Values that are switches, counts and paths, whatever the name says."""
_VALUES: Final = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "an NVIDIA API key": re.compile(r"\bnvapi-[A-Za-z0-9_-]{20,}"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    "a JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\."),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
_QUERY_NAMES: Final = re.compile(r"token|secret|password|signature|credential|^sig$|key", re.IGNORECASE)


def secret_in(name: str, value: str) -> str | None:
    """What kind of secret `value`, of a variable `name`, looks like, as the end of a sentence; None: none.

    A `$(NAME)` of Kubernetes' own, which refers to another variable, is none.
    """
    if re.fullmatch(r"\$\([A-Za-z_][A-Za-z0-9_]*\)", value):
        return None
    for kind, pattern in _VALUES.items():
        if pattern.search(value):
            return f"holds {kind} in plain text"
    if "://" in value:
        parts = urlsplit(value)
        if parts.password:
            return "holds a password in plain text"
        if any(content and _QUERY_NAMES.search(key) for key, content in parse_qsl(parts.query)):
            return "holds a signature or a token in plain text"
        return None
    if _NAMES.search(name.upper()) and not _SAFE.match(value):
        return "looks like a secret in plain text"
    return None
