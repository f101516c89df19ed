"""DraftModel: a smaller engine that runs ahead of the one being served.

It has a runner, a pool of blocks and a prefix cache of its own, and follows each sequence that it is asked about: what
the sequence has become since is computed in one step, whatever of it was guessed before need not be computed again, and
the guess is then drawn token by token for all sequences at once.

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


class DraftModel:
    """Implements ModelDrafter."""

    def __init__(self, runner: Runner, kv: KVCacheManager, end_ids: tuple[int, ...], max_num_tokens: int) -> None:
        """kv: of the runner's blocks. `end_ids` are the engine's. max_num_tokens: computed in one step at most."""
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
        """See Drafter.propose. A sequence that finds no room in the blocks gets no draft."""
        asked = {ask.sequence.sequence_id for ask in asks}
        followers = [self._follow(ask, asked) for ask in asks]
        drawing = [
            (follower, ask.max_tokens) for follower, ask in zip(followers, asks, strict=True) if follower is not None
        ]
        self._catch_up([follower for follower, _ in drawing])
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
        self._runner.close()

    def _follow(self, ask: Ask, asked: set[int]) -> _Follower | None:
        """The follower of a sequence, at one with it, with blocks for the guess; None where there is no room."""
        sequence = ask.sequence
        follower = self._followers.pop(sequence.sequence_id, None)
        if follower is None:
            own = Sequence(sequence.sequence_id, _drafting(sequence.request), sequence.index, list(sequence.token_ids))
            own.adapter = self._adapter(sequence)
            self._kv.start(own, self._kv.match(own))
            follower = _Follower(own, own.num_computed_tokens)
        else:
            self._agree(follower, sequence.token_ids)
        self._followers[sequence.sequence_id] = follower
        follower.drafted = []
        # The last token of a guess is not computed.
        while not self._kv.allocate(follower.own, sequence.num_tokens + ask.max_tokens - 1):
            idle = next((sequence_id for sequence_id in self._followers if sequence_id not in asked), None)
            if idle is None:
                self.forget([sequence.sequence_id])
                return None
            self.forget([idle])
        return follower

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

    def _catch_up(self, followers: Rows[_Follower]) -> None:
        """Compute all known tokens, as many a step as one may hold; each follower draws once at their end."""
        behind = list(followers)
        while behind:
            budget = self._max_num_tokens
            items: list[ScheduledSequence] = []
            for follower in behind:
                own, start = follower.own, follower.num_written
                num_tokens = min(len(own.token_ids) - start, budget)
                if num_tokens == 0:
                    break
                budget -= num_tokens
                samples = start + num_tokens == len(own.token_ids)
                items.append(ScheduledSequence(own, start, num_tokens, samples=samples))
            self._run(items)
            # One that could not be drawn for is done too: it gets no draft.
            done = {item.sequence.sequence_id for item in items if item.samples or not self._is_written(item)}
            behind = [follower for follower in behind if follower.own.sequence_id not in done]

    def _is_written(self, item: ScheduledSequence) -> bool:
        return self._followers[item.sequence.sequence_id].num_written == item.start + item.num_tokens

    def _goes_on(self, follower: _Follower, max_tokens: int) -> bool:
        """Whether another token is to be drawn: the last one was, did not end the output, and more are wanted."""
        drafted = follower.drafted
        if len(follower.own.token_ids) - follower.num_written > 0 or not drafted or len(drafted) >= max_tokens:
            return False
        ends = follower.own.request.sampling.end_ids
        return drafted[-1] not in (self._end_ids if ends is None else ends)

    def _run(self, items: Rows[ScheduledSequence]) -> None:
        plan = Plan(tuple(items), tuple(self._dropped))
        started = time.perf_counter()
        output = self._runner.run(plan)
        self._dropped.clear()
        self._cost.observe(len(items), plan.num_tokens, time.perf_counter() - started)
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
