"""Runs other people's clients, unmodified, against a server of the demo engine: python tests/compatibility CHECKOUTS.

CHECKOUTS is a folder that holds their repositories: tensorrtllm_backend (before May 2025, when its clients moved away),
vllm_backend and server, all of triton-inference-server.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from adapters import HOST_BYTES, RANK
from case import Case, Outcome, Server, Verdict
from catalogue import CASES
from report import render
from workspace import Workspace

from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.orchestrator.fetch import fetch
from trierarch.orchestrator.server_config import Endpoints


def main() -> None:
    """Exit with status 1 where a case fails that should not."""
    parser = argparse.ArgumentParser(prog="python tests/compatibility", description=__doc__)
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("--engine", type=Path, help="an engine of the demo checkpoint, in place of building one")
    parser.add_argument("--output", type=Path, default=Path("docs/compatibility.md"))
    parser.add_argument("--only", default="", metavar="TEXT", help="run only commands with this text; write no page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trierarch-compatibility-") as name:
        folder = Path(name)
        engine = options.engine or folder / "engine"
        if options.engine is None:
            build(BuildConfig(model="demo", output=engine, max_lora_rank=RANK, adapter_host_bytes=HOST_BYTES))
        workspace = Workspace(folder, engine.resolve(), options.checkouts.resolve())
        outcomes = run_all(workspace, [case for case in CASES if options.only in case.command])
        commits = {case.client: workspace.commit(case.client) for case in CASES if workspace.has(case)}
    if not options.only:
        options.output.write_text(render(outcomes, commits, datetime.now(UTC).date()), encoding="utf-8")
    raise SystemExit(any(outcome.verdict is Verdict.FAILS for outcome in outcomes))


def run_all(workspace: Workspace, cases: Sequence[Case]) -> list[Outcome]:
    """Outcomes in the order of `cases`. Those that may share a server do; clean ones have one each."""
    by_case: dict[int, Outcome] = {}
    runnable = [case for case in cases if not case.reason and workspace.has(case)]
    order = [*Server]
    shared = sorted((case for case in runnable if not case.server.is_clean), key=lambda case: -order.index(case.server))
    groups = [list(group) for _, group in groupby(shared, key=lambda case: case.server)]
    groups += [[case] for case in runnable if case.server.is_clean]
    for group in groups:
        with workspace.serve(group[0].server) as endpoints:
            for case in group:
                by_case[id(case)] = outcome = run_one(workspace, case, endpoints)
                print(f"{outcome.verdict.value}: {case.command}", flush=True)
                if outcome.verdict is Verdict.FAILS:
                    print(outcome.said, flush=True)
    missing = "its repository is not among the checkouts"
    return [by_case.get(id(case), Outcome(case, Verdict.NOT_RUN, None, case.reason or missing)) for case in cases]


def run_one(workspace: Workspace, case: Case, endpoints: Endpoints) -> Outcome:
    """Run a case and judge it."""
    status, printed = workspace.run(case, endpoints)
    if case.keeps_metrics:
        workspace.keep(case.keeps_metrics, fetch(endpoints.metrics))
    for name, pattern in case.keeps_output:
        if (found := re.search(pattern, printed)) is not None:
            workspace.keep(name, found[1])
    shows = re.search(case.shows, printed)
    is_well = (
        status == case.status and shows is not None and not (case.shows_not and re.search(case.shows_not, printed))
    )
    is_meant = bool(case.differs) and re.search(case.differs_by, printed) is not None
    verdict = Verdict.PASSES if is_well else Verdict.DIFFERS if is_meant else Verdict.FAILS
    return Outcome(case, verdict, status, _told(printed, shows) if is_well else printed[-3000:])


def _told(printed: str, shows: re.Match[str] | None) -> str:
    """The line that was looked for, or the last one."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    if shows is not None and shows[0]:
        lines = [line for line in lines if shows[0] in line][-1:]
    line = lines[-1] if lines else ""
    return line if len(line) <= 120 else line[:117] + "..."


if __name__ == "__main__":
    main()
