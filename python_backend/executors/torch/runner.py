"""TorchRunner: plan → arrays → model → drawn tokens, on the CPU or a CUDA device."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.sampling.sampler import take_rows
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays, plan_num_blocks
from trierarch.python_backend.executors.torch.machine import default_device, prepare_cpu
from trierarch.python_backend.executors.torch.sampler import TorchSampler
from trierarch.python_backend.executors.torch.step_model import StepModel, StepRows, open_model
from trierarch.python_backend.executors.verification import draw, with_harmless_drafts
from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, SequenceOutput, StepOutput

logger = logging.getLogger(__name__)

_PROMPT_LOGITS_ROWS: Final = 64
"""Prompt log-probs are worked out this many tokens at a time: logits of a whole prompt would fill memory."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What takes memory."""

    model: StepModel
    kv: KvArrays


class TorchRunner:
    """Owns the weights, the KV arrays and the sampler. Implements the Runner protocol."""

    def __init__(self, engine: Path, manifest: EngineManifest, device: torch.device | None = None) -> None:
        """Load an engine that is fit for this machine; `device` None takes CUDA where there is one.

        Raises:
            EngineError: the weights are missing, corrupt or not what the manifest says.
            ResourceError: the KV cache does not fit, or fits no sequence of `max_seq_len`.
        """
        architecture = manifest.architecture
        self._device = default_device(manifest.requires.device) if device is None else device
        if self._device.type == "cpu":
            prepare_cpu()
        with torch.inference_mode():
            model = open_model(engine, manifest, self._device)
            num_blocks = plan_num_blocks(manifest, self._device)
            kv = KvArrays(num_blocks, architecture, manifest.kv_cache, self._device)
        self._loaded: _Loaded | None = _Loaded(model, kv)
        self._sampler = TorchSampler(architecture.vocab_size, manifest.tokens.eos, self._device)
        self.num_blocks = num_blocks
        logger.info("%s on %s: %d threads, %s", manifest.name, self._device, torch.get_num_threads(), manifest.dtype)

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepOutput:
        """See Runner.run."""
        self._sampler.forget(plan.finished_sequence_ids)
        if not plan.scheduled:
            return StepOutput({})
        outputs = self._run(plan)
        again = with_harmless_drafts(plan, outputs)
        return StepOutput(outputs | self._run(again) if again.scheduled else outputs)

    def close(self) -> None:
        """See Runner.close."""
        self._loaded = None

    def _run(self, plan: Plan) -> dict[int, SequenceOutput]:
        assert self._loaded is not None, "the runner is closed"
        model, kv = self._loaded.model, self._loaded.kv
        step = model.compute(plan, kv)
        outputs = {item.sequence.sequence_id: SequenceOutput() for item in step.items}
        outputs |= self._sample(model, step)
        for item, first_row in zip(step.items, step.first_rows, strict=True):
            if logprobs := self._prompt_logprobs(model, item, step.hidden[first_row:]):
                sequence_id = item.sequence.sequence_id
                outputs[sequence_id] = replace(outputs[sequence_id], prompt_logprobs=logprobs)
        return outputs

    def _sample(self, model: StepModel, step: StepRows) -> dict[int, SequenceOutput]:
        """Draw for every sequence whose known tokens end in this step; logits of no other row are computed."""
        items: list[ScheduledSequence] = []
        rows: list[int] = []
        for item, first_row in zip(step.items, step.first_rows, strict=True):
            if item.samples:
                items.append(item)
                last_row = first_row + item.num_tokens - 1
                rows += range(last_row, last_row + 1 + len(item.draft_token_ids))
        if not items:
            return {}
        logits = model.logits(step.hidden[rows])
        return draw(items, lambda chosen: take_rows(logits, chosen), self._sampler)

    def _prompt_logprobs(
        self, model: StepModel, item: ScheduledSequence, hidden: torch.Tensor
    ) -> tuple[TokenLogprob, ...]:
        """Where asked, for prompt tokens start + 1 and on. hidden: (>= num_tokens, hidden), from the item's first."""
        sequence = item.sequence
        num_top = sequence.request.sampling.prompt_logprobs
        if num_top is None or sequence.index > 0 or sequence.num_output_tokens > 0:
            return ()
        following = sequence.token_ids[item.start + 1 : item.start + 1 + item.num_tokens]
        logprobs: list[TokenLogprob] = []
        for first in range(0, len(following), _PROMPT_LOGITS_ROWS):
            token_ids = following[first : first + _PROMPT_LOGITS_ROWS]
            logits = model.logits(hidden[first : first + len(token_ids)])
            logprobs += self._sampler.prompt_logprobs(logits, token_ids, num_top)
        return tuple(logprobs)
