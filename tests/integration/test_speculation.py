"""Guessing ahead through one real server: every drafter at once, and not a token of any answer changed by it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from support.demo import demo_checkpoint
from support.eventually import eventually
from support.metrics import wait_until_idle
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DrafterKind
from trierarch.orchestrator.client import TritonClient
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.prompt import Completion, Prompt, join
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.serving import serving
from trierarch.orchestrator.triton_server import TritonServer

DRAFTERS = (DrafterKind.PROMPT_LOOKUP, DrafterKind.SUFFIX, DrafterKind.DRAFT_MODEL)
SENTENCE = "The ferry left at noon, and nobody on board had counted the sacks of barley. "


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton over an engine that has every drafter: the two that read texts, and its own int4 weights."""
    engine = tmp_path_factory.mktemp("engines") / "drafted"
    config = BuildConfig(
        model=str(demo_checkpoint()),
        output=engine,
        speculation=DRAFTERS,
        draft="int4",
        max_seq_len=1024,
        kv_cache_bytes=512 << 20,
    )
    build(config)
    with serving(engine, ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), drain_timeout=5)) as server:
        yield server
        server.stop()


def prompts() -> list[Prompt]:
    """32 that differ in length, in what may be guessed, in who may guess it, in how answers are drawn and end."""
    made = []
    for number in range(32):
        text = f"{number}: repeat this text word for word: {SENTENCE * (1 + number % 5)}"
        prompt = Prompt(text=text, max_tokens=20 + number, max_draft_tokens=(None, 1, 3, None)[number % 4])
        if number % 3 == 0:
            prompt = replace(prompt, top_k=0, temperature=0.8, top_p=0.95, seed=number)
        elif number % 3 == 1:
            prompt = replace(prompt, chat=True, stop=("barley",))
        if number % 5 == 1:
            prompt = replace(prompt, drafters=(DRAFTERS[number % 3].value,))
        if number % 8 == 3:
            prompt = replace(prompt, n=2, seed=number, temperature=1.0, top_k=40)
        made.append(prompt)
    return made


def ask(client: TritonClient, prompt: Prompt) -> list[Completion]:
    with client.stream(prompt) as stream:
        return join(stream)


def guessed(server: TritonServer, name: str, drafter: DrafterKind) -> float:
    metrics = Metrics.read(server.endpoints.metrics)
    return metrics.value(f"trierarch_{name}_total", model="tensorrt_llm", drafter=drafter.value)


def test_32_mixed_streams_that_guess_say_what_each_says_alone_without(server: TritonServer) -> None:
    client = TritonClient(server.endpoints.grpc)
    alone = [ask(client, replace(prompt, max_draft_tokens=0, drafters=())) for prompt in prompts()]
    before = sum(guessed(server, "drafts", drafter) for drafter in DRAFTERS)

    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda prompt: ask(client, prompt), prompts()))

    assert [[one.token_ids for one in answer] for answer in together] == [
        [one.token_ids for one in answer] for answer in alone
    ]
    assert [[one.text for one in answer] for answer in together] == [[one.text for one in answer] for answer in alone]
    assert len({one.text for answer in alone for one in answer}) > 24  # else equality would say little
    wait_until_idle(server.endpoints.metrics)
    eventually(lambda: sum(guessed(server, "drafts", drafter) for drafter in DRAFTERS) > before, "guesses counted")


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_each_drafter_guesses_by_itself(server: TritonServer, drafter: DrafterKind) -> None:
    """A text that repeats itself is right for all of them. Asked again until the policy follows: it has to learn."""
    client = TritonClient(server.endpoints.grpc)
    prompt = Prompt(text="one two three four one two three four one two", max_tokens=32, max_draft_tokens=0)
    plain = ask(client, prompt)

    def follows() -> bool:
        assert ask(client, replace(prompt, max_draft_tokens=None, drafters=(drafter.value,))) == plain
        return guessed(server, "accepted_draft_tokens", drafter) > 0

    eventually(follows, "guesses that are right")
    assert guessed(server, "accepted_draft_tokens", drafter) <= guessed(server, "draft_tokens", drafter)
