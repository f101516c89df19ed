"""Many streams over one real server: none changes another's text, and one that ends leaves nothing behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from support.eventually import eventually
from support.metrics import kv_blocks, requests, wait_until_idle
from trierarch.orchestrator.client import TritonClient
from trierarch.orchestrator.prompt import Prompt, join
from trierarch.orchestrator.triton_server import TritonServer

TOPICS = ("gravity", "the sea", "a fox", "Rome", "tea", "the moon", "music", "🙂 and 日本")


def prompts() -> list[Prompt]:
    """32 of mixed lengths: some of one block, some of many chunks, some sampled by seed, some stopped by a string."""
    made = []
    for number in range(32):
        text = f"{number}: write about {TOPICS[number % len(TOPICS)]}. " * (1 + 12 * (number % 4))
        if number % 3 == 0:
            made.append(Prompt(text=text, max_tokens=8 + number, top_k=0, temperature=1.0, seed=number))
        elif number % 3 == 1:
            made.append(Prompt(text=text, max_tokens=8 + number, chat=True, stop=("the",)))
        else:
            made.append(Prompt(text=text, max_tokens=8 + number))
    return made


def ask(client: TritonClient, prompt: Prompt) -> str:
    with client.stream(prompt) as stream:
        return join(stream)[0].text


def test_concurrent_streams_give_the_text_that_each_gives_alone(triton: TritonServer, client: TritonClient) -> None:
    alone = [ask(client, prompt) for prompt in prompts()]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda prompt: ask(client, prompt), prompts()))
    assert together == alone
    assert len(set(alone)) > 16  # else equality would say little
    assert not any("the" in text for number, text in enumerate(alone) if number % 3 == 1)
    wait_until_idle(triton.endpoints.metrics)


def test_a_cancelled_stream_gives_its_blocks_back_while_another_goes_on(
    triton: TritonServer, client: TritonClient
) -> None:
    metrics = triton.endpoints.metrics
    wait_until_idle(metrics)
    long = Prompt(text="Count: one, two, three, " * 40, max_tokens=2000)
    with client.stream(Prompt(text="1 2 3 4 5 6 7 8 9 10 11 12", max_tokens=1000)) as stays:  # it counts on
        next(iter(stays))
        with client.stream(long) as gone:
            next(iter(gone))
            eventually(lambda: requests(metrics, "active") == 2, "two active requests")
            held = kv_blocks(metrics, "used")
        eventually(lambda: requests(metrics, "active") <= 1, "the cancelled request gone")
        eventually(lambda: kv_blocks(metrics, "used") < held, "its blocks given back")
        assert [next(iter(stays)).finish_reason for _ in range(5)] == [None] * 5
    wait_until_idle(metrics)


def test_a_prompt_asked_again_reuses_its_blocks(triton: TritonServer, client: TritonClient) -> None:
    metrics = triton.endpoints.metrics
    prompt = Prompt(text="Once upon a time, in a house by the river, " * 20, max_tokens=4)
    first = ask(client, prompt)
    eventually(lambda: requests(metrics, "active") == 0, "idle")
    before = kv_blocks(metrics, "reused")
    assert ask(client, prompt) == first
    eventually(lambda: kv_blocks(metrics, "reused") >= before + 10, "blocks reused")


@pytest.mark.parametrize("n", [1, 3])
def test_seeded_answers_come_again(client: TritonClient, n: int) -> None:
    prompt = Prompt(text="A random word:", max_tokens=12, top_k=0, temperature=1.5, seed=7, n=n)
    answers = [completion.text for completion in client.complete(prompt)]
    assert [completion.text for completion in client.complete(prompt)] == answers
    assert len(set(answers)) == n
