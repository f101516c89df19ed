"""Speculator: which tokens a step verifies beyond those it has to compute, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Final

from trierarch.builder.manifest import DEFAULT_MAX_DRAFT_TOKENS, DrafterKind, Speculation
from trierarch.python_backend.request import Request, SpeculationParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, StepOutput
from trierarch.python_backend.speculation.acceptance import Acceptance
from trierarch.python_backend.speculation.allotment import Allotment, BestRate
from trierarch.python_backend.speculation.client_draft import client_draft
from trierarch.python_backend.speculation.drafter import Ask, Draft, Drafter, ModelDrafter
from trierarch.python_backend.speculation.guarded_drafter import GuardedDrafter
from trierarch.python_backend.speculation.pace import Pace
from trierarch.python_backend.speculation.probing import Probing
from trierarch.python_backend.speculation.stats import SpeculationStats
from trierarch.python_backend.speculation.step_cost import StepCost
from trierarch.python_backend.speculation.stretches import Stretches
from trierarch.python_backend.speculation.tally import Tally
from trierarch.python_backend.speculation.turns import Turns

_PROBE_TOKENS: Final = 2
"""What a model guesses for each sequence when it is only tried."""


@dataclass(slots=True, eq=False)
class _Guess:
    """Tokens guessed for one sequence, and what is known of them before they are verified."""

    ask: Ask
    kind: DrafterKind | None  # None is the caller's own
    draft: Draft
    chances: list[float]

    @property
    def gain(self) -> float:
        """Tokens expected of it if all of it is verified."""
        return sum(self.chances)


@dataclass(slots=True)
class _Round:
    """The guesses of one step."""

    all: list[_Guess] = field(default_factory=list)
    best: dict[int, _Guess] = field(default_factory=dict)  # sequence_id -> the most promising one
    seconds: float = 0.0  # that models took

    def add(self, guess: _Guess) -> None:
        self.all.append(guess)
        sequence_id = guess.ask.sequence.sequence_id
        rival = self.best.get(sequence_id)
        if rival is None or guess.gain > rival.gain:
            self.best[sequence_id] = guess


class Speculator:
    """Asks drafters, decides by measured acceptance and measured time how far to follow them, and learns the outcome.

    Guesses from text cost little. They are made as often as that does not show, and learnt from even where they are not
    verified, so that no sequence is given up for good. Guesses of models are made where they pay, and now and then to
    see whether they would.
    """

    def __init__(
        self,
        speculation: Speculation | None,
        vocab_size: int,
        texts: Rows[Drafter] = (),
        models: Rows[ModelDrafter] = (),
        allotment: Allotment | None = None,
        clock: Callable[[], float] = time.perf_counter,
        stretches: Stretches | None = None,
    ) -> None:
        """`speculation` None guesses nothing by itself; a request's own draft is verified all the same.

        texts guess from tokens alone, models by computing. `clock` counts seconds. stretches: where steps may be launched.
        """
        self._limit = DEFAULT_MAX_DRAFT_TOKENS if speculation is None else speculation.max_draft_tokens
        self._texts = [GuardedDrafter(drafter, vocab_size) for drafter in texts]
        self._models = [(GuardedDrafter(drafter, vocab_size), Probing()) for drafter in models]
        self._drafters: tuple[GuardedDrafter[Drafter] | GuardedDrafter[ModelDrafter], ...] = (
            *self._texts,
            *(model for model, _ in self._models),
        )
        self._allotment = allotment or BestRate()
        self._clock = clock
        self._acceptance = Acceptance()
        self._cost = StepCost()
        self._pace = Pace()
        self._turns = Turns()
        self._stretches = stretches
        self._round = _Round()
        self._tally = Tally(self._limit)

    def propose(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        """sequence_id -> what to verify behind the known tokens, for those sequences of `plan` where it pays.

        To be called once for each plan, before it runs.
        """
        self.pass_over(plan)
        asks = [ask for item in plan.scheduled if item.samples and (ask := self._ask(item)) is not None]
        if not asks:
            return {}
        num_drawing = sum(item.samples for item in plan.scheduled)
        asks = [ask for ask in asks if not self._takes_the_callers(ask)]
        num_sequences, num_tokens = len(plan.scheduled), plan.num_tokens

        def seconds(num_drafts: int) -> float:
            return self._cost.seconds(num_sequences, num_tokens + num_drafts)

        self._guess_from_text(self._turns.choose(asks, seconds(0)))
        for model, probing in self._models:
            self._guess_by(model, probing, asks, seconds, num_drawing)
        best = list(self._round.best.values())
        spent = self._round.seconds
        chances = [guess.chances for guess in best]
        share = self._allotment.allot(chances, lambda n: seconds(n) + spent, num_drawing, self._pace.rate(num_drawing))
        return {
            guess.ask.sequence.sequence_id: guess.draft.token_ids[:count]
            for guess, count in zip(best, share.counts, strict=True)
            if count
        }

    def guesses_for(self, request: Request) -> bool:
        """Whether `propose` might guess for a request's sequences now. If not, it need not be asked about their steps."""
        params = request.speculation
        most = self._limit if params.max_draft_tokens is None else min(params.max_draft_tokens, self._limit)
        if most < 1:
            return False
        if params.draft_token_ids:
            return True
        if self._stretches is not None and self._stretches.is_launching:
            return False
        return any(_allows(params, drafter.kind) for drafter in self._drafters)

    def pass_over(self, plan: Plan) -> None:
        """In place of `propose`, for a plan with nobody to guess for."""
        self._forget(plan.finished_sequence_ids)
        self._round = _Round()

    def observe(
        self,
        plan: Plan,
        output: StepOutput,
        seconds: float,
        interval: float | None = None,
        was_passed_over: bool = False,
    ) -> None:
        """Learn from a plan that ran: what was drawn, and how long it all took, `propose` included.

        interval: since the plan before it had run, whatever the host did meanwhile; None is `seconds`. What one took that was
        passed over says nothing of steps that are proposed for, and all of launching.
        """
        if not plan.scheduled:
            return
        for guess in self._round.all:
            drawn = output.outputs.get(guess.ask.sequence.sequence_id)
            if drawn is None or not drawn.token_ids:
                continue
            guessed = guess.draft.token_ids
            num_known = min(len(guessed), len(drawn.token_ids))
            num_right = next((i for i in range(num_known) if guessed[i] != drawn.token_ids[i]), num_known)
            sequence_id = guess.ask.sequence.sequence_id
            self._acceptance.observe(sequence_id, guess.kind, guess.draft.evidence, num_known, num_right)
        self._count(plan, output)
        if plan.num_context_tokens:
            return
        num_drawn = sum(len(drawn.token_ids) for drawn in output.outputs.values())
        num_drawing = sum(item.samples for item in plan.scheduled)
        if self._stretches is not None and self._drafters:
            self._stretches.observe(was_passed_over, num_drawing, num_drawn, interval or seconds)
        if not was_passed_over:
            self._cost.observe(len(plan.scheduled), plan.num_tokens, seconds - self._round.seconds)
            self._pace.observe(num_drawing, num_drawn, seconds)

    def stats(self) -> SpeculationStats:
        """What has been guessed and accepted since the start. May be called from any thread."""
        return self._tally.stats()

    def close(self) -> None:
        """Let the drafters free what they hold. Idempotent."""
        for drafter in self._drafters:
            drafter.close()

    def _ask(self, item: ScheduledSequence) -> Ask | None:
        """How much to guess for a sequence; None for nothing."""
        sampling, own = item.sequence.request.sampling, item.sequence.request.speculation.max_draft_tokens
        # A step draws one token more than it verifies.
        most = min(
            self._limit if own is None else min(own, self._limit),
            sampling.max_tokens - 1 - item.sequence.num_output_tokens,
        )
        return Ask(item.sequence, most) if most > 0 else None

    def _takes_the_callers(self, ask: Ask) -> bool:
        """Whether the request's own guess still holds; nobody else is asked then."""
        tokens = client_draft(ask.sequence, ask.max_tokens)
        self._add(ask, None, Draft(tokens))
        return bool(tokens)

    def _guess_from_text(self, asks: Rows[Ask]) -> None:
        started = self._clock()
        for drafter in self._texts:
            allowed = [ask for ask in asks if _allows(ask.sequence.request.speculation, drafter.kind)]
            for ask, draft in zip(allowed, drafter.propose(allowed), strict=True):
                self._add(ask, drafter.kind, draft)
        self._turns.took(len(asks), self._clock() - started)

    def _guess_by(
        self,
        model: GuardedDrafter[ModelDrafter],
        probing: Probing,
        asks: Rows[Ask],
        seconds: Callable[[int], float],
        num_drawing: int,
    ) -> None:
        """Let a model guess where that promises more tokens a second than what is guessed so far."""
        drafter = model.drafter
        allowed = [
            ask
            for ask in asks
            if _allows(ask.sequence.request.speculation, model.kind) and drafter.can_guess(ask.sequence)
        ]
        hopes = {
            ask.sequence.sequence_id: self._acceptance.run(ask.sequence.sequence_id, model.kind, 0, ask.max_tokens)
            for ask in allowed
        }
        rivals = self._round.best
        weak = [ask for ask in allowed if _gain(rivals, ask) < sum(hopes[ask.sequence.sequence_id])]
        if not weak:
            return
        weak_ids = {ask.sequence.sequence_id for ask in weak}
        strong = [guess for sequence_id, guess in rivals.items() if sequence_id not in weak_ids]
        pace = self._pace.rate(num_drawing)
        without = self._allotment.allot([guess.chances for guess in rivals.values()], seconds, num_drawing, pace)
        beside = self._allotment.allot([guess.chances for guess in strong], seconds, num_drawing, pace)
        kept = sum(beside.counts)
        gained = sum(sum(g.chances[:count]) for g, count in zip(strong, beside.counts, strict=True))

        def seconds_with(length: int) -> float:
            num_drafts = sum(min(length, ask.max_tokens) for ask in weak)
            step, guessing = seconds(kept + num_drafts), drafter.seconds(weak, length) if length else 0.0
            return step + guessing if step > 0.0 and (guessing > 0.0 or not length) else 0.0

        chances = [hopes[ask.sequence.sequence_id] for ask in weak]
        share = self._allotment.length(chances, seconds_with, num_drawing + gained)
        pays = share.rate > without.rate and any(share.counts)
        if pays:
            probing.paid()
            counts = share.counts
        elif probing.is_due(num_drawing):
            counts = [min(_PROBE_TOKENS, ask.max_tokens) for ask in weak]
        else:
            return
        started = self._clock()
        shorter = [Ask(ask.sequence, count) for ask, count in zip(weak, counts, strict=True) if count]
        drafts = model.propose(shorter)
        if not pays:
            probing.tried(any(draft.token_ids for draft in drafts))
        for ask, draft in zip(shorter, drafts, strict=True):
            self._add(ask, model.kind, draft)
        self._round.seconds += self._clock() - started

    def _add(self, ask: Ask, kind: DrafterKind | None, draft: Draft) -> None:
        if draft.token_ids:
            chances = self._acceptance.run(ask.sequence.sequence_id, kind, draft.evidence, len(draft.token_ids))
            self._round.add(_Guess(ask, kind, draft, chances))

    def _count(self, plan: Plan, output: StepOutput) -> None:
        self._tally.count_step(any(item.draft_token_ids for item in plan.scheduled))
        for item in plan.scheduled:
            drawn = output.outputs.get(item.sequence.sequence_id)
            if item.samples and drawn is not None and drawn.token_ids:
                num_drafts, num_accepted = len(item.draft_token_ids), len(drawn.token_ids) - 1
                self._tally.count_sequence(num_drafts, num_accepted)
                if num_accepted:
                    self._turns.was_right(item.sequence.sequence_id)
                if num_drafts:
                    self._tally.count_draft(self._round.best[item.sequence.sequence_id].kind, num_drafts, num_accepted)

    def _forget(self, sequence_ids: Collection[int]) -> None:
        if sequence_ids:
            self._acceptance.forget(sequence_ids)
            self._turns.forget(sequence_ids)
            for drafter in self._drafters:
                drafter.forget(sequence_ids)


def _allows(params: SpeculationParams, kind: DrafterKind) -> bool:
    return params.drafters is None or kind in params.drafters


def _gain(best: dict[int, _Guess], ask: Ask) -> float:
    guess = best.get(ask.sequence.sequence_id)
    return 0.0 if guess is None else guess.gain
