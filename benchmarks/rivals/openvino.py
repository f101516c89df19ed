"""OpenVINO GenAI, from its own exporter's FP16 intermediate representation: it computes in bfloat16 where the CPU can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from trierarch.benchmarks.rivals.checkpoint import demo_directory
from trierarch.benchmarks.rivals.rival import Rival, Say, environment, home, python_of, run, with_options
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
    _export("fp16", say)


def _export(weight_format: str, say: Say, *options: str) -> None:
    say(f"{NAME}: exporting the checkpoint as {weight_format}")
    staging, model = home(NAME) / ".model-part", _model(weight_format)
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(model, ignore_errors=True)
    # By its module: the script names the place where the environment was made.
    export = [str(python_of(NAME)), "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    export += ["--model", str(demo_directory(say)), "--task", "text-generation-with-past"]
    run([*export, "--weight-format", weight_format, *options, str(staging)])
    staging.rename(model)


def _model(weight_format: str) -> Path:
    return home(NAME) / ("model" if weight_format == "fp16" else f"model-{weight_format}")


OPENVINO: Final = Rival(
    name=NAME,
    summary="OpenVINO GenAI, continuous batching, bfloat16 (FP16 IR)",
    install=_install,
    launch=lambda: Launch(name=NAME, python=python_of(NAME), module=WORKER, model=_model("fp16")),
)


def _variant(bits: int, weight_format: str, *options: str) -> Rival:
    name = f"{NAME}-{weight_format}"
    return Rival(
        name=name,
        summary=f"OpenVINO GenAI, continuous batching, {' '.join((weight_format, *options))} weights",
        install=lambda say: _export(weight_format, say, *options),
        launch=lambda: Launch(name=name, python=python_of(NAME), module=WORKER, model=_model(weight_format)),
        bits=bits,
        base=OPENVINO,
    )


OPENVINO_INT8: Final = _variant(8, "int8")
OPENVINO_INT4: Final = _variant(4, "int4", "--sym", "--group-size", "64", "--ratio", "1.0")

OPENVINO_LOOKUP: Final = with_options(
    OPENVINO, "lookup", "OpenVINO GenAI, continuous batching, bfloat16, speculating by prompt look-up"
)
