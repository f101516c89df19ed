"""Series: the metrics of one server or service, by the labels that it has in Prometheus, and queries over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Series:
    """What is asked of is summed over all replicas."""

    matchers: Mapping[str, str]
    """Label -> value."""

    def matching(self, **labels: str) -> str:
        """The matchers and those of `labels`, in braces."""
        found = {**self.matchers, **labels}
        return "{" + ",".join(f"{name}={json.dumps(value)}" for name, value in sorted(found.items())) + "}"

    def gauge(self, name: str, **labels: str) -> str:
        """How much there is now."""
        return f"sum({name}{self.matching(**labels)})"

    def rate(self, name: str, **labels: str) -> str:
        """A counter's growth a second, over five minutes."""
        return f"sum(rate({name}{self.matching(**labels)}[5m]))"

    def a_day(self, name: str, **labels: str) -> str:
        """A counter's growth over a day."""
        return f"sum(increase({name}{self.matching(**labels)}[1d]))"

    def quantile(self, name: str, share: float) -> str:
        """Of a histogram, over five minutes."""
        return f"histogram_quantile({share}, sum by (le) (rate({name}_bucket{self.matching()}[5m])))"
