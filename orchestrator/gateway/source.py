"""Source: one engine as the operator places it behind the gateway: what keeps it up, and what clients call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.gateway.description import Description
from trierarch.orchestrator.gateway.gateway_config import DEFAULT_MODEL
from trierarch.orchestrator.gateway.upstream import AlwaysOn, Endpoints, Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One engine."""

    label: str
    """Its own among all, in metrics and where readiness is told; before a slash and an adapter, where both need be said."""
    upstream: Upstream
    model: str = DEFAULT_MODEL
    """Triton's model that is asked."""
    names: tuple[str, ...] = ()
    """What clients call it; none is the engine's own name."""
    description: Description | None = None
    """What it said of itself, if it was asked already."""


@asynccontextmanager
async def always_on(
    endpoints: Endpoints, models: Sequence[str] = (DEFAULT_MODEL,), names: Sequence[str] = ()
) -> AsyncIterator[list[Source]]:
    """Models of one Triton that somebody else keeps up; `names` are of the only one.

    Raises:
        ConfigError: a model is named twice, or there are names and several models.
    """
    _check(models, names)
    if len(models) == 1:
        async with AlwaysOn(endpoints) as upstream:
            yield [Source(label=models[0], upstream=upstream, model=models[0], names=tuple(names))]
        return
    async with AsyncExitStack() as stack:
        sources = []
        for model in models:
            upstream = await stack.enter_async_context(AlwaysOn(endpoints, model))
            sources.append(Source(label=model, upstream=upstream, model=model, names=(model,)))
        yield sources


def _check(models: Sequence[str], names: Sequence[str]) -> None:
    if len(set(models)) < len(models):
        raise ConfigError(f"--model is {', '.join(models)}: one is named twice; name each once")
    if names and len(models) > 1:
        raise ConfigError("--served-name with several --model: clients call each as Triton does; leave one of them out")
