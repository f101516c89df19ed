"""Anything may happen to the scheduler in any order; whatever does, the invariants hold and everyone is served."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.checking_runner import alone
from support.scheduling import World, make_request

from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, Overloaded
from trierarch.python_backend.request import FinishReason, Request
from trierarch.python_backend.sequence import SequenceStatus

VOCAB_SIZE = 3
SPAN = 12
"""max_seq_len: tiny, as the vocabulary is, so that equal prefixes and full pools come fast."""

words = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=3).map(tuple)
requests = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=SPAN - 2).map(tuple),
        "max_tokens": st.integers(1, SPAN - 1),
        "n": st.integers(1, 3),
        "priority": st.integers(-2, 2),
        "adapter": st.sampled_from(["", "", "x"]),
        "cache_salt": st.sampled_from(["", "", "s"]),
        "stop_words": st.lists(words, max_size=1).map(tuple),
        "end_ids": st.sampled_from([None, None, (), (1, 2)]),
        "prompt_logprobs": st.sampled_from([None, None, 0]),
        "patience": st.sampled_from([None, None, 0, 1, 5]),
    }
)


class SchedulerMachine(RuleBasedStateMachine):
    """The World under random arrivals, ends, failures and steps; `CheckingRunner` checks what every step reads."""

    @initialize(
        num_blocks=st.integers(1, 12),
        block_size=st.integers(1, 4),
        enable_prefix_caching=st.booleans(),
        end_ids=st.sampled_from([(), (2,)]),
        max_batch_size=st.integers(1, 4),
        max_num_tokens=st.integers(1, 9),
        max_queue_size=st.integers(1, 5),
        enable_chunked_prefill=st.booleans(),
        guesses=st.lists(st.booleans(), max_size=3).map(tuple),
    )
    def build(self, guesses: tuple[bool, ...], **fields: Any) -> None:
        self.world = World(
            **fields, guesses=guesses, num_lookahead_tokens=len(guesses), max_seq_len=SPAN, vocab_size=VOCAB_SIZE
        )
        self.requests: dict[str, Request] = {}
        self.disturbed: set[tuple[str, int]] = set()
        """Sequences that were told to end."""

    @rule(fields=requests)
    def add(self, fields: dict[str, Any]) -> None:
        patience = fields.pop("patience")
        deadline = None if patience is None else self.world.now + patience
        request = make_request(
            str(len(self.requests)), **fields, arrival_time=self.world.now, deadline=deadline, min_tokens=0
        )
        try:
            self.world.scheduler.add(request)
        except InvalidRequest:
            num_tokens = len(request.prompt_token_ids) + request.sampling.max_tokens
            assert num_tokens > SPAN or self.world.kv.num_blocks_for(num_tokens - 1) > self.world.kv.num_blocks
        except Overloaded:
            assert self.world.scheduler.num_queued_requests == self.world.config.max_queue_size
        else:
            self.requests[request.request_id] = request

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        index = data.draw(st.sampled_from([None, *range(self.requests[name].sampling.n)]))
        self.world.scheduler.abort(name, index=index)
        chosen = range(self.requests[name].sampling.n) if index is None else [index]
        self.disturbed |= {(name, index) for index in chosen}

    @precondition(lambda self: self.world.sequences)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.world.sequences)))
        self.world.scheduler.fail(ExecutorFailed("on purpose"), [self.world.sequences[place].sequence_id])
        self.disturbed.add(place)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step()

    @rule(data=st.data())
    def cancel_during_a_step(self, data: st.DataObject) -> None:
        world = self.world
        plan = world.runner.with_drafts(world.scheduler.schedule())
        world.note(plan)
        output = world.runner.run(plan)
        if self.requests:
            self.cancel(data)
        world.scheduler.update(plan, output)

    @invariant()
    def everything_adds_up(self) -> None:
        world = self.world
        world.collect()
        world.scheduler.check_integrity()
        stats = world.scheduler.stats()
        running = [s for s in world.sequences.values() if s.status is SequenceStatus.RUNNING]
        assert stats.used_blocks + stats.free_blocks == stats.max_blocks
        num_allocated = stats.used_blocks * stats.tokens_per_block
        assert 0 <= num_allocated - stats.used_slots <= (stats.tokens_per_block - 1) * len(running)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world, num_steps = self.world, 0
        while world.scheduler.has_work:
            self._step()
            num_steps += 1
            assert num_steps < 100 + 10 * SPAN * sum(request.sampling.n for request in self.requests.values())
        world.collect()
        assert world.kv.num_used_blocks == 0
        assert world.kv.pool.num_free_blocks == world.kv.num_blocks
        for name, request in self.requests.items():
            for index in range(request.sampling.n):
                self._check_stream(name, index, request)

    def _step(self) -> None:
        world, had_work = self.world, self.world.scheduler.has_work
        was_live = world.scheduler.stats().num_active_requests > 0
        plan = world.step()
        assert len(plan.scheduled) <= world.config.max_batch_size
        assert sum(item.num_tokens for item in plan.scheduled) <= world.config.token_budget
        assert had_work or not (plan.scheduled or plan.finished_sequence_ids)
        if was_live and world.scheduler.stats().num_active_requests and not plan.scheduled:
            raise AssertionError("requests live, and nothing is computed")

    def _check_stream(self, name: str, index: int, request: Request) -> None:
        stream = self.world.deltas[name, index]
        last, output = stream[-1], self.world.output(name, index)
        assert [delta.finish_reason is None for delta in stream] == [True] * (len(stream) - 1) + [False]
        assert last.usage is not None
        assert last.usage.num_output_tokens == len(output)
        tokens, reason = alone(request, index, VOCAB_SIZE, self.world.end_ids)
        if last.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert (output, last.finish_reason) == (tokens, reason)
        else:
            assert (name, index) in self.disturbed or last.finish_reason is FinishReason.TIMEOUT
            assert output == tokens[: len(output)]
        logprobs = [delta.prompt_logprobs for delta in stream if delta.prompt_logprobs is not None]
        if index == 0 and request.sampling.prompt_logprobs is not None and output:
            (prompt_logprobs,) = logprobs
            found = [None if entry is None else entry.token_id for entry in prompt_logprobs]
            assert found == [None, *request.prompt_token_ids[1:]]
        else:
            assert len(logprobs) <= (index == 0)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
