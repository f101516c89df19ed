"""GpuSession: one engine after the other, since each fills the device; what fails is noted and the next one starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from trierarch.benchmarks.gpu_parts import PARTS, Contestant, Setting, warm_up
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.registry import Say
from trierarch.benchmarks.report import Better, Figure, Goal, Of, Row, compare
from trierarch.benchmarks.subjects.subject import AttemptFailed, SubjectFailed
from trierarch.benchmarks.workers.protocol import Ready

OURS: Final = ("executor-bf16", "executor-fp8", "executor-int4", "profile-fp8")


def _figure(name: str, unit: str, bound: float | None = None, better: Better = Better.HIGHER) -> Figure:
    return Figure(name=name, unit=unit, better=better, goal=None if bound is None else Goal(Of.VALUE, bound))


_KNOWN: Final = {
    figure.name: figure
    for figure in (
        _figure("decode_b1_bf16", "tok/s"),
        _figure("bandwidth_share_bf16", "%", 85),
        _figure("decode_b1_fp8", "tok/s"),
        _figure("bandwidth_share_fp8", "%", 85),
        _figure("decode_b1_int4", "tok/s"),
        _figure("bandwidth_share_int4", "%"),
        _figure("throughput_1000_1000", "tok/s", 17_744),
        _figure("throughput_128_2048", "tok/s", 26_221),
        _figure("prefill_bf16", "tok/s"),
        _figure("gemm_share_bf16", "%", 60),
        _figure("adapters_share", "%", 90),
        _figure("host_gap_b1", "%", 2, Better.LOWER),
        _figure("host_gap_b32", "%", 2, Better.LOWER),
        _figure("launches_b1", "launches", better=Better.LOWER),
        _figure("launches_b32", "launches", better=Better.LOWER),
        _figure("cold_start", "s", better=Better.LOWER),
        _figure("load_share", "%", 60),
    )
}
"""In the table's order. The throughputs are what TensorRT-LLM 1.0's documentation has for this model in fp8 on one H200."""


def figure_of(name: str) -> Figure:
    """The figure of that name; of a trial's own lengths one without a goal."""
    if name in _KNOWN:
        return _KNOWN[name]
    units = {"host_gap": "%", "launches": "launches"}
    unit = units.get(name.rpartition("_")[0])
    return _figure(name, "tok/s") if unit is None else _figure(name, unit, better=Better.LOWER)


class GpuSession:
    """Takes all figures, once."""

    def __init__(self, contestants: Sequence[Contestant], setting: Setting, say: Say) -> None:
        """Nothing runs before `run`."""
        self._contestants = contestants
        self._setting = setting
        self._say = say
        self._measured: dict[str, dict[str, Measurement]] = {}
        self.notes: list[str] = []
        """What failed."""
        self.ready: dict[str, Ready] = {}
        """Contestant -> what it said when it was loaded."""

    def run(self) -> Iterator[None]:
        """Take every part of every contestant; yields after each."""
        for contestant in self._contestants:
            try:
                yield from self._run(contestant)
            except SubjectFailed as error:
                self._note(f"{contestant.name} left: {error}")
                yield
            finally:
                contestant.subject.close()

    def rows(self) -> tuple[Row, ...]:
        """What was measured so far, ours beside the rivals'."""
        names = [*(name for name in _KNOWN if name in self._measured)]
        names += [name for name in self._measured if name not in _KNOWN]
        return tuple(row for name in names for row in self._rows(name))

    def settings(self) -> dict[str, Any]:
        """Contestant -> what it said of itself."""
        return {name: ready.settings for name, ready in self.ready.items()}

    def _run(self, contestant: Contestant) -> Iterator[None]:
        self._say(f"starting {contestant.name}")
        ready = contestant.subject.start()
        self.ready[contestant.name] = ready
        if contestant.name in OURS:
            self._setting = replace(self._setting, kv_tokens=ready.settings["kv_tokens"])
        is_warm = False
        for part in contestant.parts:
            if part != "cold" and not is_warm:
                warm_up(self._setting, contestant)
                is_warm = True
            self._say(f"{part}: {contestant.name}")
            try:
                for name, measurement in PARTS[part](self._setting, contestant, ready):
                    self._measured.setdefault(name, {})[contestant.name] = measurement
            except AttemptFailed as error:
                self._note(f"{part}: {error}")
            yield

    def _rows(self, name: str) -> list[Row]:
        taken: Mapping[str, Measurement] = self._measured[name]
        subject = next((one for one in OURS if one in taken), _owner(name))
        rivals = {one: measurement for one, measurement in taken.items() if one not in OURS}
        return compare(figure_of(name), subject, taken.get(subject), rivals)

    def _note(self, note: str) -> None:
        self.notes.append(note)
        self._say(note)


def _owner(name: str) -> str:
    """Whose row it is where only rivals have the figure."""
    return OURS[0] if name.endswith("bf16") else OURS[1]
