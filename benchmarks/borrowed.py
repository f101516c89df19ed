"""For a machine borrowed for minutes: what it lacks, `tests/gpu`, attention, benchmark `gpu`; what fails leaves the rest.

python -m trierarch.benchmarks.borrowed --out DIR [--include check,tests,attention,bench] [--seconds 570] [-- options of `gpu`]

It runs from the source tree with the machine's own packages (PYTHONPATH=.src), installs nothing and needs no network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from trierarch.benchmarks.paths import IMPORT_PATH, OUT, ROOT

NEEDED: Final = ("torch", "numpy", "pydantic", "safetensors", "psutil", "typer", "rich")
WELCOME: Final = ("triton", "flashinfer-python", "pytest", "hypothesis", "transformers", "vllm")
"""Without them less is run."""
MOST_SECONDS: Final = 570.0
"""A loan is ten minutes at a time."""
TESTS_SHARE: Final = 0.25
"""Of what is left, that tests may take."""
ATTENTION_SHARE: Final = 0.2
"""Likewise; FlashInfer may have to compile."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one stage."""

    name: str
    seconds: float
    failure: str | None = None
    """None went well."""


@dataclass(frozen=True, slots=True)
class Loan:
    """Where everything goes, and until when."""

    out: Path
    deadline: float
    """As time.monotonic() has it."""
    options: tuple[str, ...] = ()
    """Of benchmark `gpu`."""

    @property
    def seconds_left(self) -> float:
        """At least one."""
        return max(1.0, self.deadline - time.monotonic())


def check(loan: Loan) -> str | None:
    """Write down what is here; a failure names what is missing."""
    found = {name: _version(name) for name in (*NEEDED, *WELCOME)}
    missing = [name for name in NEEDED if found[name] is None]
    about: dict[str, Any] = {"python": sys.version.split()[0], "packages": found, "missing": missing}
    about["without"] = [name for name in WELCOME if found[name] is None]
    about["device"] = _device()
    (loan.out / "check.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(about, indent=2))
    if missing:
        return f"{', '.join(missing)} not installed: what needs it fails below"
    return None if about["device"].get("name") else "torch finds no CUDA device"


def tests(loan: Loan) -> str | None:
    """Run tests/gpu, without the plugins that the repository's own configuration of pytest wants."""
    if _version("pytest") is None:
        return "pytest is not installed: nothing was run"
    settings = loan.out / "pytest.ini"
    settings.write_text("[pytest]\nmarkers =\n    gpu: needs a CUDA device\n", encoding="utf-8")
    where = ["-c", str(settings), "--rootdir", str(ROOT), "--confcutdir", str(ROOT), "--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-rs", "-p", "no:cacheprovider", *where]
    return _run(loan, "tests", command, TESTS_SHARE * loan.seconds_left)


def attention(loan: Loan) -> str | None:
    """Time the attention of each backend that is here."""
    command = [sys.executable, "-P", "-m", "trierarch.benchmarks.attention", "cuda"]
    return _run(loan, "attention", command, ATTENTION_SHARE * loan.seconds_left)


def bench(loan: Loan) -> str | None:
    """Run benchmark `gpu` and gather what it wrote, also where it was cut."""
    started = time.time()
    command = [sys.executable, "-P", "-m", "trierarch.benchmarks", "gpu", *loan.options]
    failure = _run(loan, "bench", command, loan.seconds_left)
    for path in (*OUT.glob("gpu*.json*"), *(OUT / "logs").glob("gpu-*.log")):
        if path.stat().st_mtime >= started:
            shutil.copy(path, loan.out / path.name)
    return failure


STAGES: Final[Mapping[str, Callable[[Loan], str | None]]] = {
    "check": check,
    "tests": tests,
    "attention": attention,
    "bench": bench,
}


def run(loan: Loan, stages: Sequence[str]) -> list[Outcome]:
    """Run `stages` one after the other, each whatever became of those before it."""
    loan.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name in stages:
        print(f"==> {name}", flush=True)
        started = time.monotonic()
        try:
            failure = STAGES[name](loan)
        except Exception as error:  # noqa: BLE001 - the next stage runs whatever this one did
            failure = f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(name, time.monotonic() - started, failure))
    summary = "".join(f"{_line(outcome)}\n" for outcome in outcomes)
    (loan.out / "summary.txt").write_text(summary, encoding="utf-8")
    print(summary, end="")
    return outcomes


def _line(outcome: Outcome) -> str:
    return f"{outcome.name:9} {outcome.seconds:6.1f} s  {outcome.failure or 'ok'}"


def _run(loan: Loan, name: str, command: list[str], seconds: float) -> str | None:
    """Run a command, its output shown at the end and kept; what went wrong, if anything."""
    log = loan.out / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(IMPORT_PATH), str(ROOT / "tests")))}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = process.wait(seconds)
            failure = None if status == 0 else f"exit status {status}, see {log.name}"
        except subprocess.TimeoutExpired:
            failure = f"cut after {seconds:.0f} s, see {log.name}"
            _interrupt(process)
    print(log.read_text(encoding="utf-8", errors="replace"), end="", flush=True)
    return failure


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does, so that what was measured is kept; then less kindly."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    """Of torch, in a process of its own: no memory stays taken, and a broken driver breaks nothing here."""
    code = (
        "import json, torch\n"
        "a = {'cuda': torch.version.cuda, 'name': None}\n"
        "if torch.cuda.is_available():\n"
        "    p = torch.cuda.get_device_properties(0)\n"
        "    a |= {'name': p.name, 'memory_bytes': p.total_memory, 'capability': f'sm_{p.major}{p.minor}'}\n"
        "print(json.dumps(a))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().rpartition("\n")[2]}
    about: dict[str, Any] = json.loads(done.stdout)
    return about


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run; 0 where everything went well."""
    parser = argparse.ArgumentParser(prog="borrowed", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--include", default=",".join(STAGES), help="stages, of " + ", ".join(STAGES))
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS, help="for everything")
    parser.add_argument("options", nargs="*", help="of benchmark gpu, behind --")
    asked = parser.parse_args(arguments)
    stages = [name for name in asked.include.split(",") if name]
    if unknown := [name for name in stages if name not in STAGES]:
        parser.error(f"--include names {unknown[0]!r}: there are {', '.join(STAGES)}")
    loan = Loan(asked.out.resolve(), time.monotonic() + asked.seconds, tuple(asked.options))
    return int(any(outcome.failure for outcome in run(loan, stages)))


if __name__ == "__main__":
    sys.exit(main())
