"""Composes an engine into a Triton model repository: TensorRT-LLM's five models, nothing templated.

    tensorrt_llm/       holds the executor; takes token ids, and text
    ensemble/           the contract's text door: one step, straight into tensorrt_llm (docs/decisions/0001)
    tensorrt_llm_bls/   the same door through business-logic scripting
    preprocessing/      text to token ids, for clients that do the steps themselves
    postprocessing/     token ids to text
    NAME/               the adapter of that name as a model of its own, for each that is asked for
    NAME/               the tensors of TensorRT-LLM's llmapi model, or of Triton's vLLM backend, where that is asked for

Of the five, every model of the backend finds the engine at `<model>/1/engine`. It is linked there once, in tensorrt_llm,
and the others link to that; with `copy` the repository stands alone and the others carry the manifest and the tokenizer.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Final

from trierarch.builder.adapter import NAME_PATTERN
from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.builder.manifest import CHAT_TEMPLATE_NAME, MANIFEST_NAME, TOKENIZER_NAME, EngineManifest
from trierarch.builder.staging import replace
from trierarch.builder.verify import verify
from trierarch.ensembles.adapter_model import DIRECTORIES, adapter_model
from trierarch.ensembles.model_config import CONFIG_NAME, KEEP, VERSION, EnsembleStep, ModelConfig
from trierarch.python_backend.triton.contract import ENSEMBLE, MAX_BATCH_SIZE, Role
from trierarch.python_backend.triton.path_list import text_of

ENSEMBLE_NAME: Final = "ensemble"
ENGINE: Final = "engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeOptions:
    """What a repository's owner may choose."""

    copy: bool = False
    """Copy the engine into the repository instead of linking it."""
    decoupled: bool = True
    """Whether models stream. Unary gRPC clients need False: Triton refuses them on decoupled models."""
    exclude_input_in_output: bool = False
    """Whether unstreamed answers leave out the prompt when the client does not say."""
    accumulate_tokens: bool = False
    """Whether tensorrt_llm_bls streams the text so far in place of what is new."""
    adapters: tuple[Path, ...] = ()
    """Directories that adapters are found in, after the engine's own. With `copy` they are copied as they are now."""
    adapter_models: tuple[str, ...] = ()
    """Adapters that are models of their own, too."""
    adapter_uploads: bool = True
    """Whether clients may send adapters, as TensorRT-LLM's do."""
    adapter_upload_directory: Path | None = None
    """Where those are kept; None keeps them for as long as the model is loaded."""
    kv_host_bytes: int | None = None
    """Of host memory for blocks that the KV cache has no room for; None is the backend's default, as in the next ones."""
    kv_disk_directory: Path | None = None
    """Where those go next."""
    kv_disk_bytes: int | None = None
    """Of files there."""
    llmapi: str = ""
    """Name of a model with the tensors of TensorRT-LLM's llmapi; empty for none."""
    vllm: str = ""
    """Name of a model with the tensors of Triton's vLLM backend; empty for none."""

    @property
    def translating_models(self) -> dict[str, Role]:
        """Name -> role of the models that speak other tensors."""
        return {name: role for name, role in ((self.llmapi, Role.LLMAPI), (self.vllm, Role.VLLM)) if name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A repository that was written."""

    path: Path
    engine: EngineManifest
    models: tuple[str, ...]


def compose(engine: Path, output: Path, options: ComposeOptions = ComposeOptions()) -> Composition:
    """Write a repository that serves `engine` to `output`, whole or not at all; a repository there is replaced.

    Raises:
        EngineError: the engine is not one, or not for this machine.
        ConfigError: something that is not a repository is at `output`; there is no such directory of adapters, or the engine
            takes none; a model cannot be named for an adapter.
        ResourceError: the disk is full or cannot be written.
    """
    manifest = verify(engine)
    output = Path(os.path.abspath(output))
    _check_replaceable(output, engine)
    _check_adapters(manifest, options)
    _check_translating(options)
    adapters, options = options.adapters, _placed(options, output)
    staging = output.with_name(f".{output.name}.{secrets.token_hex(4)}.composing")
    try:
        staging.mkdir(parents=True)
        write_configs(staging, options)
        _place_engine(engine, manifest, staging, output, options.copy)
        if options.copy:
            for source, place in zip(adapters, options.adapters, strict=True):
                shutil.copytree(source, staging / place)
        replace(staging, output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"the disk of {output.parent} is full; free some space or link the engine") from error
        raise ResourceError(f"{output} cannot be written ({error.strerror}); choose another --output") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Composition(path=output, engine=manifest, models=tuple(config.name for config in model_configs(options)))


def model_configs(options: ComposeOptions) -> tuple[ModelConfig, ...]:
    """The configs of a repository. What is left at its default is not written: auto-complete supplies it."""
    exclude = {"exclude_input_in_output": "true"} if options.exclude_input_in_output else {}
    accumulate = {"accumulate_tokens": "true"} if options.accumulate_tokens else {}
    directories = {DIRECTORIES: text_of([str(path) for path in options.adapters])} if options.adapters else {}
    uploads = {} if options.adapter_uploads else {"allow_adapter_uploads": "false"}
    if options.adapter_upload_directory is not None:
        uploads["adapter_upload_directory"] = str(options.adapter_upload_directory)
    tiers = {
        "kv_cache_host_memory_bytes": options.kv_host_bytes,
        "kv_cache_disk_directory": options.kv_disk_directory,
        "kv_cache_disk_bytes": options.kv_disk_bytes,
    }
    kept = {name: str(value) for name, value in tiers.items() if value is not None}
    is_decoupled = None if options.decoupled else False
    ensemble = ModelConfig(
        name=ENSEMBLE_NAME,
        contract=ENSEMBLE,
        max_batch_size=MAX_BATCH_SIZE,
        steps=(
            EnsembleStep(
                model=Role.TENSORRT_LLM,
                inputs={tensor.name: tensor.name for tensor in ENSEMBLE.inputs},
                outputs={tensor.name: tensor.name for tensor in ENSEMBLE.outputs},
            ),
        ),
    )
    return (
        ensemble,
        ModelConfig(name=Role.POSTPROCESSING),
        ModelConfig(name=Role.PREPROCESSING),
        ModelConfig(
            name=Role.TENSORRT_LLM, parameters=exclude | directories | uploads | kept, is_decoupled=is_decoupled
        ),
        ModelConfig(name=Role.TENSORRT_LLM_BLS, parameters=accumulate, is_decoupled=is_decoupled),
        *(adapter_model(name, directories, is_decoupled) for name in options.adapter_models),
        *(
            ModelConfig(name=name, parameters={"role": role}, is_decoupled=is_decoupled)
            for name, role in options.translating_models.items()
        ),
    )


def write_configs(repository: Path, options: ComposeOptions) -> None:
    """Write everything of a repository but the engine, into an empty directory."""
    for config in model_configs(options):
        version = repository / config.name / VERSION
        version.mkdir(parents=True)
        (repository / config.name / CONFIG_NAME).write_text(config.to_pbtxt(), encoding="utf-8")
        if config.steps or config.name in (*options.adapter_models, *options.translating_models):
            (version / KEEP).touch()
        elif config.name != Role.TENSORRT_LLM:
            (version / ENGINE).symlink_to(Path("..", "..", Role.TENSORRT_LLM, VERSION, ENGINE))


def _check_adapters(manifest: EngineManifest, options: ComposeOptions) -> None:
    if manifest.lora is None and (options.adapters or options.adapter_models):
        raise ConfigError(f"engine {manifest.name!r} takes no adapters; build it with --max-adapters 1 or more")
    for directory in options.adapters:
        if not directory.is_dir():
            raise ConfigError(f"adapters is {str(directory)!r}: no directory is there; create it, or name another")
    taken = {config.name for config in model_configs(replace_fields(options, adapter_models=()))}
    for name in options.adapter_models:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(f"adapter_models has {name!r}, which is no adapter's name; name one that there is")
        if name in taken:
            raise ConfigError(
                f"adapter_models has {name!r}: a model of that name is there; rename the adapter, or name it once"
            )
        taken.add(name)


def _check_translating(options: ComposeOptions) -> None:
    taken = {config.name for config in model_configs(replace_fields(options, llmapi="", vllm=""))}
    for field, name in (("llmapi", options.llmapi), ("vllm", options.vllm)):
        if name and (name in taken or not re.fullmatch(NAME_PATTERN, name)):
            reason = "a model of that name is there" if name in taken else "no model can be named so"
            raise ConfigError(f"{field} is {name!r}: {reason}; choose another name")
        taken.add(name)


def _placed(options: ComposeOptions, output: Path) -> ComposeOptions:
    """With paths as configurations say them: relative to the repository, and if that is to stand alone, within it."""
    place = output.parent.resolve() / output.name
    uploads, blocks = options.adapter_upload_directory, options.kv_disk_directory
    if options.copy:
        home = Path(Role.TENSORRT_LLM, VERSION)
        adapters = tuple(home / f"adapters-{number}" for number in range(len(options.adapters)))
        uploads = None if uploads is None else uploads.resolve()
        blocks = None if blocks is None else blocks.resolve()
    else:
        adapters = tuple(_relative(path, place) for path in options.adapters)
        uploads = None if uploads is None else _relative(uploads, place)
        blocks = None if blocks is None else _relative(blocks, place)
    return replace_fields(options, adapters=adapters, adapter_upload_directory=uploads, kv_disk_directory=blocks)


def _relative(path: Path, place: Path) -> Path:
    return Path(os.path.relpath(path.resolve(), place))


def _place_engine(engine: Path, manifest: EngineManifest, staging: Path, output: Path, copy: bool) -> None:
    home = Path(Role.TENSORRT_LLM, VERSION, ENGINE)
    if not copy:
        # The link is read from the repository's last place, whatever links lie on the way there.
        (staging / home).symlink_to(
            os.path.relpath(engine.resolve(), (output.parent.resolve() / output.name / home).parent)
        )
        return
    for name in (MANIFEST_NAME, *manifest.files):
        _copy_file(engine / name, staging / home / name)
    for model in (Role.PREPROCESSING, Role.POSTPROCESSING, Role.TENSORRT_LLM_BLS):
        place = staging / model / VERSION / ENGINE
        place.unlink()
        for name in (MANIFEST_NAME, TOKENIZER_NAME, CHAT_TEMPLATE_NAME):
            if (engine / name).is_file():
                _copy_file(engine / name, place / name)


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _check_replaceable(output: Path, engine: Path) -> None:
    if engine.resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"output is {str(output)!r}: the engine itself lies there; choose another --output")
    is_empty = output.is_dir() and not any(output.iterdir())
    is_repository = (output / Role.TENSORRT_LLM / CONFIG_NAME).is_file()
    if os.path.lexists(output) and not (is_empty or is_repository):
        raise ConfigError(f"output is {str(output)!r}: something that is no model repository is there; choose another")
