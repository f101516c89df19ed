"""Scheduler: decides what each step computes, and turns what it drew into deltas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from trierarch.python_backend.adapters.pool import AdapterPool
from trierarch.python_backend.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, ServingError
from trierarch.python_backend.kv.integrity import require
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import FinishReason, Request, TokenDelta
from trierarch.python_backend.scheduling.adapter_gate import AdapterGate
from trierarch.python_backend.scheduling.admission import check_request, queue_is_full
from trierarch.python_backend.scheduling.ahead import Guesses, give_behind, is_blind
from trierarch.python_backend.scheduling.batch import RunningBatch
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.deadlines import Deadlines
from trierarch.python_backend.scheduling.guide_gate import GuideGate, Verdicts
from trierarch.python_backend.scheduling.integrity import check_places
from trierarch.python_backend.scheduling.live_request import LiveRequest
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, SequenceOutput, StepOutput
from trierarch.python_backend.scheduling.queue import WaitingQueue
from trierarch.python_backend.scheduling.stats import SchedulerStats
from trierarch.python_backend.scheduling.step import Step
from trierarch.python_backend.sequence import Sequence, SequenceStatus


class Scheduler:
    """Holds every live request; pure bookkeeping, no thread of its own and no lock.

    `add`, `abort` and `fail` may come at any time between other calls, even between `schedule` and `update`: what
    ended meanwhile is left out of `update`. Times are nanoseconds of `clock`, which must be the clock of the
    requests' arrival times and deadlines.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KVCacheManager,
        end_ids: tuple[int, ...],
        clock: Callable[[], int] = time.monotonic_ns,
        adapters: AdapterPool | None = None,
        guides: Verdicts | None = None,
    ) -> None:
        """`end_ids` end the sequences of requests that name none of their own.

        `adapters` None takes no adapters, `guides` None no guides.
        """
        self.config = config
        self.adapters = adapters
        self.outbox: list[TokenDelta] = []
        """Deltas since the last `take_deltas`."""
        self.num_queued_requests = 0
        """Requests none of whose sequences has started."""
        self.num_steps = 0
        self._kv = kv
        self._end_ids = end_ids
        self._clock = clock
        self._live: dict[str, LiveRequest] = {}
        self._waiting = WaitingQueue(config.ageing_seconds)
        self._running = RunningBatch(config, kv, adapters)
        self._gate = None if adapters is None else AdapterGate(adapters, config.adapter_patience_seconds)
        self._guide_gate = None if guides is None else GuideGate(guides)
        self._next_sequence_id = 0
        self._deadlines = Deadlines()
        self._last_plan = Plan(())
        self._has_passed_over = False
        """Whether a plan made ahead left out somebody who could start in any other: the next one is not made ahead then."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything, be it only to tell the runner who has ended."""
        return bool(self._live or self._running.num_stopped)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it can never run, or its id is taken by a live request.
            UnknownAdapter: it has an adapter, and there is no place for any.
            Overloaded: the queue is full. A request counts once, however many sequences it asks for.
        """
        check_request(request, self.config, self._kv, self.adapters is not None, self._guide_gate is not None)
        if request.request_id in self._live:
            raise InvalidRequest("request_id", request.request_id, "is in use; give each live request its own")
        if self.num_queued_requests >= self.config.max_queue_size and not request.is_continuation:
            raise Overloaded(queue_is_full(self.config.max_queue_size))
        live = LiveRequest.create(request, self._end_ids, self._next_sequence_id)
        self._next_sequence_id += len(live.sequences)
        self._live[request.request_id] = live
        self._waiting.push(live.sequences[0])
        self.num_queued_requests += 1
        if self.adapters is not None and request.adapter is not None:
            self.adapters.cache.want(request.adapter)
        if self._guide_gate is not None:
            self._guide_gate.want(request)
        self._deadlines.add(request)

    def abort(
        self,
        request_id: str,
        reason: FinishReason = FinishReason.CANCELLED,
        error: ServingError | None = None,
        index: int | None = None,
    ) -> None:
        """End a request, or only its sequence `index`, and free its blocks; nothing happens if it is unknown or over.

        `error` goes with the last deltas; where none is given, CANCELLED comes with Cancelled.
        """
        live = self._live.get(request_id)
        if live is None:
            return
        if error is None and reason is FinishReason.CANCELLED:
            error = Cancelled(f"request {request_id!r} was cancelled")
        chosen = live.sequences if index is None else live.sequences[index : index + 1]
        for sequence in chosen:
            if sequence.status is not SequenceStatus.FINISHED:
                self._end(live, sequence, reason, error)

    def fail(self, error: ServingError, sequence_ids: Iterable[int] | None = None) -> None:
        """End the running sequences of `sequence_ids`, or all that live, with ERROR: their step failed."""
        if sequence_ids is None:
            for request_id in list(self._live):
                self.abort(request_id, FinishReason.ERROR, error)
            return
        failed = set(sequence_ids)
        for sequence in self._running:
            if sequence.sequence_id in failed:
                self._end(self._live[sequence.request.request_id], sequence, FinishReason.ERROR, error)

    def schedule(self) -> Plan:
        """Decide the next step.

        There is no prefill phase and no decode phase. A sequence has known tokens (its prompt, then what was drawn)
        and computed ones (whose KV is in its blocks), and a step hands out a budget of tokens so that the second
        catch up with the first; whoever catches up draws a token, which is known from then on. Long prompts computed
        in chunks, cached prefixes, recomputing after preemption, siblings that share a prompt and drafts (tokens
        known on trial) are all no more than other starting points of the same race. Those that run go first, in the
        order they started; then the most urgent waiting ones start, none overtaking but for the sake of adapters, guides
        (see AdapterGate and GuideGate) and blocks that come back (see KVCacheManager.recall). When blocks run out the
        least urgent running sequence is preempted, so the most urgent one always moves. The plan is empty while all that
        live wait for adapters to be loaded, guides to be compiled or blocks to come back.
        """
        now = self._clock()
        self._end_hopeless(now)
        self._has_passed_over = False
        step = Step(self.config.token_budget)
        num_stopped = self._running.num_stopped
        self._schedule_running(step)
        if self._running.num_stopped == num_stopped:  # A preempted sequence may not come back in the same step.
            self._schedule_waiting(step, now)
        self._last_plan = Plan(step.scheduled(), self._running.take_stopped())
        return self._last_plan

    def schedule_ahead(self, flight: Plan, guesses: Guesses) -> Plan | None:
        """The step behind `flight`, the last one planned, which runs; None where it cannot be planned yet. See ahead.py.

        flight: one that `may_launch`. The plan is complete: it takes neither drafts nor guides.
        """
        now = self._clock()
        self._end_hopeless(now)
        step = Step(self.config.token_budget)
        if self._has_passed_over or not give_behind(flight, self._running, step, guesses):
            return None
        if not self._running.hold(step.scheduled()):
            return None  # somebody has to be preempted
        self._schedule_waiting(step, now, lambda share: is_blind(share, guesses))
        if not step.scheduled():
            return None
        self._last_plan = Plan(step.scheduled(), self._running.take_stopped())
        return self._last_plan

    def with_drafts(self, plan: Plan, drafts: Mapping[int, tuple[int, ...]]) -> Plan:
        """`plan` with drafts to verify behind the known tokens of sequences that draw, as far as there is room for them.

        drafts: sequence_id -> guessed tokens. To be called right after `schedule`, if at all.
        """
        if not drafts:
            return plan
        scheduled = tuple(self._running.with_draft(item, drafts) for item in plan.scheduled)
        self._last_plan = replace(plan, scheduled=scheduled)
        return self._last_plan

    def with_guides(self, plan: Plan, masks: Mapping[int, tuple[bytes, ...]], over: Iterable[int]) -> Plan:
        """`plan` with what guides allow, without those that are still to be told, and without those that are `over`.

        masks: sequence_id -> as ScheduledSequence.masks; drafts beyond them are dropped. over: ids of sequences whose
        output is complete: they end. To be called before the plan is run, where any of its sequences has a guide.
        """
        for item in plan.scheduled:
            if item.sequence.sequence_id in over and item.sequence.status is SequenceStatus.RUNNING:
                self._end(self._live[item.sequence.request.request_id], item.sequence, FinishReason.STOP)
        scheduled = (_guided(item, masks) for item in plan.scheduled)
        self._last_plan = replace(plan, scheduled=tuple(item for item in scheduled if item is not None))
        return self._last_plan

    def update(self, plan: Plan, output: StepOutput, ahead: Plan | None = None) -> None:
        """Take in what a step computed and drew; deltas go to the outbox. ahead: the step behind it, if it is in flight.

        Raises:
            RuntimeError: the runner broke the contract of StepOutput; `fail` is what remains to be called.
        """
        now = self._clock()
        self.num_steps += 1
        held = {} if ahead is None else {item.sequence.sequence_id: item.end for item in ahead.scheduled}
        for item in plan.scheduled:
            if item.sequence.status is SequenceStatus.RUNNING:
                sequence_id = item.sequence.sequence_id
                drawn = output.outputs.get(sequence_id, SequenceOutput())
                self._update_sequence(item, drawn, held.get(sequence_id, 0), now)

    def take_deltas(self) -> list[TokenDelta]:
        """Empty the outbox."""
        deltas, self.outbox = self.outbox, []
        return deltas

    def stats(self) -> SchedulerStats:
        """A snapshot; what concerns a step is of the last one planned."""
        plan, kv = self._last_plan, self._kv
        return SchedulerStats(
            num_active_requests=len(self._live),
            num_scheduled_requests=plan.num_requests,
            num_context_requests=plan.num_context_requests,
            num_context_tokens=plan.num_context_tokens,
            num_paused_requests=self._waiting.num_paused_requests,
            max_requests=self.config.max_batch_size,
            num_steps=self.num_steps,
            max_blocks=kv.num_blocks,
            used_blocks=kv.num_used_blocks,
            free_blocks=kv.num_free_blocks,
            reused_blocks=kv.num_reused_blocks,
            tokens_per_block=kv.block_size,
            used_slots=kv.num_used_slots(self._running),
            cached_blocks=0 if kv.cache is None else len(kv.cache),
            stored_blocks=0 if kv.cache is None else kv.cache.num_stored,
            removed_blocks=0 if kv.cache is None else kv.cache.num_removed,
        )

    def requests(self) -> list[Request]:
        """All that live."""
        return [live.request for live in self._live.values()]

    def seconds_to_deadline(self) -> float | None:
        """After which `schedule` may end a request for its deadline; None is never."""
        return self._deadlines.seconds_left(self._clock())

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every live sequence is in exactly one place and what they hold adds up."""
        self._kv.check_integrity(self._running)
        check_places(self._live.values(), self._waiting, self._running)
        if self.adapters is not None:
            self.adapters.check_integrity(s.adapter for s in self._running if s.adapter is not None)
        require(self.num_queued_requests == sum(live.is_queued for live in self._live.values()), "queue is miscounted")

    def _end_hopeless(self, now: int) -> None:
        """End requests that are overdue, and those that wait for an adapter or a guide that will not come."""
        for request in self._deadlines.overdue(self.requests, now):
            error = DeadlineExceeded(f"request {request.request_id!r} did not finish before its deadline")
            self.abort(request.request_id, FinishReason.TIMEOUT, error)
        if self._gate is not None:
            for refused, reason in self._gate.look_ahead(self._waiting):
                self.abort(refused.request_id, FinishReason.ERROR, reason)
        if self._guide_gate is not None:
            for refused, reason in self._guide_gate.refused(self._waiting):
                self.abort(refused.request_id, FinishReason.ERROR, reason)

    def _schedule_running(self, step: Step) -> None:
        for sequence in self._running:
            if step.num_tokens_left == 0:
                break
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # Preempted a moment ago for one that started earlier.
            num_tokens = min(len(sequence.token_ids) - sequence.num_computed_tokens, step.num_tokens_left)
            while not self._running.grow(sequence, num_tokens):
                victim = self._running.least_urgent()
                self._preempt(victim)
                step.take_back(victim)
                if victim is sequence:
                    break
            else:
                step.give(ScheduledSequence.of(sequence, sequence.num_computed_tokens, num_tokens))

    def _schedule_waiting(
        self, step: Step, now: int, may_start: Callable[[ScheduledSequence], bool] | None = None
    ) -> None:
        """`may_start` None lets every sequence start with its share."""
        if not step.num_tokens_left or self._running.is_full:
            return
        waiting = self._waiting.in_turn()
        if self._guide_gate is not None:
            waiting = self._guide_gate.startable(waiting)
        if self._gate is not None:
            waiting = self._gate.startable(waiting, now)
        for sequence in waiting:
            if self._kv.is_recalling(sequence):
                continue
            prefix = self._match(sequence)
            if not self._running.fits(sequence, prefix):
                break
            if self._recall(sequence, prefix):
                continue
            num_tokens = sequence.num_tokens - len(prefix) * self._kv.block_size
            if num_tokens > step.num_tokens_left and not self.config.enable_chunked_prefill:
                break
            num_tokens = min(num_tokens, step.num_tokens_left)
            share = ScheduledSequence.of(sequence, len(prefix) * self._kv.block_size, num_tokens)
            if may_start is not None and not may_start(share):
                self._has_passed_over = True
                break
            self._waiting.discard(sequence)
            if not self._start(sequence, prefix, now):
                self._waiting.push(sequence)
                continue
            self._running.grow(sequence, num_tokens)
            step.give(share)
            if not step.num_tokens_left or self._running.is_full:
                break

    def _match(self, sequence: Sequence) -> list[int]:
        live = self._live[sequence.request.request_id]
        if live.wants_prompt_told(sequence):
            return []  # Every position's logits are needed, so every position is computed.
        return self._kv.match(sequence, (s for s in live.sequences if s.status is SequenceStatus.RUNNING))

    def _recall(self, sequence: Sequence, prefix: list[int]) -> bool:
        """Whether blocks come back for a sequence, so that others go first; if there are any, they are asked for."""
        live = self._live[sequence.request.request_id]
        return not live.wants_prompt_told(sequence) and self._kv.recall(sequence, prefix)

    def _start(self, sequence: Sequence, prefix: list[int], now: int) -> bool:
        live = self._live[sequence.request.request_id]
        if not self._running.start(sequence, prefix, now):
            return False
        self.num_queued_requests -= live.is_queued
        live.is_queued = False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.stop(sequence, SequenceStatus.PREEMPTED)
        sequence.num_preemptions += 1
        self._waiting.push(sequence)

    def _update_sequence(self, item: ScheduledSequence, output: SequenceOutput, num_held: int, now: int) -> None:
        """num_held: of its tokens, for whose blocks see KVCacheManager.advance."""
        sequence, drawn = item.sequence, output.token_ids
        if bool(drawn) != item.samples or len(drawn) > len(item.draft_token_ids) + 1:
            raise RuntimeError(f"sequence {sequence.sequence_id}: the runner drew {len(drawn)} tokens for {item}")
        live = self._live[sequence.request.request_id]
        prompt_logprobs = live.take_prompt_logprobs(item, output)
        context_logits = live.take_context_logits(item, output)
        embedding = live.take_embedding(item, output)
        if not item.samples:
            self._kv.advance(sequence, item.end, num_held)
            return
        num_accepted = len(drawn) - 1
        sequence.num_draft_tokens += len(item.draft_token_ids)
        sequence.num_accepted_draft_tokens += num_accepted
        num_shown, reason = live.append_drawn(sequence, drawn)
        self._kv.advance(sequence, min(item.end + num_accepted, len(sequence.token_ids)), num_held)
        if live.held_back:
            self._release_siblings(live, sequence, now)
        delta = TokenDelta(
            request_id=live.request.request_id,
            index=sequence.index,
            token_ids=drawn[:num_shown],
            logprobs=None if output.logprobs is None else output.logprobs[:num_shown],
            prompt_logprobs=prompt_logprobs,
            context_logits=context_logits,
            embedding=embedding,
            generation_logits=None if output.generation_logits is None else output.generation_logits[:num_shown],
        )
        sequence.first_token_ns = sequence.first_token_ns or now
        sequence.last_token_ns = now
        if reason is None:
            self.outbox.append(delta)
        else:
            self._end(live, sequence, reason, delta=delta)

    def _release_siblings(self, live: LiveRequest, leader: Sequence, now: int) -> None:
        """Start the held-back siblings on the prompt blocks of `leader`, or queue those that find no place."""
        held_back, live.held_back = live.held_back, []
        for sibling in held_back:
            may_start = leader.status is SequenceStatus.RUNNING and not self._running.is_full
            if not may_start or not self._start(sibling, self._kv.match(sibling, [leader]), now):
                self._waiting.push(sibling)

    def _end(
        self,
        live: LiveRequest,
        sequence: Sequence,
        reason: FinishReason,
        error: ServingError | None = None,
        delta: TokenDelta | None = None,
    ) -> None:
        """End a sequence wherever it stands; `delta` has the last tokens it drew, if any."""
        if sequence.status is SequenceStatus.RUNNING:
            self._running.stop(sequence, SequenceStatus.FINISHED)
        elif sequence in live.held_back:
            live.held_back.remove(sequence)
        else:
            self._waiting.discard(sequence)
        sequence.status, sequence.finish_reason = SequenceStatus.FINISHED, reason
        delta = delta or TokenDelta(request_id=live.request.request_id, index=sequence.index, token_ids=())
        self.outbox.append(replace(delta, finish_reason=reason, usage=live.usage(sequence), error=error))
        live.num_unfinished -= 1
        if live.num_unfinished == 0:
            del self._live[live.request.request_id]
            self.num_queued_requests -= live.is_queued
        elif live.held_back and sequence.index == 0:
            self._release_siblings(live, sequence, self._clock())


def _guided(item: ScheduledSequence, masks: Mapping[int, tuple[bytes, ...]]) -> ScheduledSequence | None:
    """A share of a step with what its guide allows; None where that is not known."""
    if not item.samples or item.sequence.request.sampling.guide is None:
        return item
    its = masks.get(item.sequence.sequence_id)
    return None if its is None else replace(item, draft_token_ids=item.draft_token_ids[: len(its) - 1], masks=its)
