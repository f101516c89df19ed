from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from support.forward import prompt_logits
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, with_kernels, write_engine
from support.stepping import Stepper
from trierarch.builder.compile import find_compiler
from trierarch.builder.manifest import Architecture, EngineManifest, KvType, Rope
from trierarch.python_backend.executors.cpu.runner import CpuRunner
from trierarch.python_backend.executors.runner import Runner
from trierarch.python_backend.executors.torch.runner import TorchRunner
from trierarch.python_backend.request import FinishReason
from trierarch.python_backend.scheduling.plan import Plan

CPU = torch.device("cpu")
POISON = 49
"""Token whose embedding is NaN."""

Engine = tuple[Path, EngineManifest]


@pytest.fixture(params=itertools.product((TorchRunner, CpuRunner), (KvType.FLOAT32, KvType.INT8)), ids=str)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    runner, kv_dtype = request.param
    if runner is TorchRunner:
        return make_engine(tmp_path, tiny_architecture(), kv_dtype)
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    # What kernels want: heads and blocks of whole vectors.
    path, manifest = make_engine(tmp_path, tiny_architecture(head_dim=16, ropes=(Rope(rotary_dim=16),)), kv_dtype, 16)
    return path, with_kernels(path, manifest)


def make_engine(directory: Path, architecture: Architecture, kv_dtype: KvType, block_size: int = 4) -> Engine:
    weights = random_weights(architecture)
    weights["embed.weight"][POISON] = torch.nan
    # A tied head would carry the NaN into every token's logits.
    weights["lm_head.weight"] = random_weights(architecture, seed=1)["embed.weight"]
    weights["lm_head.weight"][POISON] = 0  # never the best: only prompts have it
    untied = architecture.model_copy(update={"tie_embeddings": False})
    manifest = tiny_manifest(untied, num_blocks=128, kv_dtype=kv_dtype, block_size=block_size)
    write_engine(directory, manifest, weights)
    return directory, manifest


def open_runner(engine: Engine) -> Runner:
    return TorchRunner(*engine, CPU) if engine[1].kernels is None else CpuRunner(*engine)


def open_stepper(engine: Engine, **settings: object) -> Stepper:
    return Stepper.open(engine[1], open_runner(engine), **settings)


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [torch.randint(POISON, (length,), generator=generator).tolist() for length in lengths]


def test_draws_the_best_token_of_the_decoders_logits(engine: Engine) -> None:
    (prompt,) = prompts(1)
    (drawn,) = open_stepper(engine).generate([prompt], max_tokens=6)
    for count, token in enumerate(drawn):
        known = prompt + drawn[:count]
        assert token == int(prompt_logits(engine[0], known, [len(known)])[-1].argmax())


@pytest.mark.parametrize("max_num_tokens", [5, 512])
@pytest.mark.parametrize("num_tokens", [80, 512])
def test_batching_chunking_and_preemption_change_nothing(engine: Engine, num_tokens: int, max_num_tokens: int) -> None:
    alone = open_stepper(engine, enable_prefix_caching=False)
    expected = [alone.generate([prompt])[0] for prompt in prompts(8)]
    stepper = open_stepper(
        engine, num_blocks=num_tokens // engine[1].kv_cache.block_size, max_num_tokens=max_num_tokens
    )
    assert stepper.generate(prompts(8)) == expected
    num_preemptions = sum(usage.num_preemptions for usage in stepper.usages())
    assert (num_preemptions > 0) == (num_tokens == 80)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.3, "top_k": 0, "seed": 3, "logprobs": 1}])
@pytest.mark.parametrize("rightness", ["wrong", "right", "mixed"])
def test_drafts_change_nothing(engine: Engine, rightness: str, sampling: dict[str, object]) -> None:
    stepper = open_stepper(engine)
    expected = stepper.generate(prompts(6), max_tokens=11, **sampling)
    logprobs = stepper.logprobs()
    drafting = open_stepper(engine)
    drafting.answers = dict(enumerate(expected))
    drafting.rightness = rightness
    assert drafting.generate(prompts(6), max_tokens=11, **sampling) == expected
    for mine, its in zip(drafting.logprobs(), logprobs, strict=True):
        assert mine.token_id == its.token_id
        assert mine.logprob == pytest.approx(its.logprob, abs=1e-4)
    usages = drafting.usages()
    assert all(usage.num_draft_tokens > 0 for usage in usages)
    num_accepted = sum(usage.num_accepted_draft_tokens for usage in usages)
    assert (num_accepted > 0) == (rightness != "wrong")


def test_a_draft_that_overflows_costs_nothing_but_time(engine: Engine) -> None:
    expected = open_stepper(engine).generate(prompts(3))
    stepper = open_stepper(engine)
    stepper.answers = {sequence_id: [POISON] * 16 for sequence_id in range(3)}
    assert stepper.generate(prompts(3)) == expected


@pytest.mark.parametrize("max_num_tokens", [7, 512])
def test_prompt_logprobs_come_from_the_position_before(engine: Engine, max_num_tokens: int) -> None:
    prompt = prompts(4)[0] + prompts(4)[1]
    stepper = open_stepper(engine, max_num_tokens=max_num_tokens)
    request_id = stepper.add(prompt, max_tokens=1, prompt_logprobs=2)
    stepper.add(prompts(1)[0], max_tokens=8)
    stepper.finish()
    logprobs = stepper.deltas[request_id][0].prompt_logprobs
    assert logprobs is not None
    assert len(logprobs) == len(prompt)
    assert logprobs[0] is None
    expected = prompt_logits(engine[0], prompt, [len(prompt)]).log_softmax(-1)
    for position, (token, logprob) in enumerate(zip(prompt[1:], logprobs[1:], strict=True)):
        assert logprob is not None
        assert logprob.token_id == token
        assert logprob.logprob == pytest.approx(expected[position, token].item(), abs=1e-4)
        assert [token for token, _ in logprob.top] == expected[position].topk(2).indices.tolist()


@pytest.mark.parametrize("max_num_tokens", [16, 512])
def test_nan_of_one_sequence_harms_no_other_then_or_later(engine: Engine, max_num_tokens: int) -> None:
    """Sequences with NaN run beside others, end with an error, and leave their blocks to those that come after."""
    expected = open_stepper(engine).generate(prompts(6))
    stepper = open_stepper(engine, enable_prefix_caching=False, max_num_tokens=max_num_tokens)
    for _ in range(3):
        poisoned = [stepper.add([*prompt, POISON, 3], max_tokens=4) for prompt in prompts(6)]
        healthy = [stepper.add(prompt) for prompt in prompts(6)]
        stepper.finish()
        assert [stepper.token_ids(request_id) for request_id in healthy] == expected
        reasons = {stepper.deltas[request_id][-1].finish_reason for request_id in poisoned}
        assert reasons == {FinishReason.ERROR}


def test_running_a_plan_again_gives_the_same(engine: Engine) -> None:
    runner = open_runner(engine)
    stepper = Stepper.open(engine[1], runner)
    stepper.add(prompts(1)[0])
    plan = stepper.scheduler.schedule()
    assert runner.run(plan) == runner.run(plan)


def test_an_empty_plan_is_nothing(engine: Engine) -> None:
    assert open_runner(engine).run(Plan((), finished_sequence_ids=(3,))).outputs == {}


def test_a_block_table_that_is_too_short_is_refused(engine: Engine) -> None:
    runner = open_runner(engine)
    stepper = Stepper.open(engine[1], runner)
    num_tokens = engine[1].kv_cache.block_size + 1
    stepper.add([1] * num_tokens)
    (item,) = stepper.scheduler.schedule().scheduled
    item.sequence.block_table.pop()
    with pytest.raises((ValueError, IndexError), match=rf"1 blocks(, needs 2| for {num_tokens} tokens)"):
        runner.run(Plan((item,)))
