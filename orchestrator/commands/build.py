"""`trierarch build`: a checkpoint becomes an engine."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.sizes import parse_size

if TYPE_CHECKING:
    from trierarch.builder.config import BuildConfig

LIMITS = "Limits, fixed once built"
ACCURACY = "What quantization may cost"
ADAPTERS = "LoRA adapters, mixed in one batch"
SPECULATION = "Guessing tokens ahead, which never changes an answer"
GPUS = "Several GPUs of one machine"
TENSORRT_LLM = "With --target tensorrt_llm"


def build(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="A Hugging Face directory (safetensors), a GGUF file, a hub id (org/name), or 'demo' (SmolLM2-135M).",
            show_default="required, here or in --spec",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the engine goes, whole or not at all.",
            show_default="required, here or in --spec",
        ),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with a section build; options here win over it.", show_default="none"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Executor the engine is for: torch, or tensorrt_llm.", show_default="torch", metavar="TARGET"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="float32, bfloat16 or float16, of weights and activations.",
            show_default="what this machine is fast at",
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="int8 or int4 weights in groups of 32 inputs, fp8 weights for GPUs of sm_89 or later, or source: a "
            "checkpoint's Q8_0, Q4_0, Q4_1, FP8, GPTQ or AWQ as they are. For TensorRT-LLM: fp8, nvfp4, int4_awq, and up to 1.2 int8_sq, int8, int4.",
            show_default="none: weights of DTYPE, but FP8 checkpoints as they are where a GPU here multiplies it",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The engine's name.", show_default="the checkpoint's")] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Sequences running in one step.", show_default="64", rich_help_panel=LIMITS)
    ] = None,
    max_seq_len: Annotated[
        int | None,
        typer.Option(
            help="Prompt and output tokens of one sequence.",
            show_default="the checkpoint's window, at most 8192",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_num_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens computed in one step; longer prompts go in chunks.", show_default="512", rich_help_panel=LIMITS
        ),
    ] = None,
    max_queue_size: Annotated[
        int | None,
        typer.Option(help="Requests waiting; one more is refused at once.", show_default="256", rich_help_panel=LIMITS),
    ] = None,
    kv_cache_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="int8 or fp8 (for TensorRT-LLM only fp8) keys and values take about half the memory; else float32, bfloat16 "
            "or float16.",
            show_default="that of --dtype",
        ),
    ] = None,
    kv_cache_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for keys and values, a draft's too, such as 512MiB or 2GB.",
            show_default="20% of the memory free at load",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--prefix-caching/--no-prefix-caching",
            help="Keep computed prompts for others that begin alike.",
            show_default="on",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_perplexity_increase: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Fail where quantization raises perplexity by more: 0.02 is 2%.",
            show_default="0.02",
            rich_help_panel=ACCURACY,
        ),
    ] = None,
    accuracy_text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="UTF-8 text to measure on: best is one like what you will serve.",
            show_default="a bundled one",
            rich_help_panel=ACCURACY,
        ),
    ] = None,
    accuracy_check: Annotated[
        bool | None,
        typer.Option(
            "--accuracy-check/--no-accuracy-check",
            help="Compare a quantised model with the unquantised one.",
            show_default="accuracy-check",
            rich_help_panel=ACCURACY,
        ),
    ] = None,
    speculation: Annotated[
        str | None,
        typer.Option(
            metavar="DRAFTERS",
            help="none, or who guesses: prompt_lookup, suffix, draft_model, eagle3, mtp.",
            show_default="prompt_lookup,suffix, and draft_model with --draft",
            rich_help_panel=SPECULATION,
        ),
    ] = None,
    max_draft_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens guessed for a sequence in one step at most.", show_default="16", rich_help_panel=SPECULATION
        ),
    ] = None,
    speculation_history_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for earlier answers that suffix guesses from.",
            show_default="32MiB",
            rich_help_panel=SPECULATION,
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="A smaller model of the same vocabulary (as --model, or an engine), or int8 or int4: the model itself; "
            "of eagle3, the head.",
            show_default="none",
            rich_help_panel=SPECULATION,
        ),
    ] = None,
    draft_quantization: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="As --quantization, of a draft that is a checkpoint; it costs no accuracy.",
            show_default="none",
            rich_help_panel=SPECULATION,
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A PEFT directory or packed file that the engine brings along; may be given often.",
            show_default="none",
            rich_help_panel=ADAPTERS,
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Make embeddings, of the last token's state (last) or of all (mean).",
            show_default="as the checkpoint's sentence-transformers files say, else none",
        ),
    ] = None,
    max_adapters: Annotated[
        int | None,
        typer.Option(
            help="Different adapters in one step; 0: the engine takes none.",
            show_default="16",
            rich_help_panel=ADAPTERS,
        ),
    ] = None,
    max_lora_rank: Annotated[
        int | None,
        typer.Option(help="Rank of an adapter at most.", show_default="64", rich_help_panel=ADAPTERS),
    ] = None,
    adapter_host_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for loaded adapters; any number may be registered.",
            show_default="1GiB",
            rich_help_panel=ADAPTERS,
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile kernels for this machine's CPU; without, the engine runs on any CPU, several times slower. For "
            "TensorRT-LLM up to 1.2: compile its engine, where it is installed.",
            show_default="compile",
        ),
    ] = None,
    tensorrt_llm_version: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="1.0, 1.1 and 1.2 compile engines, 1.3 loads checkpoints as they are.",
            show_default="the one installed here, else 1.3",
            rich_help_panel=TENSORRT_LLM,
        ),
    ] = None,
    tensorrt_llm_flow: Annotated[
        str | None,
        typer.Option(
            metavar="FLOW",
            help="engine or pytorch: up to 1.2 there are both.",
            show_default="engine up to 1.2",
            rich_help_panel=TENSORRT_LLM,
        ),
    ] = None,
    tensor_parallel_size: Annotated[
        int | None,
        typer.Option(help="GPUs that share each layer.", show_default="1", rich_help_panel=GPUS),
    ] = None,
    pipeline_parallel_size: Annotated[
        int | None,
        typer.Option(help="Groups of GPUs that share the layers out.", show_default="1", rich_help_panel=GPUS),
    ] = None,
    gpu_architecture: Annotated[
        str | None,
        typer.Option(
            metavar="SM",
            help="Of the GPUs that will run the engine, such as sm_90: what they cannot do is refused now.",
            show_default="this machine's",
            rich_help_panel=TENSORRT_LLM,
        ),
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of each of them, such as 80GB: an engine that cannot fit is refused now.",
            show_default="not checked",
            rich_help_panel=TENSORRT_LLM,
        ),
    ] = None,
    tensorrt_llm_sampler: Annotated[
        str | None,
        typer.Option(
            metavar="SAMPLER",
            help="Who draws tokens in the pytorch flow: trtllm (up to 1.2, without speculation) or torch.",
            show_default="trtllm where there is one",
            rich_help_panel=TENSORRT_LLM,
        ),
    ] = None,
    gather_logits: Annotated[
        bool,
        typer.Option(
            "--gather-logits",
            help="Keep logits, for requests that ask for them or for log-probs that only they tell.",
            rich_help_panel=TENSORRT_LLM,
        ),
    ] = False,
    kv_event_buffer: Annotated[
        int | None,
        typer.Option(
            help="Events of the KV cache that are held until they are read and counted.",
            show_default="0: none are told",
            rich_help_panel=TENSORRT_LLM,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing: show the configuration and the command that would build it; as JSON with --json.",
            rich_help_panel=TENSORRT_LLM,
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the engine that is at DIR.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the engine's manifest as JSON.")] = False,
) -> None:
    """Build an engine from a checkpoint.

    An engine is a directory: weights in the layout the executor wants, tokenizer, chat template, and engine.json.
    A build that fails or is interrupted leaves nothing behind; the same input always gives the same bytes.
    Quantization is measured against the unquantised model, and a build that costs too much fails.
    """
    from trierarch.builder.build import build as build_engine
    from trierarch.orchestrator.build_progress import RichProgress
    from trierarch.orchestrator.console import ERR, OUT
    from trierarch.orchestrator.engine_summary import is_uncompiled, summary_table
    from trierarch.python_backend.executors.torch.teacher_forcing import teacher_forced_logits

    started = time.monotonic()
    config = read_build(
        spec,
        model=model,
        output=output,
        target=target,
        dtype=dtype,
        quantization=quantization,
        name=name,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        max_num_tokens=max_num_tokens,
        max_queue_size=max_queue_size,
        kv_cache_dtype=kv_cache_dtype,
        kv_cache_bytes=None if kv_cache_bytes is None else parse_size(kv_cache_bytes),
        max_perplexity_increase=max_perplexity_increase,
        accuracy_text=accuracy_text,
        accuracy_check=accuracy_check,
        speculation=None if speculation is None else _drafters(speculation),
        max_draft_tokens=max_draft_tokens,
        speculation_history_bytes=None
        if speculation_history_bytes is None
        else parse_size(speculation_history_bytes, least=0),
        draft=draft,
        draft_quantization=draft_quantization,
        pooling=pooling,
        adapters=None if adapter is None else _adapters(adapter),
        max_adapters=max_adapters,
        max_lora_rank=max_lora_rank,
        adapter_host_bytes=None if adapter_host_bytes is None else parse_size(adapter_host_bytes),
        compile=compile,
        overwrite=overwrite or None,
        tensorrt_llm_version=tensorrt_llm_version,
        tensorrt_llm_flow=tensorrt_llm_flow,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        gpu_architecture=gpu_architecture,
        gpu_memory=None if gpu_memory is None else parse_size(gpu_memory),
        tensorrt_llm_sampler=tensorrt_llm_sampler,
        gather_logits=gather_logits or None,
        kv_event_buffer=kv_event_buffer,
        enable_prefix_caching=prefix_caching,
    )
    if dry_run:
        _show_plan(config, json)
        return
    with RichProgress(ERR) as progress:
        manifest = build_engine(config, progress, teacher_forced_logits)
    if json:
        OUT.out(manifest.to_json(), end="")
        return
    place = config.output
    more = (("built in", f"{time.monotonic() - started:.1f} s"), ("at", str(place)))
    OUT.print(summary_table(manifest, *more, draft=manifest.load_draft(place)))
    if is_uncompiled(manifest):
        ERR.print(f"\ncompile it on the GPU machine with: [bold]trierarch compile {place}[/]", soft_wrap=True)
    else:
        ERR.print(f"\nserve it with: [bold]trierarch serve {place}[/]", soft_wrap=True)


def _show_plan(config: BuildConfig, as_json: bool) -> None:
    """What a build for TensorRT-LLM would write and run.

    Raises:
        ConfigError: the target is another, whose builds run no command.
    """
    import json

    from rich.panel import Panel

    from trierarch.builder.manifest import Target
    from trierarch.orchestrator.build_progress import RichProgress
    from trierarch.orchestrator.console import ERR, OUT
    from trierarch.orchestrator.plan_table import plan_panels

    if config.target is not Target.TENSORRT_LLM:
        raise ConfigError(
            f"--dry-run shows builds for tensorrt_llm, and --target is {config.target.value!r}; leave it out"
        )
    from trierarch.builder.tensorrt_llm.build import describe

    with RichProgress(ERR) as progress:
        plan = describe(config, progress)
    if as_json:
        OUT.out(json.dumps(plan, indent=2, sort_keys=True))
        return
    for panel in plan_panels(plan):
        OUT.print(panel, soft_wrap=not isinstance(panel, Panel))


def read_build(spec: Path | None, **given: Any) -> BuildConfig:
    """The section `build` of a spec file, with what was given on the command line in its place; None was not given.

    Raises:
        ConfigError: the file cannot be read, a value is out of range, or the model or the output is missing.
    """
    raw: dict[str, Any] = {}
    if spec is not None:
        from trierarch.orchestrator.spec_file import Section, read_section

        raw = read_section(spec, Section.BUILD)
    raw |= {field: value for field, value in given.items() if value is not None}
    for name in ("model", "output"):
        if raw.get(name) is None:
            raise ConfigError(f"--{name} is missing; say it here, or in the section build of --spec")
    return build_config(**raw)


def build_config(**asked: Any) -> BuildConfig:
    """A BuildConfig of what was asked; None stands for its own default.

    Raises:
        ConfigError: a value is out of range; the message names the option.
    """
    from pydantic import ValidationError

    from trierarch.builder.config import BuildConfig

    try:
        return BuildConfig(**{field: value for field, value in asked.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{option} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _adapters(texts: list[str]) -> dict[str, Path]:
    """Each NAME=DIR.

    Raises:
        ConfigError: one is not, or two have the same name.
    """
    from trierarch.builder.adapter import NAME_PATTERN

    sources: dict[str, Path] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise ConfigError(f"--adapter is {text!r}: write NAME=DIR, such as french=adapters/french")
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(f"--adapter is {text!r}: a name has letters, digits, '.', '_' and '-', at most 128")
        if name in sources:
            raise ConfigError(f"--adapter names {name!r} twice; give each adapter a name of its own")
        sources[name] = Path(source)
    return sources


def _drafters(text: str) -> tuple[str, ...]:
    return () if text.strip() == "none" else tuple(name.strip() for name in text.split(","))
