"""Fetching a page of a server on this machine: no proxies, no redirects, and a fraction of a client library's start."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException
from typing import Final
from urllib.parse import urlsplit

_OK: Final = 200


class FetchFailed(Exception):
    """Nothing answers there, or what answers is no success."""

    def __init__(self, message: str, content: str | None = None) -> None:
        """`content` is what was answered, if anything was."""
        super().__init__(message)
        self.content = content


def fetch(url: str, body: str | None = None, timeout: float = 10.0) -> str:
    """What GET answers at an http URL, or POST where there is a `body` of JSON.

    Raises:
        FetchFailed: nothing answers within `timeout` seconds, or not with status 200.
    """
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=timeout)
    try:
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", parts.path or "/", body, headers)
        response = connection.getresponse()
        content = response.read().decode("utf-8", errors="replace")
    except (OSError, HTTPException) as error:
        raise FetchFailed(str(error) or type(error).__name__) from error
    finally:
        connection.close()
    if response.status != _OK:
        raise FetchFailed(f"status {response.status}: {content[:200]}", content)
    return content
