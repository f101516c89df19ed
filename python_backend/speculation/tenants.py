"""Tenants: who may see each other's tokens, and how stored tokens keep everybody else out."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from sys import getsizeof
from typing import Final

_SHIFT: Final = 32
_TOKEN_MASK: Final = (1 << _SHIFT) - 1
_TENANT_BYTES: Final = 300
"""What Python takes for one tenant besides the characters of its names."""


@dataclass(slots=True, eq=False)
class Tenant:
    """The requests of one adapter with one `cache_salt`."""

    adapter: str
    cache_salt: str
    number: int
    """Never given twice."""
    num_holders: int = 0
    """Live sequences and episodes of the history."""
    num_episodes: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that knowing it takes, about."""
        return _TENANT_BYTES + getsizeof(self.adapter) + getsizeof(self.cache_salt)

    def stored(self, token_ids: Iterable[int]) -> array[int]:
        """Tokens as they are stored, number << 32 | token id: equal tokens of two tenants differ and never match."""
        base = self.number << _SHIFT
        return array("q", [base | token for token in token_ids])

    def stored_one(self, token_id: int) -> int:
        """Likewise one token."""
        return self.number << _SHIFT | token_id


def token_ids_of(stored: Iterable[int]) -> tuple[int, ...]:
    """The token ids of stored tokens."""
    return tuple([token & _TOKEN_MASK for token in stored])


class Tenants:
    """Knows tenants as long as somebody holds them."""

    def __init__(self) -> None:
        """Nobody."""
        self._tenants: dict[tuple[str, str], Tenant] = {}
        self._num_numbers = 0

    def __len__(self) -> int:
        return len(self._tenants)

    def hold(self, adapter: str, cache_salt: str) -> Tenant:
        """The tenant of that name, held once more."""
        tenant = self._tenants.get((adapter, cache_salt))
        if tenant is None:
            tenant = self._tenants[adapter, cache_salt] = Tenant(adapter, cache_salt, self._num_numbers)
            self._num_numbers += 1
        tenant.num_holders += 1
        return tenant

    def release(self, tenant: Tenant) -> None:
        """Hold it once less; with the last holder gone its number is never used again."""
        tenant.num_holders -= 1
        if tenant.num_holders == 0:
            del self._tenants[tenant.adapter, tenant.cache_salt]
