"""`trierarch compose`: an engine becomes a Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compose(
    engine: Annotated[
        Path | None, typer.Argument(help="An engine's directory.", show_default="required, here or in --spec")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the repository goes, whole or not at all.",
            show_default="required, here or in --spec",
        ),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML with a section compose; options here win over it.", show_default="none"
        ),
    ] = None,
    copy: Annotated[
        bool | None,
        typer.Option(
            "--copy/--link",
            help="Copy the engine into the repository, to carry it elsewhere, or link to it.",
            show_default="link",
        ),
    ] = None,
    decoupled: Annotated[
        bool | None,
        typer.Option(
            "--decoupled/--unary",
            help="Stream answers, or serve unary gRPC clients: Triton cannot do both.",
            show_default="decoupled",
        ),
    ] = None,
    exclude_input: Annotated[
        bool, typer.Option("--exclude-input", help="Leave the prompt out of unstreamed answers unless a client says.")
    ] = False,
    accumulate_tokens: Annotated[
        bool, typer.Option("--accumulate-tokens", help="Let tensorrt_llm_bls stream the text so far, not what is new.")
    ] = False,
    adapters: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A directory of LoRA adapters, looked into at every request. Repeatable."),
    ] = None,
    adapter_model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Make a model of that adapter, too. Repeatable."),
    ] = None,
    adapter_models: Annotated[
        bool, typer.Option("--adapter-models", help="Make a model of every adapter that there is now.")
    ] = False,
    adapter_uploads: Annotated[
        bool | None,
        typer.Option(
            "--adapter-uploads/--no-adapter-uploads",
            help="Whether clients may send adapters of their own.",
            show_default="adapter-uploads",
        ),
    ] = None,
    adapter_upload_directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where those are kept.", show_default="as long as the model is loaded"),
    ] = None,
    kv_host_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Host memory for KV blocks that the cache has no room for.", show_default="none"
        ),
    ] = None,
    kv_disk_directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where those go next, of this model alone.", show_default="none")
    ] = None,
    kv_disk_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With --kv-disk-directory: of files there.", show_default="the backend's"),
    ] = None,
    llmapi: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Add a model with the tensors of TensorRT-LLM's llmapi model.", show_default="none"
        ),
    ] = None,
    vllm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Add a model with the tensors of Triton's vLLM backend.", show_default="none"
        ),
    ] = None,
) -> None:
    """Compose an engine into a Triton model repository.

    The repository has TensorRT-LLM's models: tensorrt_llm, ensemble, tensorrt_llm_bls, preprocessing, postprocessing, and
    one for each adapter that is to be one. Each is a short config.pbtxt; the backend fills in tensors and limits from the
    engine's manifest.
    """
    from dataclasses import replace

    from trierarch.builder.adapter_directory import adapters_in
    from trierarch.builder.errors import ConfigError
    from trierarch.ensembles.compose import compose as compose_repository
    from trierarch.orchestrator.composition_spec import read_composition
    from trierarch.orchestrator.console import OUT, say
    from trierarch.orchestrator.kv_tiers import KvTiers
    from trierarch.python_backend.adapters.directory import DRAFT_SUFFIX

    tiers = KvTiers.parse(kv_host_bytes, kv_disk_directory, kv_disk_bytes)
    asked = read_composition(
        spec,
        {
            "engine": engine,
            "output": output,
            "copy": copy,
            "decoupled": decoupled,
            "exclude_input_in_output": exclude_input or None,
            "accumulate_tokens": accumulate_tokens or None,
            "adapters": adapters or None,
            "adapter_models": adapter_model or None,
            "adapter_uploads": adapter_uploads,
            "adapter_upload_directory": adapter_upload_directory,
            "kv_host_bytes": tiers.host_bytes,
            "kv_disk_directory": tiers.disk_directory,
            "kv_disk_bytes": tiers.disk_bytes,
            "llmapi": llmapi,
            "vllm": vllm,
        },
    )
    options = asked.options
    known = [name for place in (asked.engine, *options.adapters) for name, _ in adapters_in(place)]
    for name in options.adapter_models:
        if name not in known:
            raise ConfigError(
                f"--adapter-model is {name!r}: there is none in the engine and in --adapters; name one of them"
            )
    # Those of the draft model answer nobody.
    found = [name for name in known if not name.endswith(DRAFT_SUFFIX)] if adapter_models else []
    options = replace(options, adapter_models=tuple(dict.fromkeys([*options.adapter_models, *found])))
    composition = compose_repository(asked.engine, asked.output, options)
    OUT.print(f"[bold cyan]{asked.output}[/]: {', '.join(composition.models)}", soft_wrap=True)
    say(f"serve it with: trierarch serve {asked.output}")
