"""Ordeal: everything that can happen to a scheduler, with the checks that must hold whatever does."""

from __future__ import annotations

from random import Random

from support.checking_runner import alone
from support.memory_adapters import make_adapter
from support.scheduling import World, make_request
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, Overloaded
from trierarch.python_backend.request import FinishReason, Request
from trierarch.python_backend.sequence import SequenceStatus

VOCAB_SIZE = 3
MAX_SEQ_LEN = 16
"""Tiny, as the vocabulary is, so that equal prefixes and full pools come fast."""
ADAPTER_NAMES = ("a", "b", "c", "d", "e")
MAX_ADAPTER_BYTES = 4
"""Of weights; the draft model's take one byte more."""
PROMPTS = ((0, 1, 1, 0, 1, 0, 0, 1), (0, 1, 1, 0, 0, 1, 1, 0), (1, 0, 0, 1, 0, 1, 1, 0))


def random_world(seed: int) -> World:
    """A scheduler with tiny limits and a small pool."""
    random = Random(seed)
    guesses = tuple(random.random() < 0.7 for _ in range(random.choice((0, 0, 1, 3))))
    return World(
        num_blocks=random.randint(4, 12),
        block_size=random.randint(1, 3),
        enable_prefix_caching=random.random() < 0.7,
        end_ids=random.choice(((), (2,))),
        vocab_size=VOCAB_SIZE,
        guesses=guesses,
        max_batch_size=random.randint(1, 5),
        max_num_tokens=random.randint(1, 9),
        max_queue_size=random.randint(2, 8),
        max_seq_len=MAX_SEQ_LEN,
        enable_chunked_prefill=random.random() < 0.7,
        max_adapters=random.randint(1, 3),
        host_bytes=random.randint(MAX_ADAPTER_BYTES + 1, 12),
        adapter_patience_seconds=random.choice((0.0, 1.0)),
        tiers=random.choice(((0, 0), (random.randint(1, 6), 0), (random.randint(1, 4), random.randint(1, 6)))),
    )


class Ordeal:
    """A world, what was asked of it, and what was done to it. Each deed draws what it needs from a seed."""

    def __init__(self, seed: int) -> None:
        self.world = random_world(seed)
        self.world.loads_amid_steps = seed % 3 == 0
        self.requests: dict[str, Request] = {}
        self.faulty: set[str] = set()
        """Digests of versions that cannot be loaded"""
        self._versions: dict[str, Adapter] = {}  # name -> what it means now
        self._num_versions = 0
        self.num_ahead = 0
        """Steps that were planned while those before them ran"""
        self.disturbed: set[tuple[str, int]] = set()
        """(request id, index) of sequences that were told to end"""

    def arrive(self, seed: int) -> None:
        """A request comes, and is taken in unless it is invalid or the queue is full."""
        random, world = Random(seed), self.world
        patience = random.choice((None, None, None, 0, 1, 5))
        request = make_request(
            str(len(self.requests)),
            prompt=random.choice(PROMPTS)[: random.randint(1, 8)],
            max_tokens=random.randint(1, 9),
            n=random.choice((1, 1, 2, 3)),
            priority=random.randint(-1, 1),
            adapter=None if random.random() < 0.4 else self._version(random.choice(ADAPTER_NAMES)),
            cache_salt=random.choice(("", "", "", "s")),
            stop_words=random.choice(((), (), ((0, 0),), ((1,), (2, 0, 1)))),
            end_ids=random.choice((None, None, (), (1, 2))),
            prompt_logprobs=random.choice((None, None, 0)),
            arrival_time=world.now,
            deadline=None if patience is None else world.now + patience,
        )
        try:
            world.scheduler.add(request)
        except InvalidRequest:
            num_tokens = len(request.prompt_token_ids) + request.sampling.max_tokens
            assert num_tokens > MAX_SEQ_LEN or world.kv.num_blocks_for(num_tokens - 1) > world.kv.num_blocks
        except Overloaded:
            assert world.scheduler.num_queued_requests == world.config.max_queue_size
        else:
            self.requests[request.request_id] = request

    def load(self, seed: int = 0) -> None:
        """The loader's thread gets to run."""
        self.world.load()

    def copy(self, seed: int) -> None:
        """One of the mover's threads gets through one copy, or finds that it cannot."""
        if self.world.mover is not None:
            self.world.mover.finish_one(Random(seed))

    def replace_adapter(self, seed: int) -> None:
        """A name means another version from now on; or it is deleted, and then put back."""
        name = Random(seed).choice(ADAPTER_NAMES)
        self._versions.pop(name, None)

    def _version(self, name: str) -> Adapter:
        """The version of that name; some are damaged, some are too large, and few are as large as they look."""
        if name not in self._versions:
            self._num_versions += 1
            random = Random(self._num_versions)
            num_bytes = random.randint(1, MAX_ADAPTER_BYTES) if random.random() < 0.9 else 100
            fault = "damaged" if random.random() < 0.1 else None
            adapter = make_adapter(name, self._num_versions, num_bytes, fault, guess=random.randint(0, 6))
            self._versions[name] = adapter
            if fault or num_bytes > MAX_ADAPTER_BYTES:
                self.faulty.add(adapter.digest)
        return self._versions[name]

    def cancel(self, seed: int) -> None:
        """A request, or one of its sequences, is told to end; it may not have started, or be over."""
        random = Random(seed)
        if self.requests:
            name = random.choice(sorted(self.requests))
            indices = range(self.requests[name].sampling.n)
            index = random.choice((None, *indices))
            self.world.scheduler.abort(name, index=index)
            self.disturbed |= {(name, i) for i in (indices if index is None else [index])}

    def fail(self, seed: int) -> None:
        """A sequence's step fails."""
        if self.world.sequences:
            place = Random(seed).choice(sorted(self.world.sequences))
            self.world.scheduler.fail(ExecutorFailed("on purpose"), [self.world.sequences[place].sequence_id])
            self.disturbed.add(place)

    def cancel_during_a_step(self, seed: int) -> None:
        """As `cancel`, between schedule and update."""
        world = self.world
        plan = world.plan()
        world.note(plan)
        output = world.run_plan(plan)
        self.cancel(seed)
        world.scheduler.update(plan, output)

    def wait(self, seed: int) -> None:
        """Time passes."""
        self.world.now += Random(seed).choice((0.5, 3.0))

    def step(self, seed: int = 0) -> None:
        """One turn of the loop, within the limits and never idle while a request lives."""
        world = self.world
        plan = world.plan()
        if not plan.scheduled and not (
            world.mover is not None and world.mover.is_recalling
        ):  # Then all wait for a disk.
            live = [request.adapter_digest for request in world.scheduler.requests()]
            assert all(digest and world.cache.get(digest) is None for digest in live)
        world.note(plan)
        world.scheduler.update(plan, world.run_plan(plan))
        world.collect()
        world.scheduler.check_integrity()
        assert len(plan.scheduled) <= world.config.max_batch_size
        assert sum(item.num_tokens for item in plan.scheduled) <= world.config.token_budget

    def fly(self, seed: int) -> None:
        """A few steps, planned ahead while those before them run; requests come and end meanwhile, and the last may be lost."""
        random = Random(seed)
        deeds = [self.arrive, self.cancel, self.load, self.copy, self.wait, self.fail]

        def meanwhile() -> None:
            if random.random() < 0.2:
                random.choice(deeds)(random.randrange(2**32))

        drops_last = random.random() < 0.3
        self.num_ahead += self.world.fly(random.randint(1, 6), meanwhile, drops_last)
        if drops_last:  # What was planned in vain holds blocks until it is planned again.
            self.step()

    def check(self) -> None:
        """All that must hold between any two deeds."""
        world = self.world
        world.collect()
        world.scheduler.check_integrity()
        stats = world.scheduler.stats()
        num_running = sum(s.status is SequenceStatus.RUNNING for s in world.sequences.values())
        assert world.adapters is not None
        assert world.adapters.slots.num_active <= world.adapters.slots.num_slots
        assert world.cache.num_bytes <= world.cache.max_bytes
        assert stats.used_blocks + stats.free_blocks == stats.max_blocks
        num_wasted_slots = stats.used_blocks * stats.tokens_per_block - stats.used_slots
        assert 0 <= num_wasted_slots <= (stats.tokens_per_block - 1) * num_running

    def finish(self) -> None:
        """Let everything end, in a bounded number of steps, and compare every stream with the slow obvious way."""
        max_steps = 100 + 10 * MAX_SEQ_LEN * sum(request.sampling.n for request in self.requests.values())
        for turn in range(max_steps):
            if not self.world.scheduler.has_work:
                break
            if not self.world.loads_amid_steps:
                self.load()
            if self.world.mover is not None:
                self.world.mover.finish()
            (self.fly if turn % 3 == 0 else self.step)(turn)
            self.check()
        if self.world.mover is not None:
            self.world.mover.finish()
        self.check()
        assert not self.world.scheduler.has_work
        assert self.world.kv.num_free_blocks == self.world.kv.num_blocks
        assert self.world.adapters is not None
        self.world.adapters.check_integrity([])
        for name, request in self.requests.items():
            for index in range(request.sampling.n):
                self._check_stream(name, index, request)

    def _check_stream(self, name: str, index: int, request: Request) -> None:
        stream, output = self.world.deltas[name, index], self.world.output(name, index)
        assert [delta.finish_reason is not None for delta in stream] == [False] * (len(stream) - 1) + [True]
        last = stream[-1]
        assert last.usage is not None
        assert last.usage.num_output_tokens == len(output)
        tokens, reason = alone(request, index, VOCAB_SIZE, self.world.end_ids)
        if request.adapter_digest in self.faulty:
            assert not output
            assert last.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH)
        elif last.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert (output, last.finish_reason) == (tokens, reason)
        else:
            assert last.finish_reason is FinishReason.TIMEOUT or (name, index) in self.disturbed
            assert output == tokens[: len(output)]
        prompt_logprobs = [delta.prompt_logprobs for delta in stream if delta.prompt_logprobs is not None]
        if index == 0 and request.sampling.prompt_logprobs is not None and output:
            (entries,) = prompt_logprobs
            found = [None if entry is None else entry.token_id for entry in entries]
            assert found == [None, *request.prompt_token_ids[1:]]
        else:
            assert len(prompt_logprobs) <= (index == 0)
