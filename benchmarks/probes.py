"""Probes: how each figure is taken from a subject. Definitions are the same for all, whatever a subject could tell itself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from trierarch.benchmarks.lineup import Probe
from trierarch.benchmarks.subjects.subject import AttemptFailed, Subject, SubjectFailed
from trierarch.benchmarks.workers.protocol import TokenIds
from trierarch.benchmarks.workload import Workload


def decode_rate(workload: Workload, prompt_length: int, concurrency: int = 1) -> Probe:
    """Tokens a second of all streams behind their first: c (n - 1) / (T(n tokens) - T(1 token)), other prompts each."""
    lengths = [prompt_length] * concurrency

    def probe(subject: Subject, key: str) -> float:
        first, whole = workload.prompts(f"{key}/first", lengths), workload.prompts(f"{key}/whole", lengths)
        return rate_behind_first(workload, subject, first, whole)

    return probe


def cached_decode_rate(workload: Workload, prompt_length: int) -> Probe:
    """The same of one stream and one prompt that was sent before: a long one's own time would drown the difference."""

    def probe(subject: Subject, key: str) -> float:
        prompts = [workload.prompt(key, prompt_length)]
        subject.generate(prompts, 1)
        return rate_behind_first(workload, subject, prompts, prompts)

    return probe


def rate_behind_first(workload: Workload, subject: Subject, first: list[TokenIds], whole: list[TokenIds]) -> float:
    """Tokens a second of `whole` behind the first, that of `first` taken off."""
    num_tokens = workload.num_output_tokens
    seconds_of_first = subject.generate(first, 1).seconds
    seconds = subject.generate(whole, num_tokens).seconds
    if seconds <= seconds_of_first:
        raise AttemptFailed(
            f"{subject.name}: {num_tokens} tokens took {seconds:.4f} s and one took {seconds_of_first:.4f} s"
        )
    return len(whole) * (num_tokens - 1) / (seconds - seconds_of_first)


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


def host_overhead(workload: Workload, concurrency: int) -> Probe:
    """Percent of a decode step of `concurrency` sequences that is not spent in the compiled kernels."""

    def probe(subject: Subject, key: str) -> float:
        counters = _step_counters(workload, concurrency, subject, key)
        return 100 * (1 - counters["kernel_seconds"] / counters["step_seconds"])

    return probe


def sampling_share(workload: Workload, concurrency: int) -> Probe:
    """Percent of such a step that the sampler takes; part of the host's overhead."""

    def probe(subject: Subject, key: str) -> float:
        counters = _step_counters(workload, concurrency, subject, key)
        return 100 * counters["sampling_seconds"] / counters["step_seconds"]

    return probe


def _step_counters(workload: Workload, concurrency: int, subject: Subject, key: str) -> Mapping[str, float]:
    """Of the steps that decode one token of each of `concurrency` prompts and do nothing else."""
    prompts = workload.prompts(key, workload.spread(concurrency))
    counters = subject.generate(prompts, workload.num_output_tokens).counters
    if not counters.get("kernel_seconds"):
        raise SubjectFailed(f"{subject.name}: no step of {concurrency} sequences ran compiled kernels")
    return counters


def start_and_warm_up(workload: Workload, subject: Subject) -> None:
    """For a subject that joins late."""
    subject.start()
    warm_up(workload, subject)


def warm_up(workload: Workload, subject: Subject) -> None:
    """Let the subject see every shape once, so that no measured call pays for what happens only the first time."""
    for length in (workload.short_prompt, workload.long_prompt):
        subject.generate([workload.prompt(f"warm-up/{length}", length)], 4)
    for concurrency in workload.concurrencies:
        subject.generate(workload.prompts(f"warm-up/x{concurrency}", workload.spread(concurrency)), 4)
    shared_prefix(workload)(subject, "warm-up/shared")
