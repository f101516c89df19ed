"""Adapters by name, in a library that holds fewer of them than run, and forgets what it holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.eventually import eventually
from support.packed_adapters import random_packed, write_random_packed
from support.token_stream import TokenStream
from trierarch.builder.adapter import AdapterTensors, piece_shape, to_floats
from trierarch.builder.adapter_check import manifest_of
from trierarch.builder.adapter_source import read_adapter
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import DType, EngineManifest, Lora
from trierarch.builder.safetensors_file import SafetensorsFile
from trierarch.builder.tensorrt_llm.compatibility import check_servable
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.adapters.stats import AdapterStatus
from trierarch.python_backend.errors import ExecutorFailed, UnknownAdapter, UnusableAdapter
from trierarch.python_backend.executors.fake import next_token
from trierarch.python_backend.executors.tensorrt_llm import sender
from trierarch.python_backend.executors.tensorrt_llm.disk_adapter import DiskAdapters
from trierarch.python_backend.executors.tensorrt_llm.executor import TensorRTLLMExecutor
from trierarch.python_backend.request import FinishReason

PROMPT = [1, 2, 3]
NUM_TOKENS = 8


class Shelf:
    """An engine that takes adapters, and a directory of them."""

    def __init__(self, library: Any, num_adapters: int, max_adapters: int = 2) -> None:
        self.library = library
        self.folder = library.folder / "shelf"
        self.folder.mkdir()
        self.manifest: EngineManifest = library.manifest(lora=Lora(max_rank=8, max_adapters=max_adapters))
        self.tensors: dict[str, AdapterTensors] = {}
        for number in range(num_adapters):
            self.put(f"a{number}", number)
        directories = AdapterDirectories((self.folder,), library.folder, self.manifest)
        self.executor: TensorRTLLMExecutor = library.open(self.manifest, directories)

    def put(self, name: str, seed: int) -> None:
        self.tensors[name] = write_random_packed(self.folder, name, self.manifest, seed=seed)

    def ask(self, name: str, **fields: Any) -> TokenStream:
        stream: TokenStream = self.library.ask(
            self.executor, PROMPT, adapter=self.executor.find_adapter(name) if name else None, **fields
        )
        return stream

    def expected(self, name: str) -> list[int]:
        """The tokens of one adapter: what the stand-in makes of its bytes."""
        from tensorrt_llm.lora_cache import shift_of  # type: ignore[import-not-found]

        shift = 0
        if name:
            disk = DiskAdapters(self.manifest.architecture)
            written = disk.arrange(self.tensors[name])
            shift = shift_of((written.path / "adapter_model.safetensors").read_bytes())
            disk.close()
        context = list(PROMPT)
        for _ in range(NUM_TOKENS):
            context.append((next_token(context, 3, 97) + shift) % 97)
        return context[len(PROMPT) :]


@pytest.fixture(params=["1.0", "1.3"])
def library(request: pytest.FixtureRequest, stand_in: Callable[..., Any]) -> Any:
    return stand_in(request.param)


def test_each_adapter_has_its_own_answer(library: Any) -> None:
    shelf = Shelf(library, 2)
    names = ["a0", "", "a1", "a0"]
    streams = [shelf.ask(name) for name in names]
    answers = [stream.finish()[0] for stream in streams]
    assert answers == [shelf.expected(name) for name in names]
    assert len({tuple(answer) for answer in answers}) == 3


@pytest.mark.parametrize("num_stale_misses", [1, 2, 1000])
def test_no_request_fails_because_its_adapter_was_let_go_of(library: Any, num_stale_misses: int) -> None:
    library.controls.num_stale_misses = num_stale_misses
    shelf = Shelf(library, 5)
    for _ in range(3):
        names = [f"a{number}" for number in range(5)]
        streams = {name: [shelf.ask(name), shelf.ask(name)] for name in names}
        for name, (first, second) in streams.items():
            assert first.finish()[0] == second.finish()[0] == shelf.expected(name)
    assert library.controls.num_lora_misses > 0
    ids = {sent["lora_request"].lora_int_id for sent in library.controls.submissions}
    names_of_ids = {
        (sent["lora_request"].lora_int_id, sent["lora_request"].lora_name) for sent in library.controls.submissions
    }
    assert len(ids) == len(names_of_ids), "an id was given to two adapters"


def test_a_library_that_holds_fewer_than_we_run_is_waited_for(library: Any) -> None:
    library.controls.lora_slots = 1
    shelf = Shelf(library, 2)
    streams = {name: shelf.ask(name) for name in ("a0", "a1")}
    for name, stream in streams.items():
        assert stream.finish()[0] == shelf.expected(name)


def test_sending_again_has_a_bound(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_FIRST_PAUSE_SECONDS", 0.0)
    library.controls.lora_slots = 0
    shelf = Shelf(library, 1)
    _, last = shelf.ask("a0").finish()
    assert isinstance(last.error, ExecutorFailed)
    assert "Cache is full" in str(last.error)
    assert len(library.controls.submissions) == sender.MAX_ATTEMPTS
    assert shelf.executor.is_healthy
    assert shelf.ask("").finish()[0] == shelf.expected("")


def test_a_name_means_its_new_version_from_the_next_request_on(library: Any) -> None:
    shelf = Shelf(library, 1)
    library.controls.gate.clear()
    old, before = shelf.ask("a0"), shelf.expected("a0")
    shelf.put("a0", 99)
    new = shelf.ask("a0")
    library.controls.gate.set()
    assert old.finish()[0] == before
    assert new.finish()[0] == shelf.expected("a0") != before


def test_what_the_library_reads_is_never_the_operators_file(library: Any) -> None:
    """It reads an adapter again when it has let go of it, and by then the operator's may be gone."""
    shelf = Shelf(library, 1)
    library.controls.gate.clear()
    stream, expected = shelf.ask("a0"), shelf.expected("a0")
    shutil.rmtree(shelf.folder)
    library.controls.gate.set()
    assert stream.finish()[0] == expected


def test_more_adapters_than_slots_wait_and_are_aborted_without_a_leak(library: Any) -> None:
    shelf = Shelf(library, 4)
    library.controls.gate.clear()
    requests = {name: TokenStream() for name in shelf.tensors}
    for name, stream in requests.items():
        request = library.request(PROMPT, adapter=shelf.executor.find_adapter(name))
        shelf.executor.submit(request, stream)
        if name in ("a1", "a3"):
            shelf.executor.abort(request.request_id)
    library.controls.gate.set()
    for name, stream in requests.items():
        reason = FinishReason.CANCELLED if name in ("a1", "a3") else FinishReason.LENGTH
        assert stream.finish()[1].finish_reason is reason

    def is_given_back() -> bool:
        stats = shelf.executor.stats().adapters
        return stats is not None and stats.num_active == 0

    eventually(is_given_back, "all slots given back")
    assert all(info.status is not AdapterStatus.ACTIVE for info in shelf.executor.adapters())
    assert [info.name for info in shelf.executor.adapters()] == ["a0", "a1", "a2", "a3"]


def test_a_damaged_adapter_fails_its_own_requests(library: Any) -> None:
    shelf = Shelf(library, 2)
    path = shelf.folder / "a0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x55
    path.write_bytes(content)
    _, last = shelf.ask("a0").finish()
    assert isinstance(last.error, UnusableAdapter)
    assert shelf.ask("a1").finish()[0] == shelf.expected("a1")


def test_what_the_library_would_leave_out_is_refused_by_name(library: Any) -> None:
    shelf = Shelf(library, 0)
    write_random_packed(shelf.folder, "head", shelf.manifest, pieces=("q", "lm_head"))
    with pytest.raises(UnusableAdapter, match="lm_head"):
        shelf.executor.find_adapter("head")
    with pytest.raises(UnknownAdapter, match="is not registered"):
        shelf.executor.find_adapter("nobody")
    dora = random_packed(shelf.manifest).manifest.model_copy(update={"is_dora": True, "base_digest": "0" * 64})
    with pytest.raises(AdapterError, match="DoRA"):
        check_servable(dora)


def test_an_engine_that_takes_none_says_so(library: Any) -> None:
    executor = library.open()
    with pytest.raises(UnknownAdapter, match="takes no adapters"):
        executor.find_adapter("a0")
    assert executor.adapters() == ()
    assert executor.stats().adapters is None


def read_directory(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with SafetensorsFile(path / "adapter_model.safetensors") as file:
        arrays = file.tensors(file.read())
    return json.loads((path / "adapter_config.json").read_text()), arrays


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
def test_a_directory_says_what_the_adapter_computes(library: Any, dtype: DType) -> None:
    """By the library's rule: b a, times alpha over the rows of a; each of q, k and v where any of them is."""
    manifest = library.manifest(lora=Lora(max_rank=8)).model_copy(update={"dtype": dtype})
    large = random_packed(manifest, rank=6, pieces=("down",), seed=1)
    small = random_packed(manifest, rank=2, pieces=("q", "up"), seed=2)
    arrays = {**large.arrays, **small.arrays}
    tensors = AdapterTensors(manifest_of(arrays, manifest, "mixed"), arrays)
    disk = DiskAdapters(manifest.architecture)
    adapter = disk.arrange(tensors)
    config, written = read_directory(adapter.path)
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (6, 6, "LORA")
    assert config["target_modules"] == ["down_proj", "k_proj", "q_proj", "up_proj", "v_proj"]
    names = {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
    for layer in range(manifest.architecture.num_layers):
        for piece, module in names.items():
            stem = f"base_model.model.model.layers.{layer}.{module}"
            a, b = to_floats(written[f"{stem}.lora_A.weight"]), to_floats(written[f"{stem}.lora_B.weight"])
            scale = config["lora_alpha"] / a.shape[0]
            own = f"layers.{layer}.{piece}"
            expected = np.zeros(piece_shape(manifest.architecture, piece), np.float32)
            if f"{own}.a" in arrays:
                expected = to_floats(arrays[f"{own}.b"]) @ to_floats(arrays[f"{own}.a"])
            np.testing.assert_array_equal(scale * (b @ a), expected)
    assert adapter.num_bytes == sum(array.nbytes for array in written.values())
    path = adapter.path
    del adapter
    assert not path.exists(), "it goes with the last who has it"
    disk.close()


def test_peft_itself_computes_the_same_from_the_directory_we_write(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from support.adapted_engine import adapted_engine
    from support.adapters import load_adapter, random_adapter

    built = adapted_engine(tmp_path, 1)
    manifest = EngineManifest.load(built.engine)
    own = random_adapter(
        built.checkpoint, tmp_path / "own", rank=4, alpha=12, use_rslora=True, rank_pattern={"q_proj": 2}, seed=3
    )
    disk = DiskAdapters(manifest.architecture)
    written = disk.arrange(read_adapter(own, built.engine, manifest))
    tokens = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        expected = load_adapter(built.checkpoint, own)(tokens).logits
        found = load_adapter(built.checkpoint, written.path)(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    disk.close()
    dora = random_adapter(built.checkpoint, tmp_path / "dora", use_dora=True)
    with pytest.raises(AdapterError, match="gains need weights that this engine has not"):
        read_adapter(dora, built.engine, manifest.model_copy(update={"files": {}}))
