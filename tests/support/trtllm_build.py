"""A stand-in for `trtllm-build`, which needs a GPU: it takes the recorded flags alone, reads the checkpoint, and writes what
the real one leaves. `main` is what the installed script runs."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

from support.trtllm_facts import command_mistakes

INSTALLED_VERSION = "1.2.1"
SCRIPT = """#!{python}
import sys
sys.path.insert(0, {tests!r})
from support.trtllm_build import main
main(sys.argv[1:])
"""


def install(directory: Path) -> Path:
    """Put it into `directory`, which goes on PATH."""
    directory.mkdir(parents=True)
    script = directory / "trtllm-build"
    script.write_text(SCRIPT.format(python=sys.executable, tests=str(Path(__file__).parents[1])), encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return directory


def main(flags: list[str]) -> None:
    """Compile, or fail as the real one does: a status, and the reason on the last line."""
    found = list(command_mistakes("1.2", flags))
    if found:
        sys.exit(f"trtllm-build: error: {found[0]}")
    checkpoint, output = (Path(flags[flags.index(flag) + 1]) for flag in ("--checkpoint_dir", "--output_dir"))
    config = json.loads((checkpoint / "config.json").read_text())
    if config["architecture"] == "BrokenForCausalLM":
        sys.exit("RuntimeError: Required but not provided tensors")
    for rank in range(config["mapping"]["world_size"]):
        tensors = (checkpoint / f"rank{rank}.safetensors").read_bytes()
        (output / f"rank{rank}.engine").write_bytes(b"plan" + tensors[:100])
    built = {
        "version": INSTALLED_VERSION,
        "pretrained_config": config,
        "build_config": {"gather_context_logits": "--gather_context_logits" in flags},
    }
    (output / "config.json").write_text(json.dumps(built))
    Path("model.cache").write_bytes(b"timings")
