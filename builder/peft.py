"""PeftDirectory: an open directory as PEFT saves a LoRA, and what of it becomes a packed adapter of an engine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trierarch.builder.adapter import AdapterManifest, AdapterTensors
from trierarch.builder.adapter_check import check_headers, pieces_of, rank_of
from trierarch.builder.engine_matrices import EngineMatrices
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import WEIGHTS_NAME, EngineManifest
from trierarch.builder.peft_config import CONFIG_NAME, MAX_CONFIG_BYTES, PeftConfig
from trierarch.builder.peft_names import read_modules
from trierarch.builder.peft_pack import Packer
from trierarch.builder.peft_plan import plan_headers
from trierarch.builder.safetensors_file import SafetensorsFile, open_regular, read_into
from trierarch.builder.safetensors_header import SafetensorsError

WEIGHTS_FILE_NAME: Final = "adapter_model.safetensors"
_PICKLED_NAME: Final = "adapter_model.bin"
_TRAIN: Final = "train a LoRA, or serve it with --target torch"
_RESAVE: Final = "save the adapter anew with PEFT"


class PeftDirectory:
    """The files that were opened, whatever becomes of the directory. Torch-free."""

    def __init__(self, directory: Path, engine: Path, manifest: EngineManifest) -> None:
        """Open both files, and see from the configuration and the tensors' headers whether the engine takes them.

        Raises:
            AdapterError: a file is missing or damaged, or the adapter asks for what the engine does not do.
        """
        self._engine, self._engine_manifest = engine, manifest
        self._directory = directory
        content, self._file = _open(directory)
        try:
            self._config = PeftConfig.parse(content)
            self._modules = read_modules(self._file.headers, manifest.architecture)
            headers = plan_headers(self._modules, self._file.headers, self._config, manifest)
            self._config_digest = hashlib.sha256(content)
            with self._told():
                digest = self._file.hashed(self._config_digest.copy()).hexdigest()
            is_dora = any(module.is_dora for module in self._modules)
            if is_dora and WEIGHTS_NAME not in manifest.files:
                raise AdapterError(f"use_dora is true: its gains need weights that this engine has not; {_TRAIN}")
            self.manifest: AdapterManifest = AdapterManifest(
                digest=digest,
                rank=rank_of(headers),
                dtype=manifest.dtype,
                pieces=pieces_of(headers),
                is_dora=is_dora,
                base_digest=manifest.files[WEIGHTS_NAME].sha256 if is_dora else None,
                source=directory.resolve().name,
            )
            check_headers(self.manifest, headers, manifest)
        except BaseException:
            self.close()
            raise

    def read(self) -> AdapterTensors:
        """Pack it for the engine.

        Raises:
            AdapterError: a file was altered since it was opened, or a number is NaN, infinite or too large.
            EngineError: the engine's weights, which DoRA needs, cannot be read.
        """
        with self._told():
            content = self._file.read()
        digest = self._config_digest.copy()
        digest.update(content)
        if digest.hexdigest() != self.manifest.digest:
            raise AdapterError(f"{self._directory / WEIGHTS_FILE_NAME} was altered while it was read; name it again")
        matrices = EngineMatrices(self._engine, self._engine_manifest) if self.manifest.is_dora else None
        packer = Packer(self._config, self._engine_manifest, self._file.tensors(content), matrices)
        return AdapterTensors(self.manifest, packer.pack(self._modules))

    def close(self) -> None:
        """Give the descriptor back; what was read stays."""
        self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorsError) as error:
            raise AdapterError(f"{self._directory / WEIGHTS_FILE_NAME} cannot be read ({error}); {_RESAVE}") from error


def _open(directory: Path) -> tuple[bytes, SafetensorsFile]:
    """The configuration's bytes, and the open tensors, both of the directory that has the name now."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AdapterError(
            f"{directory} cannot be opened ({error.strerror}); name a packed adapter or a PEFT directory"
        ) from error
    try:
        return _config_bytes(directory, descriptor), _weights(directory, descriptor)
    finally:
        os.close(descriptor)


def _config_bytes(directory: Path, descriptor: int) -> bytes:
    try:
        file = open_regular(Path(CONFIG_NAME), descriptor)
        try:
            size = os.fstat(file).st_size
            if size > MAX_CONFIG_BYTES:
                raise AdapterError(f"{directory / CONFIG_NAME} has {size} bytes: at most {MAX_CONFIG_BYTES} are read")
            content = bytearray(size)
            read_into(file, memoryview(content), 0)
        finally:
            os.close(file)
    except FileNotFoundError:
        raise AdapterError(
            f"{directory} has no {CONFIG_NAME}; name a directory that PEFT saved an adapter in"
        ) from None
    except (OSError, SafetensorsError) as error:
        raise AdapterError(f"{directory / CONFIG_NAME} cannot be read ({error}); {_RESAVE}") from error
    return bytes(content)


def _weights(directory: Path, descriptor: int) -> SafetensorsFile:
    try:
        return SafetensorsFile(Path(WEIGHTS_FILE_NAME), descriptor)
    except FileNotFoundError:
        if (directory / _PICKLED_NAME).exists():
            raise AdapterError(
                f"{directory} has {_PICKLED_NAME} alone: pickles are never opened, since reading them runs their code; "
                "save it as safetensors (PEFT's save_pretrained does)"
            ) from None
        raise AdapterError(f"{directory} has no {WEIGHTS_FILE_NAME}; {_RESAVE}") from None
    except (OSError, SafetensorsError) as error:
        raise AdapterError(f"{directory / WEIGHTS_FILE_NAME} cannot be read ({error}); {_RESAVE}") from error
