"""OpenVINO GenAI, from its own exporter's FP16 intermediate representation: it computes in bfloat16 where the CPU can."""

from __future__ import annotations

import shutil
from typing import Final

from trierarch.benchmarks.rivals.checkpoint import demo_directory
from trierarch.benchmarks.rivals.rival import Rival, Say, environment, home, python_of, run
from trierarch.benchmarks.subjects.worker import Launch

NAME: Final = "openvino"
WORKER: Final = "trierarch.benchmarks.workers.openvino"
REQUIREMENTS: Final = (
    "openvino-genai==2026.4.1.0",
    "optimum-intel[openvino]==2.2.0",
    "torch==2.13.0",
    "nncf==3.4.0",
)


def _install(say: Say) -> None:
    python = environment(NAME, REQUIREMENTS, say)
    run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"])  # may not fit this torch
    say(f"{NAME}: exporting the checkpoint")
    staging, model = home(NAME) / ".model-part", home(NAME) / "model"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(model, ignore_errors=True)
    export = [str(python.parent / "optimum-cli"), "export", "openvino", "--model", str(demo_directory(say))]
    run([*export, "--task", "text-generation-with-past", "--weight-format", "fp16", str(staging)])
    staging.rename(model)


OPENVINO: Final = Rival(
    name=NAME,
    summary="OpenVINO GenAI, continuous batching, bfloat16 (FP16 IR)",
    install=_install,
    launch=lambda: Launch(name=NAME, python=python_of(NAME), module=WORKER, model=home(NAME) / "model"),
)
