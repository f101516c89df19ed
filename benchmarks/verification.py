"""Verification: whether a subject runs the checkpoint it claims, seen from what it answers."""

from __future__ import annotations

from typing import Final

from trierarch.benchmarks.subjects.subject import Subject

# "What is gravity?" in SmolLM2-Instruct's chat template, and what transformers answers in float32. In bfloat16 engines
# part ways later at near-ties, none of them within the first eight tokens.
_PROMPT: Final = (
    "1 9690 198 2683 359 253 5356 5646 11173 3365 3511 308 34519 28 7018 411 407 19712 8182 2 198 "
    "1 4093 198 1780 314 9354 47 2 198 1 520 9531 198"
)
_ANSWER: Final = "22007 6463 314 253 4959 1909 281 6944"
PROMPT: Final = [int(token) for token in _PROMPT.split()]
ANSWER: Final = [int(token) for token in _ANSWER.split()]


def doubt(subject: Subject) -> str | None:
    """What is wrong with the subject's greedy answer; None if nothing is. Raises SubjectFailed."""
    token_ids = subject.generate([PROMPT], len(ANSWER)).token_ids[0]
    if token_ids == ANSWER:
        return None
    return f"{subject.name} is doubtful: it answers the reference prompt with {token_ids} instead of {ANSWER}"
