"""Probes: how each figure is taken from a subject. Definitions are the same for all, whatever a subject could tell itself."""

from __future__ import annotations

import statistics

from trierarch.benchmarks.lineup import Probe
from trierarch.benchmarks.subjects.subject import Subject, SubjectFailed
from trierarch.benchmarks.workload import Workload


def decode_rate(workload: Workload, prompt_length: int) -> Probe:
    """Tokens a second of one stream behind its first token: (n - 1) / (T(n tokens) - T(1 token)), other prompts each."""
    num_tokens = workload.num_output_tokens

    def probe(subject: Subject, key: str) -> float:
        first = subject.generate([workload.prompt(f"{key}/first", prompt_length)], 1).seconds
        whole = subject.generate([workload.prompt(f"{key}/whole", prompt_length)], num_tokens).seconds
        if whole <= first:
            raise SubjectFailed(f"{subject.name}: {num_tokens} tokens took {whole:.4f} s and one took {first:.4f} s")
        return (num_tokens - 1) / (whole - first)

    return probe


def time_to_first_token(workload: Workload, prompt_length: int) -> Probe:
    """Milliseconds of a prompt with one output token; the median of several prompts."""

    def probe(subject: Subject, key: str) -> float:
        prompts = workload.prompts(key, [prompt_length] * workload.num_ttft_calls)
        return 1000 * statistics.median(subject.generate([prompt], 1).seconds for prompt in prompts)

    return probe


def aggregate_rate(workload: Workload, concurrency: int) -> Probe:
    """Output tokens a second of `concurrency` prompts sent at once, from the first prompt's start to the last token."""

    def probe(subject: Subject, key: str) -> float:
        timing = subject.generate(workload.prompts(key, workload.spread(concurrency)), workload.num_output_tokens)
        return timing.num_tokens / timing.seconds

    return probe


def shared_prefix(workload: Workload) -> Probe:
    """Milliseconds until all of several prompts have their first token, when their long prefix was sent before."""

    def probe(subject: Subject, key: str) -> float:
        prefix = workload.prompt(f"{key}/prefix", workload.long_prompt)
        own = workload.prompts(f"{key}/own", [workload.num_own_tokens] * workload.num_prefix_sharers)
        subject.generate([prefix], 1)
        return 1000 * subject.generate([prefix + tail for tail in own], 1).seconds

    return probe


def distinct_prompts(workload: Workload) -> Probe:
    """The same as `shared_prefix` for as many prompts of the same length that share nothing."""
    lengths = [workload.long_prompt + workload.num_own_tokens] * workload.num_prefix_sharers

    def probe(subject: Subject, key: str) -> float:
        return 1000 * subject.generate(workload.prompts(key, lengths), 1).seconds

    return probe


def warm_up(workload: Workload, subject: Subject) -> None:
    """Let the subject see every shape once, so that no measured call pays for what happens only the first time."""
    for length in (workload.short_prompt, workload.long_prompt):
        subject.generate([workload.prompt(f"warm-up/{length}", length)], 4)
    for concurrency in workload.concurrencies:
        subject.generate(workload.prompts(f"warm-up/x{concurrency}", workload.spread(concurrency)), 4)
    shared_prefix(workload)(subject, "warm-up/shared")
