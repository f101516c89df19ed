"""Which runner an engine gets, and that compiled kernels run without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, with_kernels, write_engine
from trierarch.builder import machine
from trierarch.builder.compile import find_compiler
from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import DType, EngineManifest, Requires, Rope
from trierarch.python_backend.executors import factory
from trierarch.python_backend.executors.torch.device import default_device

TOKENS = """
import json, queue, sys, time
from pathlib import Path
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.request import Request, SamplingParams

executor = open_executor(Path(sys.argv[1]))
deltas = queue.SimpleQueue()
asked = {
    "greedy": SamplingParams(max_tokens=5, temperature=0.0, end_ids=(), logprobs=2, prompt_logprobs=1),
    "sampled": SamplingParams(max_tokens=5, top_p=0.9, top_k=20, seed=1, end_ids=(), repetition_penalty=1.1),
}
outputs = {name: [] for name in asked}
for name, sampling in asked.items():
    request = Request(request_id=name, prompt_token_ids=(3, 4, 5), sampling=sampling, arrival_time=time.monotonic())
    executor.submit(request, deltas.put)
num_unfinished = len(asked)
while num_unfinished:
    delta = deltas.get(timeout=60)
    outputs[delta.request_id] += delta.token_ids
    num_unfinished -= delta.finish_reason is not None
executor.close()
print(json.dumps({"outputs": outputs, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(params=[DType.FLOAT32, DType.BFLOAT16])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, EngineManifest]:
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    architecture = tiny_architecture(head_dim=16, ropes=(Rope(rotary_dim=16),))
    manifest = with_kernels(tmp_path, tiny_manifest(architecture, request.param, block_size=16))
    write_engine(tmp_path, manifest, random_weights(architecture, request.param))
    return tmp_path, manifest


def test_compiled_kernels_run_without_torch(engine: tuple[Path, EngineManifest]) -> None:
    command = [sys.executable, "-c", TOKENS, str(engine[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {name: len(tokens) for name, tokens in told["outputs"].items()} == {"greedy": 5, "sampled": 5}
    assert "numpy" in told["modules"]
    assert not {"torch", "transformers", "scipy"}.intersection(told["modules"])


@pytest.mark.parametrize(
    "has_kernels, driver, torch_has_cuda, required, runner",
    [
        (True, (), False, "any", "CpuRunner"),
        (False, (), False, "any", "TorchRunner"),
        (True, ("sm_90",), True, "any", "TorchRunner"),
        (True, ("sm_90",), True, "cpu", "CpuRunner"),
        (True, ("sm_90",), False, "any", "CpuRunner"),  # torch was built without CUDA
    ],
)
def test_cuda_wins_over_kernels_and_kernels_over_torch(
    monkeypatch: pytest.MonkeyPatch,
    has_kernels: bool,
    driver: tuple[str, ...],
    torch_has_cuda: bool,
    required: str,
    runner: str,
) -> None:
    for module in ("cpu.runner.CpuRunner", "torch.runner.TorchRunner"):
        name = module.rpartition(".")[2]
        monkeypatch.setattr(f"trierarch.python_backend.executors.{module}", lambda *given, name=name, **settings: name)
    monkeypatch.setattr(machine, "cuda_architectures", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_has_cuda)
    monkeypatch.setattr(torch.version, "cuda", None)
    manifest = tiny_manifest(tiny_architecture()).model_copy(
        update={"kernels": "kernels.so" if has_kernels else None, "requires": Requires(device=required)}
    )
    assert str(factory.open_runner(Path(), manifest)) == runner


@pytest.mark.parametrize("required", ["any", "sm_90"])
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_be_slow(monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    """Whoever has one wants it: what a driver is too old for is not computed on the CPU, a hundred times slower, without a word."""

    def refuse() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update it. Or else."
        )

    monkeypatch.setattr(machine, "cuda_architectures", lambda: ("sm_90",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(ResourceError) as raised:
        machine.takes_gpu(required)
    said = str(raised.value)
    assert (
        "for CUDA 12.8 cannot use it (The NVIDIA driver on your system is too old (found version 11040)); update"
        in said
    )
    assert ("or hide the GPU, by CUDA_VISIBLE_DEVICES=-1" in said) == (required == "any")
    with pytest.raises(ResourceError):
        default_device(required)


def test_a_hidden_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_architectures", lambda: ("sm_90",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not machine.takes_gpu("any")
    assert default_device("any").type == "cpu"
    with pytest.raises(ResourceError, match=r"sm_90.* CUDA_VISIBLE_DEVICES hides it; unset that$"):
        machine.takes_gpu("sm_90")


def test_without_a_driver_nobody_asks_for_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CUDA_DRIVER", (tmp_path / "nvidia",))
    monkeypatch.setattr(subprocess, "run", lambda *given, **settings: pytest.fail("a process was started"))
    assert machine.cuda_architectures.__wrapped__() == ()
