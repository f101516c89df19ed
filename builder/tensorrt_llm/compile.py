"""The TensorRT engine of an engine-flow checkpoint, compiled where TensorRT-LLM is installed.

`trtllm-build` does it, in a process of its own. Its flags are the fields of BuildConfig and, one each, those of PluginConfig
(tensorrt_llm/commands/build.py, 1.0 to 1.2).
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from trierarch.builder.blueprint import DRAFT_FOLDER, write_manifest
from trierarch.builder.errors import ConfigError, EngineError, ResourceError
from trierarch.builder.manifest import (
    MANIFEST_NAME,
    CompiledBy,
    EngineManifest,
    FileDigest,
    Flow,
    Requires,
    TensorRTLLM,
)
from trierarch.builder.progress import DraftProgress, NoProgress, Progress
from trierarch.builder.staging import replace
from trierarch.builder.tensorrt_llm.compatibility import Installed, installed
from trierarch.builder.tensorrt_llm.package import synced_files
from trierarch.builder.tensorrt_llm.quantization import check_hardware
from trierarch.builder.tensorrt_llm.releases import minor
from trierarch.builder.verify import digest_file

CHECKPOINT_FOLDER: Final = "checkpoint"
COMPILED_FOLDER: Final = "compiled"
_PROGRAM: Final = "trtllm-build"
_MODULE: Final = "tensorrt_llm.commands.build"
_NESTED: Final = ("plugin_config", "lora_config")
"""Fields of BuildConfig whose own fields are flags."""
_LOWERED: Final = ("kv_cache_type", "speculative_decoding_mode")
"""Enumerations, which the command line spells in lower case."""
_SWITCHES: Final = ("gather_context_logits",)
"""Flags without a value."""


def build_flags(build_config: Mapping[str, Any]) -> Iterator[str]:
    """Fields of BuildConfig as flags of `trtllm-build`."""
    for name, value in build_config.items():
        if name in _NESTED:
            yield from build_flags(value)
            continue
        if name in _SWITCHES:
            if value:
                yield f"--{name}"
            continue
        yield f"--{name}"
        if isinstance(value, bool):
            yield "enable" if value else "disable"
        elif isinstance(value, list):
            yield from map(str, value)
        else:
            yield str(value).lower() if name in _LOWERED else str(value)


def build_command(engine: Path, record: TensorRTLLM, output: Path | None = None) -> list[str]:
    """The command that compiles the checkpoint of `engine`, whose record it is, into `output`."""
    assert record.build_config is not None, "only an engine flow's record has one"
    workers = record.tensor_parallel_size * record.pipeline_parallel_size
    return [
        _PROGRAM,
        "--checkpoint_dir",
        str(engine / CHECKPOINT_FOLDER),
        "--output_dir",
        str(output or engine / COMPILED_FOLDER),
        "--workers",
        str(workers),
        *build_flags(record.build_config),
    ]


def can_compile(record: TensorRTLLM, here: Installed) -> bool:
    """Whether what is here compiles an engine for the release of `record`."""
    version = here.tensorrt_llm
    return version is not None and minor(version) == record.version and bool(here.gpu_architectures)


def compile_engine(engine: Path, progress: Progress | None = None, here: Installed | None = None) -> EngineManifest:
    """Compile an engine-flow engine, and its draft, for this machine's GPUs; a TensorRT engine of before is replaced.

    The checkpoint stays, so that it can be compiled again elsewhere. Until the last moment the engine is what it was.

    Raises:
        ConfigError: the engine's quantisation is not this GPU's.
        EngineError: there is nothing to compile, or another release is installed.
        ResourceError: TensorRT-LLM is not installed, there is no GPU, or compiling fails.
    """
    progress = progress or NoProgress()
    here = here or installed()
    manifest = EngineManifest.load(engine)
    record = _compilable(manifest, here)
    files = {name: file for name, file in manifest.files.items() if not name.startswith(f"{COMPILED_FOLDER}/")}
    if f"{DRAFT_FOLDER}/{MANIFEST_NAME}" in manifest.files:
        files = _with_draft(engine, files, compile_engine(engine / DRAFT_FOLDER, DraftProgress(progress), here))
    progress.stage(f"compile ({_PROGRAM})", None)
    staging = engine / f".{COMPILED_FOLDER}.{secrets.token_hex(4)}"
    try:
        _run(build_command(engine.absolute(), record, staging.absolute()), staging.absolute())
        files |= _compiled_files(staging, record)
        replace(staging, engine / COMPILED_FOLDER)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    architecture = here.gpu_architectures[0]
    compiled_by = CompiledBy(
        tensorrt_llm=here.tensorrt_llm or "",
        tensorrt=here.tensorrt or "",
        cuda=torch.version.cuda or "",
        gpu_architecture=architecture,
    )
    update = {
        "tensorrt_llm": record.model_copy(update={"model": COMPILED_FOLDER, "compiled_by": compiled_by}),
        "requires": Requires(device=architecture),
        "files": files,
    }
    manifest = manifest.model_copy(update=update)
    write_manifest(engine, manifest)
    return manifest


def shown(command: list[str]) -> str:
    """As it is typed."""
    return shlex.join(command)


def _compilable(manifest: EngineManifest, here: Installed) -> TensorRTLLM:
    record = manifest.tensorrt_llm
    if record is None or record.flow is not Flow.ENGINE:
        raise EngineError(
            f"engine {manifest.name!r} is not compiled by TensorRT-LLM, which loads it as it is; only engines of target "
            "tensorrt_llm for 1.0 to 1.2 are"
        )
    if here.tensorrt_llm is None:
        raise ResourceError(
            f"TensorRT-LLM is not installed here; compile engine {manifest.name!r} on a GPU machine that has "
            f"TensorRT-LLM {record.version}"
        )
    if minor(here.tensorrt_llm) != record.version:
        raise EngineError(
            f"engine {manifest.name!r} was built for TensorRT-LLM {record.version}, and {here.tensorrt_llm} is installed; "
            f"build it again with: trierarch build --target tensorrt_llm --tensorrt-llm-version {minor(here.tensorrt_llm)}"
        )
    if not here.gpu_architectures:
        raise ResourceError("there is no GPU here to compile for; compile on the machine that will run the engine")
    try:
        check_hardware((record.quant_algo, record.kv_cache_quant_algo), here.gpu_architectures[0])
    except ConfigError as error:
        raise ConfigError(f"engine {manifest.name!r}: {error}") from None
    return record


def _with_draft(engine: Path, files: dict[str, FileDigest], draft: EngineManifest) -> dict[str, FileDigest]:
    own = {name: file for name, file in files.items() if not name.startswith(f"{DRAFT_FOLDER}/")}
    theirs = {f"{DRAFT_FOLDER}/{name}": file for name, file in draft.files.items()}
    path = f"{DRAFT_FOLDER}/{MANIFEST_NAME}"
    return {**own, **theirs, path: digest_file(engine / path)}


def _compiled_files(folder: Path, record: TensorRTLLM) -> dict[str, FileDigest]:
    ranks = record.tensor_parallel_size * record.pipeline_parallel_size
    wanted = ["config.json", *(f"rank{index}.engine" for index in range(ranks))]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise ResourceError(f"{_PROGRAM} ended well and wrote no {', '.join(missing)}; run it by hand to see why")
    return synced_files(folder, COMPILED_FOLDER)


def _run(command: list[str], output: Path) -> None:
    """Run it in `output`, which is made: its timing cache goes where it is run, and is nobody's."""
    program, *flags = command
    found = shutil.which(program)
    if found is None and importlib.util.find_spec("tensorrt_llm") is None:
        raise ResourceError(f"{program} is not on PATH; install TensorRT-LLM as its documentation says")
    whole = [found, *flags] if found is not None else [sys.executable, "-m", _MODULE, *flags]
    whole[0] = os.path.abspath(whole[0])
    output.mkdir()
    done = subprocess.run(whole, cwd=output, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise ResourceError(
            f"{program} failed with status {done.returncode} ({lines[-1].strip() if lines else 'it said nothing'}); "
            f"run it by hand to see more: {shown(command)}"
        )
    (output / "model.cache").unlink(missing_ok=True)
