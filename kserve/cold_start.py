"""ColdStartBudget: from no node at all to a first token, as phases in seconds; every probe, deadline and timeout follows.

Bytes come from the engine's manifest, rates and waits from `spec.ColdStart`, whose defaults are assumptions: each phase
names what it was worked out from, so that a reader sees which figure to measure first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import EngineManifest
from trierarch.kserve.memory import engine_bytes
from trierarch.kserve.profiles import check_profile
from trierarch.kserve.spec import ColdStart, DeploySpec, Profile

PROBE_PERIOD: Final = 5
KNATIVE_MAX_TIMEOUT: Final = 600
"""`max-revision-timeout-seconds` of Knative's config-defaults, as shipped."""
KNATIVE_PROGRESS_DEADLINE: Final = 600
STANDARD_PROGRESS_DEADLINE: Final = 600
"""Written by KServe into every Deployment; no field changes it."""

_MOUNTED: Final = ("pvc",)
_IMAGES: Final = ("oci", "oci+native", "oci+fetch")


@dataclass(frozen=True, slots=True)
class Phase:
    """One wait of a cold start."""

    name: str
    seconds: float
    source: str
    """What the seconds were worked out from."""
    at_every_start: bool
    """Whether a container that starts on a warm node waits so, too: what a startup probe must allow."""


@dataclass(frozen=True, slots=True)
class Mend:
    """Something that makes a cold start shorter."""

    what: str
    saves: float
    """Seconds of the budget."""


@dataclass(frozen=True, slots=True)
class ColdStartBudget:
    """The phases of one replica's start, in order."""

    phases: tuple[Phase, ...]
    margin: float

    @property
    def total(self) -> float:
        """Seconds from nothing to serving at full speed."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def container(self) -> float:
        """Seconds of it in the server's own container."""
        return sum(phase.seconds for phase in self.phases if phase.at_every_start)

    @property
    def deadline(self) -> int:
        """Seconds that whatever waits for a replica must allow."""
        return math.ceil(self.total * self.margin)

    @property
    def container_deadline(self) -> int:
        """Seconds that the server may take in its container."""
        return max(PROBE_PERIOD, math.ceil(self.container * self.margin))

    @property
    def probe_failures(self) -> int:
        """Failures of a probe every PROBE_PERIOD that cover it."""
        return math.ceil(self.container_deadline / PROBE_PERIOD)


def cold_start_budget(spec: DeploySpec, engine: EngineManifest) -> ColdStartBudget:
    """The budget of one replica of `spec`."""
    rates = spec.cold_start
    num_bytes = engine_bytes(engine)
    megabytes = num_bytes / 1e6
    fetch, fetched_from = _fetch(spec, num_bytes)
    load_rate = min(rates.load_bandwidth, rates.storage_bandwidth) if _is_mounted(spec) else rates.load_bandwidth
    rate_name = "storage" if load_rate < rates.load_bandwidth else "load"
    phases = (
        Phase("node", rates.node_provision, _said(rates, "node_provision"), False),
        Phase("image pull", rates.image_pull, _said(rates, "image_pull"), False),
        Phase("fetch", fetch, fetched_from, False),
        Phase("server start", rates.server_start, _said(rates, "server_start"), True),
        Phase(
            "load",
            num_bytes / load_rate,
            f"{megabytes:.0f} MB (manifest) / {load_rate / 1e6:.0f} MB/s ({_said(rates, f'{rate_name}_bandwidth')})",
            True,
        ),
        Phase("warm-up", rates.warm_up, _said(rates, "warm_up"), True),
    )
    return ColdStartBudget(phases, rates.margin)


def mends(spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> tuple[Mend, ...]:
    """What would shorten the start of `spec`, the most first."""
    seconds = {phase.name: phase.seconds for phase in budget.phases}
    moved = seconds["fetch"] + seconds["load"]
    found = [Mend("keep a replica: --min-replicas 1", budget.total)] if spec.min_replicas == 0 else []
    if seconds["fetch"]:
        if _may_be_cached(spec, engine):
            found.append(Mend("keep the engine on the nodes: --node-cache GROUP (LocalModelCache)", seconds["fetch"]))
        if spec.storage.scheme not in _IMAGES:
            found.append(
                Mend(
                    "make the engine an image volume, which a node keeps: --storage oci+native://...", seconds["fetch"]
                )
            )
    if not engine.is_quantized:
        found.append(Mend("quantise to 8 bits: about half of the bytes", moved / 2))
    found += [
        Mend("keep nodes: low-priority placeholder pods, then --node-provision 0", seconds["node"]),
        Mend("pull the image ahead: a DaemonSet, or image streaming, then --image-pull 0", seconds["image pull"]),
    ]
    return tuple(sorted((mend for mend in found if mend.saves), key=lambda mend: -mend.saves))


def warnings(spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> tuple[str, ...]:
    """Where the budget breaks a promise or a limit, and what mends it."""
    found = []
    objective = spec.cold_start.ttft_objective
    if objective is not None and budget.total > objective and (spec.min_replicas == 0 or spec.scale.max_replicas > 1):
        who = "a request that finds no replica" if spec.min_replicas == 0 else "a replica that is added under load"
        ways = "; ".join(f"{mend.what} (saves {mend.saves:.0f} s)" for mend in mends(spec, engine, budget))
        found.append(f"{who} waits {budget.total:.0f} s, and the objective is {objective:g} s: {ways}")
    if spec.profile is Profile.KNATIVE:
        needed = knative_timeout(spec, budget)
        if needed > KNATIVE_MAX_TIMEOUT:
            found.append(
                f"a request may take {needed} s (cold start and longest answer), and Knative's max-revision-timeout-seconds "
                f"is {KNATIVE_MAX_TIMEOUT}: set it to {needed} in config-defaults, or shorten --longest-stream"
            )
    elif spec.profile.is_standard and budget.total > STANDARD_PROGRESS_DEADLINE:
        found.append(
            f"a start takes {budget.total:.0f} s, and KServe gives a Deployment {STANDARD_PROGRESS_DEADLINE} s: its status "
            "will say ProgressDeadlineExceeded meanwhile, though pods go on starting"
        )
    return tuple(found)


def knative_timeout(spec: DeploySpec, budget: ColdStartBudget) -> int:
    """Seconds that a revision gives a request: the wait for a cold start counts."""
    wait = budget.total if spec.min_replicas == 0 else 0
    return math.ceil(wait + spec.streams.longest)


def _fetch(spec: DeploySpec, num_bytes: int) -> tuple[float, str]:
    if spec.storage.node_cache:
        return 0.0, f"kept on nodes of {', '.join(spec.storage.node_cache)}"
    if _is_mounted(spec):
        return 0.0, "mounted; read while loading"
    rate = spec.cold_start.storage_bandwidth
    source = (
        f"{num_bytes / 1e6:.0f} MB (manifest) / {rate / 1e6:.0f} MB/s ({_said(spec.cold_start, 'storage_bandwidth')})"
    )
    note = ", the first time on a node" if spec.storage.scheme in _IMAGES else ""
    return num_bytes / rate, source + note


def _may_be_cached(spec: DeploySpec, engine: EngineManifest) -> bool:
    """Whether `spec` would be taken with a cache on the nodes."""
    storage = spec.storage.model_copy(update={"node_cache": ("group",)})
    try:
        check_profile(spec.model_copy(update={"storage": storage}), engine)
    except ConfigError:
        return False
    return True


def _is_mounted(spec: DeploySpec) -> bool:
    return spec.storage.scheme in _MOUNTED and not spec.storage.node_cache


def _said(rates: ColdStart, field: str) -> str:
    return "stated" if field in rates.model_fields_set else "assumed"
