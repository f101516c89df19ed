"""VitalSigns: whether a Triton would answer, which it does not always know itself.

When the process that holds the model has died, Triton 2.51 goes on saying ready. That process writes the time into a
metric every second; where it stands still, nobody is there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final

from trierarch.orchestrator.fetch import FetchFailed, fetch

STILL_SECONDS: Final = 5.0
"""A heartbeat that stands for so long is none. Loading a large adapter, or a busy machine, may hold one up for a while."""
PATIENCE_SECONDS: Final = STILL_SECONDS
"""For an answer: what a busy machine may hold up."""
_HEARTBEAT: Final = re.compile(
    r'^nv_trt_llm_general_metrics\{([^}]*general_type="timestamp"[^}]*)\} (\S+)', re.MULTILINE
)


class VitalSigns:
    """Of one Triton, looked at again and again."""

    def __init__(
        self,
        http: str,
        metrics: str,
        model: str = "",
        now: Callable[[], float] = time.monotonic,
        fetch: Callable[..., str] = fetch,
    ) -> None:
        """`http` and `metrics` are `host:port`; `model`: the one that is looked at, every one if it has no name."""
        path = f"models/{model}/ready" if model else "health/ready"
        self._ready_url = f"http://{http}/v2/{path}"
        self._metrics_url = f"http://{metrics}/metrics"
        self._label = f'model="{model}"' if model else ""
        self._now = now
        self._fetch = fetch
        self._beats: dict[str, tuple[str, float]] = {}  # labels of a model's heartbeat -> its value, and since when

    def are_good(self) -> bool:
        """Whether Triton says ready and the models' processes live; blocks for seconds at most."""
        try:
            self._fetch(self._ready_url, timeout=PATIENCE_SECONDS)
            beats = _HEARTBEAT.findall(self._fetch(self._metrics_url, timeout=PATIENCE_SECONDS))
        except FetchFailed:
            return False
        now = self._now()
        last, self._beats = self._beats, {}
        for labels, value in beats:  # other models than ours have none
            if self._label not in labels:
                continue
            known, since = last.get(labels, ("", now))
            self._beats[labels] = (value, since if value == known else now)
        return all(now - since < STILL_SECONDS for _, since in self._beats.values())
