"""Lineup: the subjects that take part, ours and theirs. One that fails leaves it and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Protocol, Self

from trierarch.benchmarks.measurement import Measurement, Sample
from trierarch.benchmarks.process_tree import ForeignShare
from trierarch.benchmarks.subjects.subject import AttemptFailed, Subject, SubjectFailed

Probe = Callable[[Subject, str], float]
"""Measures one figure once; the key names the attempt, and prompts drawn from it have not been sent before."""


class Window(Protocol):
    """Watches the machine from its construction on."""

    def share(self) -> float:
        """Share of all processors' time that went to others until now."""
        ...


class Lineup:
    """Runs probes over all subjects, turn by turn, so that a drift of the machine meets all of them alike."""

    def __init__(
        self,
        subjects: Iterable[Subject],
        num_repeats: int,
        num_attempts: int,
        say: Callable[[str], None] = lambda message: None,
        watch: Callable[[Callable[[], list[int]]], Window] = ForeignShare,
    ) -> None:
        """Take `subjects` in, none of them started. A disturbed repeat is tried at most `num_attempts` times; `watch`
        opens a window around each attempt."""
        self.subjects = list(subjects)
        self.notes: list[str] = []
        """Why subjects left."""
        self._num_repeats = num_repeats
        self._num_attempts = num_attempts
        self.say = say
        self._watch = watch

    def __enter__(self) -> Self:
        """The lineup itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all subjects."""
        for subject in self.subjects:
            subject.close()

    def alone(self, subject: Subject) -> Lineup:
        """A lineup of one more subject by the same rules, which takes no turns with these."""
        lineup = Lineup([subject], self._num_repeats, self._num_attempts, self.say, self._watch)
        lineup.notes = self.notes
        return lineup

    def each(self, action: Callable[[Subject], None]) -> None:
        """Do something with every subject."""
        for subject in list(self.subjects):
            try:
                action(subject)
            except SubjectFailed as error:
                self._drop(subject, error)

    def measure(
        self,
        figure: str,
        probe: Probe,
        before_repeat: Callable[[], None] | None = None,
        num_repeats: int | None = None,
        among: Collection[str] | None = None,
    ) -> dict[str, Measurement]:
        """Subject's name -> samples of `probe`. Subjects take turns, and another goes first in each repeat.

        num_repeats: None is as many as the lineup was made for.
        among: names of the subjects that take part; None is all.
        """
        num_repeats = num_repeats or self._num_repeats
        taking_part = [subject.name for subject in self.subjects if among is None or subject.name in among]
        samples: dict[str, list[Sample]] = {name: [] for name in taking_part}
        for repeat in range(num_repeats):
            if before_repeat is not None:
                before_repeat()
            subjects = [subject for subject in self.subjects if subject.name in samples]
            turn = repeat % max(1, len(subjects))
            for subject in subjects[turn:] + subjects[:turn]:
                self.say(f"{figure}: {subject.name}, repeat {repeat + 1} of {num_repeats}")
                try:
                    samples[subject.name].append(self._quietest(subject, probe, f"{figure}/{repeat}"))
                except SubjectFailed as error:
                    self._drop(subject, error)
        remaining = {subject.name for subject in self.subjects}
        return {name: Measurement(tuple(taken)) for name, taken in samples.items() if name in remaining}

    def _quietest(self, subject: Subject, probe: Probe, key: str) -> Sample:
        attempts: list[Sample] = []
        failure: AttemptFailed | None = None
        for attempt in range(self._num_attempts):
            window = self._watch(lambda: subject.pids)
            try:
                value = probe(subject, f"{key}/{attempt}")
            except AttemptFailed as error:
                failure = error
                continue
            attempts.append(Sample(value, window.share()))
            if not attempts[-1].is_disturbed:
                break
        if not attempts:
            raise SubjectFailed(str(failure))
        return min(attempts, key=lambda sample: sample.foreign_share)

    def _drop(self, subject: Subject, error: SubjectFailed) -> None:
        subject.close()
        self.subjects.remove(subject)
        self.notes.append(f"{subject.name} left: {error}")
        self.say(self.notes[-1])
