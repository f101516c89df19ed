"""The demo checkpoint's greedy tokens against transformers', however the work is cut up and batched.

`demo_greedy.json` holds transformers' answers in float32; `pytest --regenerate tests/golden/test_demo_greedy.py`
rewrites it. Two prompts are asked of transformers anew in every run, so that the file cannot grow stale unseen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.demo_reference import NUM_TOKENS, Reference
from support.stepping import Stepper
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.demo import find_demo
from trierarch.builder.manifest import TOKENIZER_NAME, DType, EngineManifest
from trierarch.builder.progress import NoProgress
from trierarch.python_backend.executors.factory import open_runner
from trierarch.python_backend.executors.runner import Runner

GOLDEN = Path(__file__).parent / "demo_greedy.json"
LEAST_LEAD = 1e-3  # Logits of two float32 implementations differ by about 1e-5.
QUESTIONS = (
    "What is gravity?",
    "Write a haiku about the sea.",
    "Explain to a child why the sky is blue.",
    "List five fruits and their colours.",
    "Translate to French: The cat sleeps on the red sofa.",
    "Write a Python function that reverses a string.",
    "What is 17 times 23? Show each step.",
    "Summarise the plot of Romeo and Juliet in three sentences.",
    "Who was Ada Lovelace?",
    "Give me a recipe for pancakes.",
    "Convert this to JSON: name Bob, age 42, city Oslo.",
    "What are the causes of the First World War?",
    "Schreibe einen kurzen Satz über den Winter.",
    "What does `for (int i = 0; i < 10; i++)` do in C?",
    "Compose a polite email that declines an invitation.",
    "Name the planets in order of their distance from the sun.",
    "日本の首都はどこですか。",
    "Continue: one, two, three, four,",
    "How do vaccines work? " + "Please be thorough and consider the history of medicine. " * 20,
    "🙂 Tell me a joke about computers!",
)

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def gguf() -> Path:
    return find_demo(NoProgress())


@pytest.fixture(scope="module")
def reference(gguf: Path) -> Callable[[], Reference]:
    return lambda: Reference(gguf)


@pytest.fixture(scope="module")
def golden(reference: Callable[[], Reference], regenerate: bool) -> list[dict[str, Any]]:
    """One entry a question: `question`, `prompt` and `output` token ids, `lead`."""
    if regenerate:
        model, entries = reference(), []
        for question in QUESTIONS:
            prompt = model.encode(question)
            output, lead = model.generate(prompt)
            assert lead > LEAST_LEAD, f"{question!r} nearly ties ({lead:g}): rounding would decide; take another"
            entries.append({"question": question, "lead": round(lead, 6), "prompt": prompt, "output": output})
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    loaded: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert tuple(entry["question"] for entry in loaded) == QUESTIONS, "regenerate the golden file"
    return loaded


@pytest.fixture(scope="module")
def prompts(golden: list[dict[str, Any]]) -> list[list[int]]:
    return [entry["prompt"] for entry in golden]


@pytest.fixture(scope="module")
def outputs(golden: list[dict[str, Any]]) -> list[list[int]]:
    return [entry["output"] for entry in golden]


@pytest.fixture(scope="module")
def engine(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "engine"
    build(BuildConfig(model=str(gguf), output=output, dtype=DType.FLOAT32, max_seq_len=1024))
    return output


@pytest.fixture(scope="module")
def manifest(engine: Path) -> EngineManifest:
    return EngineManifest.load(engine)


@pytest.fixture(scope="module")
def runner(engine: Path, manifest: EngineManifest) -> Iterator[Runner]:
    runner = open_runner(engine, manifest)
    yield runner
    runner.close()


def test_golden_file_is_what_transformers_says(
    reference: Callable[[], Reference], prompts: list[list[int]], outputs: list[list[int]]
) -> None:
    model = reference()
    assert [model.encode(question) for question in QUESTIONS] == prompts
    for index in (0, 5):
        assert model.generate(prompts[index])[0] == outputs[index]


def test_alone(manifest: EngineManifest, runner: Runner, prompts: list[list[int]], outputs: list[list[int]]) -> None:
    """Every other one: what is left of them is what all tests with company are about."""
    stepper = Stepper.open(manifest, runner, enable_prefix_caching=False)
    for prompt, output in zip(prompts[::2], outputs[::2], strict=True):
        assert stepper.generate([prompt], max_tokens=NUM_TOKENS) == [output]


def test_all_together(
    manifest: EngineManifest, runner: Runner, prompts: list[list[int]], outputs: list[list[int]]
) -> None:
    stepper = Stepper.open(manifest, runner, enable_prefix_caching=False, max_num_tokens=4096)
    assert stepper.generate(prompts, max_tokens=NUM_TOKENS) == outputs
    assert all(usage.num_cached_tokens == 0 for usage in stepper.usages())


def test_prompts_in_chunks(
    manifest: EngineManifest, runner: Runner, prompts: list[list[int]], outputs: list[list[int]]
) -> None:
    """A budget so small that prompts are computed over many steps, beside the tokens of others."""
    stepper = Stepper.open(manifest, runner, enable_prefix_caching=False, max_num_tokens=29)
    assert stepper.generate(prompts, max_tokens=NUM_TOKENS) == outputs


def test_prefixes_found_in_the_cache(
    manifest: EngineManifest, runner: Runner, prompts: list[list[int]], outputs: list[list[int]]
) -> None:
    stepper = Stepper.open(manifest, runner, enable_prefix_caching=True)
    stepper.generate(prompts, max_tokens=1)
    stepper.forget()
    assert stepper.generate(prompts, max_tokens=NUM_TOKENS) == outputs
    assert all(usage.num_cached_tokens > 0 for usage in stepper.usages())


@pytest.mark.parametrize("enable_prefix_caching, num_prompts", [(False, len(QUESTIONS)), (True, 6)])
def test_preempted(
    manifest: EngineManifest,
    runner: Runner,
    prompts: list[list[int]],
    outputs: list[list[int]],
    enable_prefix_caching: bool,
    num_prompts: int,
) -> None:
    """A pool for a third of what all need: sequences lose their blocks and are computed again."""
    prompts, outputs = prompts[:num_prompts], outputs[:num_prompts]
    num_tokens = sum(len(prompt) + NUM_TOKENS for prompt in prompts)
    num_blocks = num_tokens // manifest.kv_cache.block_size // 3
    stepper = Stepper.open(
        manifest, runner, num_blocks, enable_prefix_caching=enable_prefix_caching, max_seq_len=num_blocks * 16
    )
    assert stepper.generate(prompts, max_tokens=NUM_TOKENS) == outputs
    assert sum(usage.num_preemptions for usage in stepper.usages()) > 0


def test_the_engines_tokenizer_reads_the_prompts_alike(
    engine: Path, golden: list[dict[str, Any]], prompts: list[list[int]]
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(engine / TOKENIZER_NAME))
    for entry, prompt in zip(golden, prompts, strict=True):
        text = tokenizer.decode(prompt, skip_special_tokens=False)
        assert entry["question"] in text
        assert tokenizer.encode(text, add_special_tokens=False).ids == prompt
