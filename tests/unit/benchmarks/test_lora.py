"""What `lora` gives its rivals, what it asks them, and that PEFT's worker mixes adapters as PEFT computes each alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.adapters import base_model, load_adapter, random_adapter
from support.checkpoints import random_checkpoint
from support.modelled_subject import ModelledSubject, Quiet
from support.packed_adapters import load_packed, taking_adapters
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.benchmarks import lora_session
from trierarch.benchmarks.adapter_files import write_adapters, write_peft_adapters
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.lora_session import EXECUTOR, MIXES, SLOTS, LoraSession, Plan
from trierarch.benchmarks.report import Row
from trierarch.benchmarks.rivals.catalog import ADAPTING, left_out
from trierarch.benchmarks.subjects.subject import Subject, Timing
from trierarch.benchmarks.workers import transformers as transformers_worker
from trierarch.benchmarks.workers.protocol import Steering, TokenIds, adapters_environment
from trierarch.benchmarks.workload import Workload
from trierarch.builder.adapter_source import read_adapter
from trierarch.builder.manifest import DType

PLAN = Plan(registered=(1, 10), num_requests=6, num_cold=2)
WORKLOAD = Workload(seed=1, concurrencies=(4, 8), num_repeats=2)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_rivals_are_given_the_same_adapters(tmp_path: Path, dtype: DType) -> None:
    manifest = taking_adapters(tiny_manifest(tiny_architecture(family="LlamaForCausalLM"), dtype))
    ranks = {"a": 4, "b": 4, "c": 2}
    for folder, write in (("ours", write_adapters), ("theirs", write_peft_adapters)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, manifest, ranks, 7)
    digests = set()
    for name, rank in ranks.items():
        ours = load_packed(tmp_path / "ours" / f"{name}.safetensors")
        theirs = read_adapter(tmp_path / "theirs" / name, tmp_path, manifest)
        assert ours.arrays.keys() == theirs.arrays.keys()
        assert all(np.array_equal(ours.arrays[tensor], theirs.arrays[tensor]) for tensor in ours.arrays)
        assert theirs.manifest.digest == ours.manifest.digest
        assert theirs.manifest.rank == rank
        digests.add(theirs.manifest.digest)
    assert len(digests) == len(ranks)


class Adapting(ModelledSubject):
    """Each different adapter of a call makes it a tenth slower."""

    def __init__(self, name: str, pace: float = 1.0) -> None:
        super().__init__(name, pace)
        self.asked: list[tuple[str, ...]] = []
        self.names: tuple[str, ...] = ()

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> Timing:
        self.asked.append(self.names)
        timing = super().generate(prompts, num_output_tokens)
        counters = {"adapter_load_failures": 0.0, "adapter_bytes": 5e6}
        return Timing(timing.seconds * (1 + 0.1 * len(set(self.names))), timing.token_ids, counters)


def ask(subject: Subject, prompts: list[TokenIds], num_tokens: int, adapters: Any) -> Timing:
    assert isinstance(subject, Adapting)
    subject.names = tuple(adapters)
    try:
        return subject.generate(prompts, num_tokens)
    finally:
        subject.names = ()


def test_rivals_are_asked_for_what_is_comparable_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_session, "_ask", ask)
    ours, slots, rival = Adapting(EXECUTOR), Adapting(SLOTS), Adapting("rival", 2.0)
    with Lineup([ours, slots, rival], WORKLOAD.num_repeats, num_attempts=1, watch=Quiet) as lineup:
        session = LoraSession(lineup, WORKLOAD, PLAN, ["rival"])
        rows = {row.figure: row for taken in session.figures() for row in session.rows(taken)}
    contested = {name for name, row in rows.items() if row.rival is not None}
    assert contested == {"aggregate_base_c8", "aggregate_four_c8", "share_of_base_four_c8"}
    assert rows["aggregate_four_c8"].ratio == pytest.approx(2.0)
    assert rows["share_of_base_four_c8"].ours == pytest.approx(100 / 1.4, rel=0.2)
    assert set(rival.asked) == {(), tuple(f"a000{index % 4}" for index in range(8))}
    assert {f"aggregate_{mix}_c4" for mix in MIXES} | {"share_of_10_with_10", "cold_ttft_delay"} <= rows.keys()
    assert set(PLAN.contested_ranks) == {f"a000{index}" for index in range(4)}


def test_without_a_rival_ours_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_session, "_ask", ask)
    with Lineup([Adapting(EXECUTOR), Adapting(SLOTS)], 1, num_attempts=1, watch=Quiet) as lineup:
        session = LoraSession(lineup, WORKLOAD, PLAN)
        rows: list[Row] = [row for taken in session.figures() for row in session.rows(taken)]
    assert all(row.rival is None and row.ours is not None for row in rows)


def test_who_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("trierarch.benchmarks.rivals.rival.RIVALS", tmp_path)
    lines = left_out(None, ADAPTING)
    assert len(lines) == len(ADAPTING)
    assert all("was left out; install it with: python -m trierarch.benchmarks install" in line for line in lines)
    assert left_out((), ADAPTING) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own use of transformers
def test_pefts_worker_mixes_what_peft_computes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "checkpoint")
    for seed, name in enumerate(("a", "b")):
        random_adapter(checkpoint, tmp_path / "adapters" / name, rank=4, alpha=4, seed=seed)
    for name, value in adapters_environment(tmp_path / "adapters").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(transformers_worker, "TORCH_DTYPE", "float32")
    from trierarch.benchmarks.workers.transformers_peft import TransformersPeftWorker

    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [5, 6, 7], [3]]
    worker = TransformersPeftWorker(checkpoint)
    answers: dict[tuple[str, ...], list[TokenIds]] = {}
    for names in ((), ("a", "b"), ("b",), ()):
        worker.steer(Steering(adapters=names))
        answers[names] = worker.generate(prompts, 6)
    worker.close()
    models: Mapping[str, Any] = {name: load_adapter(checkpoint, tmp_path / "adapters" / name) for name in ("a", "b")}
    assert answers["a", "b"] == [greedy(models["ab"[row % 2]], prompt) for row, prompt in enumerate(prompts)]
    assert answers["b",] == [greedy(models["b"], prompt) for prompt in prompts]
    assert answers[()] == [greedy(base_model(checkpoint), prompt) for prompt in prompts]
    assert answers["a", "b"] != answers["b",] != answers[()]


def greedy(model: Any, prompt: TokenIds) -> TokenIds:
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(6):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
