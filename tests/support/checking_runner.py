"""CheckingRunner: a model whose tokens can be worked out by hand and whose KV arrays remember what was put in them."""

from __future__ import annotations

from collections.abc import Mapping

from support.memory_adapters import ToyWeights, arrange, seed_of
from trierarch.builder.adapter import AdapterTensors
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.request import FinishReason, Request, TokenLogprob
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, SequenceOutput, StepOutput
from trierarch.python_backend.sequence import Sequence

Slot = tuple[int, int]
"""(block id, offset)"""


def next_token(token_ids: list[int], index: int, vocab_size: int, mistakes: int = 0, seed: int = 0) -> int:
    """The model: greedy, and a function of everything before, so that a wrong history shows in the output.

    A weaker one says something else after one history in `mistakes`; 0 is never. `seed`: of an adapter.
    """
    state = index + 1 + seed
    for token in token_ids:
        state = (31 * state + token + 1) % 1_000_003
    return (state + (mistakes > 0 and state % mistakes == 0)) % vocab_size


def alone(request: Request, index: int, vocab_size: int, end_ids: tuple[int, ...]) -> tuple[list[int], FinishReason]:
    """The slow obvious way: what sequence `index` of the request draws with no scheduler, no blocks and no batch."""
    sampling = request.sampling
    ends = end_ids if sampling.end_ids is None else sampling.end_ids
    output: list[int] = []
    while True:
        known = [*request.prompt_token_ids, *output]
        token = next_token(known, index, vocab_size, seed=seed_of(request.adapter_digest))
        may_stop = len(output) >= sampling.min_tokens
        if may_stop and token in ends:
            return output, FinishReason.STOP
        output.append(token)
        if may_stop and any(tuple(output[-len(word) :]) == word for word in sampling.stop_words):
            return output, FinishReason.STOP
        if len(output) == sampling.max_tokens:
            return output, FinishReason.LENGTH


class CheckingRunner:
    """Computes plans on KV slots that hold, for each token, the whole history that led to it.

    Before and after each step every computed position of every scheduled sequence must hold what that sequence
    expects: this finds blocks shared wrongly, given away too early, or overwritten. Each sequence must have the version
    of the adapter that its request has, in a slot of its own: what is drawn comes of the weights. `guesses` are drafts: for the
    k-th one a True is a right guess and a False a wrong one; they are used over and over.
    """

    def __init__(
        self,
        block_size: int,
        vocab_size: int,
        guesses: tuple[bool, ...] = (),
        mistakes: int = 0,
        runs_ahead: bool = False,
        max_adapters: int = 0,
    ) -> None:
        """`mistakes` as in `next_token`. A draft model `runs_ahead` of the tokens that its sequences count as computed.

        It may run without the adapters of its requests.
        """
        self.max_adapters = max_adapters
        self.block_size = block_size
        self.mistakes = mistakes
        self.runs_ahead = runs_ahead
        self.vocab_size = vocab_size
        self.guesses = guesses
        self.slots: dict[Slot, tuple[str, str, tuple[int, ...]]] = {}
        """slot -> adapter, salt, and all tokens up to and with the one whose KV is there"""
        self.num_computed = 0
        """Tokens over all steps, drafts included."""
        self.drawn: dict[int, int] = {}
        """sequence_id -> what the step launched last drew for it"""

    def drafts(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        """sequence_id -> guesses, for every sequence of the plan, be it drawn for or not."""
        return {item.sequence.sequence_id: self._draft(item) for item in plan.scheduled}

    @property
    def num_blocks(self) -> int:
        """As many as anybody may want."""
        return 1 << 30

    def arrange(self, tensors: AdapterTensors) -> ToyWeights:
        """See Runner.arrange."""
        return arrange(tensors)

    def close(self) -> None:
        """Nothing to give back."""

    def launch(self, plan: Plan) -> StepOutput:
        """As `run`, of a plan that may have been made ahead: what is late was drawn by the step launched last.

        To be looked at later.
        """
        known = {
            item.sequence.sequence_id: (*item.sequence.token_ids, self.drawn[item.sequence.sequence_id])
            for item in plan.scheduled
            if item.is_late
        }
        output = self._run(plan, known)
        self.drawn = {one: drawn.token_ids[0] for one, drawn in output.outputs.items() if drawn.token_ids}
        return output

    def run(self, plan: Plan) -> StepOutput:
        """Compute the plan; assert that it can be computed."""
        for item in plan.scheduled:
            assert self.runs_ahead or item.start == item.sequence.num_computed_tokens
        return self._run(plan, {})

    def _run(self, plan: Plan, late: Mapping[int, tuple[int, ...]]) -> StepOutput:
        """late: all tokens of those that do not know their last one yet."""

        def known(item: ScheduledSequence) -> list[int]:
            return list(late.get(item.sequence.sequence_id, item.sequence.token_ids))

        scheduled_ids = [item.sequence.sequence_id for item in plan.scheduled]
        assert len(scheduled_ids) == len(set(scheduled_ids))
        assert not set(scheduled_ids) & set(plan.finished_sequence_ids)
        self._check_adapters([item.sequence for item in plan.scheduled])
        for item in plan.scheduled:
            assert item.num_tokens >= 1
            assert item.samples == (item.start + item.num_tokens == len(known(item)))
            self._check(item.sequence, known(item), item.start)
        for item in plan.scheduled:
            tokens = _tokens_of_step(item, known(item))
            for position in range(item.start, len(tokens)):
                request = item.sequence.request
                content = request.adapter_digest, request.cache_salt, tuple(tokens[: position + 1])
                self.slots[self._slot(item.sequence, position)] = content
                self.num_computed += 1
        for item in plan.scheduled:
            tokens = _tokens_of_step(item, known(item))
            self._check(item.sequence, tokens, len(tokens))
        return StepOutput({item.sequence.sequence_id: self._draw(item, known(item)) for item in plan.scheduled})

    def _check_adapters(self, sequences: list[Sequence]) -> None:
        active: dict[int, ActiveAdapter] = {}
        for sequence in sequences:
            adapter, digest = sequence.adapter, sequence.request.adapter_digest
            if adapter is None:
                assert self.runs_ahead or not digest, f"sequence {sequence.sequence_id} runs without its adapter"
                continue
            assert isinstance(adapter.weights, ToyWeights)
            assert adapter.digest == adapter.weights.digest == digest
            assert 1 <= adapter.slot <= self.max_adapters
            assert active.setdefault(adapter.slot, adapter) is adapter, "two adapters in one slot"
        assert len({adapter.digest for adapter in active.values()}) == len(active), "an adapter in two slots"

    def _slot(self, sequence: Sequence, position: int) -> Slot:
        return sequence.block_table[position // self.block_size], position % self.block_size

    def _check(self, sequence: Sequence, tokens: list[int], num_tokens: int) -> None:
        for position in range(num_tokens):
            expected = sequence.request.adapter_digest, sequence.request.cache_salt, tuple(tokens[: position + 1])
            found = self.slots[self._slot(sequence, position)]
            assert found == expected, f"sequence {sequence.sequence_id} reads {found}, not {expected}"

    def _draft(self, item: ScheduledSequence) -> tuple[int, ...]:
        drafts: list[int] = []
        for is_right in self.guesses:
            seed = seed_of(item.sequence.request.adapter_digest)
            right = next_token([*item.sequence.token_ids, *drafts], item.sequence.index, self.vocab_size, seed=seed)
            drafts.append(right if is_right else (right + 1) % self.vocab_size)
        return tuple(drafts)

    def _draw(self, item: ScheduledSequence, token_ids: list[int]) -> SequenceOutput:
        sequence, sampling = item.sequence, item.sequence.request.sampling
        drawn: list[int] = []
        seed = 0 if sequence.adapter is None else seed_of(sequence.adapter.digest)
        if item.samples:
            for guess in (*item.draft_token_ids, None):
                known = [*token_ids, *drawn]
                drawn.append(next_token(known, sequence.index, self.vocab_size, self.mistakes, seed))
                if guess != drawn[-1]:
                    break
        prompt_end = min(item.start + item.num_tokens + 1, sequence.num_prompt_tokens)
        return SequenceOutput(
            token_ids=tuple(drawn),
            logprobs=None if sampling.logprobs is None else tuple(TokenLogprob(token, -1.0) for token in drawn),
            prompt_logprobs=()
            if sampling.prompt_logprobs is None
            else tuple(TokenLogprob(sequence.token_ids[t], -float(t)) for t in range(item.start + 1, prompt_end)),
        )


def _tokens_of_step(item: ScheduledSequence, known: list[int]) -> list[int]:
    return known[: item.end] + list(item.draft_token_ids)
