"""DraftModel: a smaller engine that runs ahead of the one being served.

It has a runner, a pool of blocks and a prefix cache of its own, and follows each sequence that it is asked about: what
the sequence has become since is computed, whatever of it was guessed before need not be computed again, and the guess is
then drawn token by token for all sequences at once.

Nobody waits for it to know a long text: of what it lacks it computes one step's tokens each time that it is asked, and guesses for
those it has caught up with. Blocks that its cache had no room for come back beside that from tiers of its own, where it has
them; there is no guess for a sequence until they are there.

An adapter's sequences are followed with its weights for this engine where there are any, else without; the keys of its
prefix cache are told apart by the adapter either way.

It draws by the request's own parameters and with the very chance that the target will draw with (`Uniforms`): where both
models see things alike they draw alike, in sampled answers too. (Shared randomness: Daliri et al., arXiv 2408.07978.)
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import Final

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.offload.mover import Mover
from trierarch.python_backend.executors.runner import Runner
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import Request
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, StepOutput
from trierarch.python_backend.sequence import Sequence
from trierarch.python_backend.speculation.drafter import NO_DRAFT, Ask, Draft
from trierarch.python_backend.speculation.step_cost import StepCost

_SOON: Final = 32
"""Steps over which the price of catching up with a new sequence is spread when it is weighed."""


@dataclass(slots=True, eq=False)
class _Follower:
    """A sequence as the draft model has it."""

    own: Sequence
    """Its `num_computed_tokens` lags behind: only what the target is known to have said may be found by others."""
    num_written: int
    """Tokens whose keys and values are in the blocks, guessed ones included."""
    drafted: list[int] = field(default_factory=list)

    @property
    def num_missing(self) -> int:
        """Tokens of it that are to be computed."""
        return len(self.own.token_ids) - self.num_written


class DraftModel:
    """Implements ModelDrafter."""

    def __init__(
        self,
        runner: Runner,
        kv: KVCacheManager,
        end_ids: tuple[int, ...],
        max_num_tokens: int,
        mover: Mover | None = None,
    ) -> None:
        """kv: of the runner's blocks. `end_ids` are the engine's. max_num_tokens: computed in one step at most.

        mover: of `kv`, where that has tiers behind it.
        """
        self._mover = mover
        self._runner = runner
        self._kv = kv
        self._end_ids = end_ids
        self._max_num_tokens = max_num_tokens
        self._followers: dict[int, _Follower] = {}  # sequence_id -> follower, the longest not asked about first
        self._dropped: list[int] = []  # ids that the runner has yet to hear have gone
        self._cost = StepCost()

    @property
    def kind(self) -> DrafterKind:
        """See Drafter.kind."""
        return DrafterKind.DRAFT_MODEL

    def can_guess(self, sequence: Sequence) -> bool:
        """See ModelDrafter.can_guess. It catches up with whatever it is asked about."""
        return True

    def propose(self, asks: Rows[Ask]) -> list[Draft]:
        """See Drafter.propose. A sequence that finds no room in the blocks gets no draft, nor one that is not caught up with."""
        if self._mover is not None:
            self._mover.hear()
        asked = {ask.sequence.sequence_id for ask in asks}
        followers = [self._follow(ask, asked) for ask in asks]
        if self._mover is not None and self._mover.has_copies:
            self._mover.begin(self._mover.take())  # before anything is computed in the blocks that were taken
        drawing = [
            (follower, ask.max_tokens) for follower, ask in zip(followers, asks, strict=True) if follower is not None
        ]
        self._catch_up(drawing)
        while drawing := [pair for pair in drawing if self._goes_on(*pair)]:
            for follower, _ in drawing:
                follower.own.token_ids.append(follower.drafted[-1])
            self._run([_last_token(follower) for follower, _ in drawing])
        return [NO_DRAFT if follower is None else Draft(tuple(follower.drafted)) for follower in followers]

    def seconds(self, asks: Rows[Ask], num_tokens: int) -> float:
        """See ModelDrafter.seconds."""
        num_new = num_late = 0
        for ask in asks:
            follower = self._followers.get(ask.sequence.sequence_id)
            missing = ask.sequence.num_tokens - (0 if follower is None else follower.num_written)
            num_new += max(1, min(missing, ask.max_tokens + 1))
            num_late += max(0, missing - ask.max_tokens - 1)
        one = self._cost.seconds(len(asks), len(asks))
        first = self._cost.seconds(len(asks), num_new)
        late = self._cost.seconds(len(asks), num_new + num_late) - first
        return first + max(0.0, late) / _SOON + (num_tokens - 1) * one

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """See Drafter.forget."""
        for sequence_id in sequence_ids:
            if (follower := self._followers.pop(sequence_id, None)) is not None:
                self._kv.free(follower.own)
                self._dropped.append(sequence_id)

    def close(self) -> None:
        """See Drafter.close."""
        if self._mover is not None:
            self._mover.close()
        self._runner.close()

    def _follow(self, ask: Ask, asked: set[int]) -> _Follower | None:
        """The follower of a sequence, at one with it, with blocks for the guess; None where there is no room, or not yet."""
        sequence = ask.sequence
        follower = self._followers.pop(sequence.sequence_id, None)
        # The last token of a guess is not computed.
        num_tokens = sequence.num_tokens + ask.max_tokens - 1
        if follower is None:
            follower = self._new_follower(sequence, num_tokens, asked)
            if follower is None:
                return None
        else:
            self._agree(follower, sequence.token_ids)
        self._followers[sequence.sequence_id] = follower
        follower.drafted = []
        while not self._kv.allocate(follower.own, num_tokens):
            if not self._forget_idle(asked):
                self.forget([sequence.sequence_id])
                return None
        return follower

    def _new_follower(self, sequence: Sequence, num_tokens: int, asked: set[int]) -> _Follower | None:
        """Of a sequence that will have so many tokens; None where it has no room, or waits for blocks to come back."""
        own = Sequence(sequence.sequence_id, _drafting(sequence.request), sequence.index, list(sequence.token_ids))
        if self._kv.is_recalling(own):
            return None
        prefix = self._kv.match(own)
        while not self._kv.can_start(prefix, num_tokens, 0):
            if not self._forget_idle(asked):
                return None
        if self._kv.recall(own, prefix):
            return None
        own.adapter = self._adapter(sequence)
        self._kv.start(own, prefix)
        return _Follower(own, own.num_computed_tokens)

    def _forget_idle(self, asked: set[int]) -> bool:
        """Let go of a sequence that is not asked about; whether there was one."""
        idle = next((sequence_id for sequence_id in self._followers if sequence_id not in asked), None)
        if idle is not None:
            self.forget([idle])
        return idle is not None

    def _adapter(self, sequence: Sequence) -> ActiveAdapter | None:
        """What the draft model runs with for a sequence: the same for all of its adapter; None is as it is."""
        active = sequence.adapter
        if active is None or active.draft_weights is None:
            return None
        for follower in self._followers.values():
            known = follower.own.adapter
            if known is not None and (known.weights, known.slot) == (active.draft_weights, active.slot):
                return known
        return ActiveAdapter(active.digest, active.slot, active.draft_weights)

    def _agree(self, follower: _Follower, known: list[int]) -> None:
        """Keep what was computed as far as the target drew the same."""
        own = follower.own
        first, written = own.num_computed_tokens, min(follower.num_written, len(known) - 1)
        num_agreed = first
        while num_agreed < written and own.token_ids[num_agreed] == known[num_agreed]:
            num_agreed += 1
        own.token_ids[first:] = known[first:]
        self._kv.advance(own, num_agreed)
        follower.num_written = num_agreed

    def _catch_up(self, drawing: Rows[tuple[_Follower, int]]) -> None:
        """Compute known tokens; a follower that lacks none then draws once at their end. drawing: with most tokens to guess.

        Of those that lag behind (new ones, and those not asked about for long) no more is computed than a step may hold.
        """
        allowance = self._max_num_tokens
        behind: list[tuple[_Follower, int]] = []  # and how many tokens of it are to be written then
        for follower, max_tokens in sorted(drawing, key=lambda pair: pair[0].num_missing):
            num_tokens = follower.num_missing
            if num_tokens > max_tokens + 1:
                num_tokens = min(num_tokens, allowance)
                allowance -= num_tokens
            behind.append((follower, follower.num_written + num_tokens))
        while behind := [(follower, end) for follower, end in behind if follower.num_written < end]:
            budget = self._max_num_tokens
            items: list[ScheduledSequence] = []
            for follower, end in behind:
                own, start = follower.own, follower.num_written
                num_tokens = min(end - start, budget)
                if num_tokens == 0:
                    break
                budget -= num_tokens
                samples = start + num_tokens == len(own.token_ids)
                items.append(ScheduledSequence(own, start, num_tokens, samples=samples))
            self._run(items)
            # One that could not be drawn for gets no draft.
            stuck = {item.sequence.sequence_id for item in items if not self._is_written(item)}
            behind = [pair for pair in behind if pair[0].own.sequence_id not in stuck]

    def _is_written(self, item: ScheduledSequence) -> bool:
        return self._followers[item.sequence.sequence_id].num_written == item.start + item.num_tokens

    def _goes_on(self, follower: _Follower, max_tokens: int) -> bool:
        """Whether another token is to be drawn: the last one was, did not end the output, and more are wanted."""
        drafted = follower.drafted
        if follower.num_missing or not drafted or len(drafted) >= max_tokens:
            return False
        ends = follower.own.request.sampling.end_ids
        return drafted[-1] not in (self._end_ids if ends is None else ends)

    def _run(self, items: Rows[ScheduledSequence]) -> None:
        plan = Plan(tuple(items), tuple(self._dropped))
        started = time.perf_counter()
        output = self._runner.run(plan)
        self._dropped.clear()
        seconds = time.perf_counter() - started
        self._cost.observe(len(items), plan.num_tokens, seconds)
        if self._mover is not None:
            self._mover.observe_step(plan, seconds)
        for item in items:
            self._note(item, output)

    def _note(self, item: ScheduledSequence, output: StepOutput) -> None:
        follower = self._followers[item.sequence.sequence_id]
        drawn = output.outputs[item.sequence.sequence_id]
        if drawn.error is None:
            follower.num_written = item.start + item.num_tokens
            follower.drafted += drawn.token_ids


def _drafting(request: Request) -> Request:
    """The request as the draft model draws for it: nobody reads log-probs, logits or states of a guess."""
    untold = replace(
        request.sampling,
        logprobs=None,
        prompt_logprobs=None,
        return_context_logits=False,
        return_generation_logits=False,
        return_embedding=False,
    )
    return replace(request, sampling=untold)


def _last_token(follower: _Follower) -> ScheduledSequence:
    return ScheduledSequence(follower.own, len(follower.own.token_ids) - 1, 1, samples=True)
