"""Reads a Triton metrics page."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.fetch import FetchFailed, fetch

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Metrics:
    """One reading: sample name -> labels -> value."""

    samples: dict[str, dict[Labels, float]]

    @classmethod
    def read(cls, url: str) -> Metrics:
        """Fetch and parse the page at `url`.

        Raises:
            ResourceError: nothing answers there.
        """
        try:
            return cls.parse(fetch(url))
        except FetchFailed as error:
            raise ResourceError(f"no metrics at {url} ({error}); is the server running?") from error

    @classmethod
    def parse(cls, page: str) -> Metrics:
        """Parse a page in Prometheus's text format."""
        samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
        return cls(samples)

    def value(self, name: str, **labels: str) -> float:
        """The one sample of `name` that carries `labels` (it may carry more).

        Raises:
            KeyError: there is none, or more than one.
        """
        wanted = set(labels.items())
        found = [value for carried, value in self.samples.get(name, {}).items() if wanted <= carried]
        if len(found) != 1:
            raise KeyError(f"{len(found)} samples of {name} with {labels}")
        return found[0]
