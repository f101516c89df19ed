"""Every client that TensorRT-LLM's Triton backend ships or shipped, and those of its neighbours, as cases.

Commands are the clients' own, from their READMEs and their continuous integration, with the demo model's tokenizer.
"""

from __future__ import annotations

from typing import Final

from case import Case, Server

_BACKEND: Final = "tensorrtllm_backend"
_TOKENS: Final = (
    "{client}/inflight_batcher_llm/client/inflight_batcher_llm_client.py -u {grpc} --tokenizer-dir {tokenizer}"
)
_TEXT: Final = "{client}/inflight_batcher_llm/client/end_to_end_grpc_client.py -u {grpc}"
_SPECULATING: Final = (
    "{client}/inflight_batcher_llm/client/e2e_grpc_speculative_decoding_client.py --url-target {grpc} "
    "-p 'The capital of France is' -o 24 --end-id {end} --pad-id {end}"
)
_BENCHMARK: Final = "{client}/tools/inflight_batcher_llm/benchmark_core_model.py -u {url} -i {protocol}"
_END_TO_END: Final = "{client}/tools/inflight_batcher_llm/end_to_end_test.py -u {http} --dataset {client}/{dataset}"
_DATASET: Final = "ci/L0_backend_trtllm/simple_data.json"
_ERRORS: Final = r"error from server|Encountered error|Traceback"

_DRAFTED: Final = (
    "--input-tokens-csv {work}/input.csv --draft-tokens-csv {work}/expected.csv "
    "--output-tokens-csv {work}/expected.csv --check-output"
)
VLLM_MODEL: Final = "vllm_opt"
"""What the vLLM backend's tests call their model."""
_OPENAI: Final = (
    "-m pytest -p openai_door --triton {grpc},{http},{metrics} -q --tb=line -p no:cacheprovider -p no:randomly "
    "{client}/python/openai/tests/"
)
_OPENAI_ENVIRONMENT: Final = (
    ("TEST_BACKEND", "vllm"),
    ("TEST_MODEL", "tensorrt_llm"),
    ("TEST_MODEL_REPOSITORY", "none"),
    ("TEST_TOKENIZER", "none"),
)
"""Of the two backends that the tests know, the one of which they ask seeds and log-probs."""
_OUTPUTS: Final = (
    "-m pytest -q --tb=line -p no:cacheprovider -p no:randomly "
    "{client}/ci/L0_additional_outputs_vllm/additional_outputs_test.py"
)
_STOPPED: Final = "--request-output-len 400 --stop-after-ms 300"

_TOKEN_CLIENT: Final = (
    Case(
        client=_BACKEND,
        command=_TOKENS,
        server=Server.UNARY,
        shows="Output beam 0:",
        shows_not=_ERRORS,
        keeps_output=(
            ("input.csv", r"Input sequence: +\[(.*)\]"),
            ("expected.csv", r"Output sequence: +\[(.*)\]"),
        ),
    ),
    *(
    Case(client=_BACKEND, command=f"{_TOKENS} {options}".rstrip(), server=server, shows=shows, shows_not=_ERRORS)
    for server, options, shows in (
        (Server.DECOUPLED, "--streaming", "Output beam 0:"),
        (Server.UNARY, "--output-tokens-csv {work}/expected.csv --check-output", "PASS!"),
        (Server.DECOUPLED, "--streaming --output-tokens-csv {work}/expected.csv --check-output", "PASS!"),
        (Server.UNARY, _DRAFTED, "PASS!"),
        (Server.UNARY, "--exclude-input-in-output", "Output beam 0:"),
        (Server.UNARY, "--return-log-probs --return-perf-metrics --request-output-len 40", "last_token_time_ns"),
        (Server.DECOUPLED, "--streaming --return-log-probs --return-perf-metrics", "last_token_time_ns"),
        (Server.UNARY, "--beam-width 3 --return-log-probs", "Output beam 2:"),
        (Server.DECOUPLED, "--beam-width 3 --streaming", r"Output beam 0: +\S"),  # it reads one beam of a stream
        (Server.DECOUPLED, "--num-return-sequences 3 --top-k 0 --top-p 0.9", "Output beam 2:"),
        (Server.UNARY, "--top-k 50 --top-p 0.9 --temperature 0.7 --repetition-penalty 1.1 --presence-penalty 0.1", "Output beam 0:"),
        (Server.UNARY, "--lookahead_config [7,7,7]", "Output beam 0:"),
        (Server.UNARY, "--requested-outputs output_ids sequence_length", "Output beam 0:"),
        (Server.DECOUPLED, "--streaming --request-id 7 " + _STOPPED, "cancellation response"),
        (Server.UNARY, "--request-id 8 " + _STOPPED, "cancellation response"),
        (Server.DECOUPLED, "--streaming --stop-via-request-cancel --request-id 9 " + _STOPPED, "Request is cancelled"),
        (Server.UNARY, "--stop-via-request-cancel --request-id 10 " + _STOPPED, "Request is cancelled"),
    )
    ),
)  # fmt: skip

_ADAPTED: Final = (
    Case(
        client=_BACKEND,
        command=f"{_TOKENS} --lora-path {{work}}/lora/1 --lora-task-id 1",
        server=Server.UNARY,
        shows="Output beam 0:",
        shows_not=_ERRORS,
        keeps_output=(("adapted.csv", r"Output sequence: +\[(.*)\]"),),
    ),
    *(
        Case(
            client=_BACKEND,
            command=f"{_TOKENS} {options}",
            server=Server.UNARY,
            status=status,
            shows=shows,
            shows_not=_ERRORS,
        )
        for options, status, shows in (
            # The base model says something else.
            ("--output-tokens-csv {work}/adapted.csv --check-output", 1, "FAIL!"),
            ("--lora-path {work}/lora/2 --lora-task-id 2", 0, "Output beam 0:"),
            ("--lora-path {work}/lora/3 --lora-task-id 3", 0, "Output beam 0:"),
            # By now the first has been driven out of memory; TensorRT-LLM would ask for it again.
            ("--lora-task-id 1 --output-tokens-csv {work}/adapted.csv --check-output", 0, "PASS!"),
        )
    ),
    Case(
        client=_BACKEND,
        command=f"{_TOKENS} --lora-task-id 99",
        server=Server.UNARY,
        status=1,
        shows="lora_task_id is 99",
    ),
    Case(
        client=_BACKEND,
        command=f"{_TEXT} -p 'The capital of France is' -o 8 --lora-path {{work}}/lora/1 --lora-task-id 1",
        server=Server.DECOUPLED,
        shows="0: The capital of France is",
        shows_not=_ERRORS,
    ),
)

_GUIDED: Final = tuple(
    Case(
        client=_BACKEND,
        command=f"{_TEXT} -p 'The capital of France is' -o 40 --guided-decoding-guide-type {kind}" + guide,
        server=server,
        shows=shows,
        shows_not=_ERRORS,
    )
    for server, kind, guide, shows in (
        (Server.UNARY, "regex", " --guided-decoding-guide ' (Rome|Oslo)'", "is (Rome|Oslo)$"),
        (Server.DECOUPLED, "regex", " --guided-decoding-guide '[0-9]{{4}}' --streaming", r"[0-9]"),
        (Server.DECOUPLED, "regex", " --guided-decoding-guide ' (Rome|Oslo|Bern)' -b 2", "is (Rome|Oslo|Bern)"),
        (Server.UNARY, "ebnf_grammar", " --guided-decoding-guide 'root ::= \" Rome\" | \" Oslo\"'", "is (Rome|Oslo)$"),
        (
            Server.UNARY,
            "json_schema",
            ' --guided-decoding-guide \'{{"type": "object", "properties": {{"n": {{"type": "integer", "maximum": 99}}}}, "required": ["n"]}}\'',
            r'\{\s*"n"\s*:\s*-?\d+\s*\}',
        ),
    )
)  # fmt: skip

_TEXT_CLIENT: Final = tuple(
    Case(client=_BACKEND, command=f"{_TEXT} {options}", server=server, shows=shows, shows_not=_ERRORS)
    for server, options, shows in (
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8", "Paris"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 --streaming", "Paris"),
        (Server.UNARY, "-p 'The capital of France is' -o 8", "Paris"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 --model-name tensorrt_llm_bls", "Paris"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 --model-name tensorrt_llm_bls --streaming", "Paris"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 1 --check-outputs --expected-outputs '[\" Paris\"]'", "Paris"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 1 --streaming --check-outputs --expected-outputs '[\" Paris\"]'",
         "Paris"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 --exclude-input-in-output", "Paris"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 -b 3 --return-log-probs", "output_log_probs.shape"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 -b 3 --model-name tensorrt_llm_bls", "France"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 --num-return-sequences 2", r"0 \[1\]: "),
        (Server.DECOUPLED, "-p '[\"The capital of France is\", \"Once upon a time\"]' -o 8 --batch-inputs", "Paris"),
        (Server.DECOUPLED, "-p '[\"The capital of France is\", \"Once upon a time\"]' -o 8", "Paris"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 24 --stop-words ' Paris' --bad-words ' London'", "France"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 --embedding-bias-words ' Rome' --embedding-bias-weights 50",
         "Rome"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 --return-perf-metrics", "last_token_time_ns: [1-9]"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 --return-perf-metrics --streaming", "last_token_time_ns"),
        (Server.DECOUPLED, "-p 'The capital of France is' -o 8 --temperature 0.7 --repetition-penalty 1.2 --end-id {end} --pad-id {end}", "France"),
    )
)  # fmt: skip

_TOOLS: Final = (
    Case(client=_BACKEND, command=_SPECULATING, server=Server.UNARY, shows="Paris", shows_not=_ERRORS),
    Case(
        client=_BACKEND,
        command=_BENCHMARK.format(url="{http}", protocol="http", client="{client}")
        + f" --max-input-len=500 --num-requests 50 -c 8 dataset --dataset={{client}}/{_DATASET} --tokenizer-dir={{tokenizer}}",
        server=Server.UNARY,
        shows="Total [Ll]atency",
        shows_not=_ERRORS,
    ),
    Case(
        client=_BACKEND,
        command=_BENCHMARK.format(url="{grpc}", protocol="grpc", client="{client}")
        + " --max-input-len 500 --num-requests 50 -c 8 "
        "token-norm-dist --input-mean 64 --input-stdev 8 --output-mean 8 --output-stdev 2",
        server=Server.UNARY,
        shows="Total [Ll]atency",
        shows_not=_ERRORS,
        differs="it sends random ids up to 2**31 as a prompt; ids that the vocabulary lacks are refused here",
        differs_by="token ids of this engine lie between 0 and",
    ),
    Case(
        client=_BACKEND,
        command=_BENCHMARK.format(url="{grpc}", protocol="grpc", client="{client}")
        + f" --max-input-len=500 --num-requests 50 -c 8 --decoupled dataset --dataset={{client}}/{_DATASET} "
        "--tokenizer-dir={tokenizer}",
        server=Server.DECOUPLED,
        shows="Total [Ll]atency",
        shows_not=_ERRORS,
    ),
    Case(
        client=_BACKEND,
        command=_END_TO_END.format(http="{http}", client="{client}", dataset=_DATASET) + " --max-input-len=500",
        server=Server.UNARY,
        shows="Functionality test succeed",
        shows_not=_ERRORS,
    ),
    Case(
        client=_BACKEND,
        command=_END_TO_END.format(http="{http}", client="{client}", dataset=_DATASET)
        + " --max-input-len=500 --test-bls --return-log-probs",
        server=Server.UNARY,
        shows="Functionality test succeed",
        shows_not=_ERRORS,
    ),
    Case(
        client=_BACKEND,
        command="{client}/tools/inflight_batcher_llm/end_to_end_test.py --return-context-logits --return-generation-logits",
        reason="it calls torch.cuda.synchronize, and has GPT-2's vocabulary (50257) written in it",
    ),
    Case(
        client=_BACKEND,
        command="{client}/tools/inflight_batcher_llm/speculative_decoding_test.py --max-input-len 200 "
        f"--dataset={{client}}/{_DATASET} --url-target={{grpc}} --url-draft={{grpc}} --url-control={{grpc}} "
        "--num-draft-tokens 5 -o 16",
        server=Server.UNARY,
        shows="failed/total: 0/[1-9]",
        shows_not=_ERRORS,
    ),
    Case(
        client=_BACKEND,
        command="{client}/tools/inflight_batcher_llm/test_max_queue_size.py -p http --tokenizer-dir {tokenizer} "
        "--num-requests 400 --request-output-len 64",
        server=Server.CLEAN,
        shows_not=r"Encountered error|didn't happen",
    ),
    Case(
        client=_BACKEND,
        command="{client}/tools/inflight_batcher_llm/test_max_queue_size.py -u {grpc} -p grpc --tokenizer-dir {tokenizer} "
        "--num-requests 400 --request-output-len 8",
        server=Server.DECOUPLED,
        shows_not=r"Encountered error|didn't happen",
    ),
)

_METRICS: Final = (
    Case(
        client=_BACKEND,
        command="{client}/inflight_batcher_llm/client/end_to_end_grpc_client.py --prompt='My name is' --streaming -o=50",
        server=Server.CLEAN_DECOUPLED,
        shows=r"0 \[b'",
        shows_not=_ERRORS,
        keeps_metrics="end_to_end_token_metrics.out",
    ),
    Case(
        client=_BACKEND,
        command="-m unittest base_metrics_verification_tests.TRTLLMBaseMetricsTest.test_end_to_end",
        server=Server.CLEAN,
        shows="OK",
        environment=(("STREAM_INPUT_SIZE", "3"), ("STREAM_OUTPUT_SIZE", "50")),
        differs="it wants as many requests counted for preprocessing and postprocessing as for ensemble, which here is one "
        "step straight into tensorrt_llm (docs/decisions/0001)",
        differs_by="_verify_base_metrics",
    ),
    Case(
        client=_BACKEND,
        command="-m unittest base_metrics_verification_tests.TRTLLMBaseMetricsTest.test_end_to_end_beam_width",
        server=Server.CLEAN,
        shows="OK",
    ),
    Case(
        client=_BACKEND,
        command="{here}/known_metrics.py {client} {metrics}",
        server=Server.DECOUPLED,
        shows="every category is known",
    ),
    Case(
        client=_BACKEND,
        command="custom_metrics_verification_tests.py",
        reason="it compares the metrics with statistics in the C++ backend's verbose log, which this backend does not "
        "write; `known_metrics.py` runs its parser over our page",
    ),
)

_ELSEWHERE: Final = (
    Case(
        client=_BACKEND,
        command="all_models/tests/*.py",
        reason="they import all_models/*/1/model.py and test that code, over a fake of Triton; no server is asked",
    ),
    Case(
        client=_BACKEND,
        command="tools/gpt/{client,client_async,end_to_end_test,benchmark_core_model}.py",
        reason="of the models before in-flight batching (all_models/gpt), whose tensors have other shapes under the same names",
    ),
    Case(
        client=_BACKEND,
        command="tools/multimodal/client.py, tools/whisper/client.py",
        reason="images and sound: this backend reads text alone",
    ),
    Case(
        client=_BACKEND,
        command="tools/llmapi_client.py, tools/tests/test_llmapi_cancel.py (TensorRT-LLM, after the move)",
        reason="they came after these checkouts; `compose --llmapi` serves their tensors, as tests/integration/test_guides.py "
        "sends them",
    ),
    Case(
        client="server",
        command="{here}/openai_requests.py {client}/python/openai/openai_frontend {grpc}",
        shows="every request was answered",
        shows_not=_ERRORS,
    ),
    *(
        Case(
            client="server",
            command=f"{_OPENAI}{file} -k 'not {' and not '.join(left_out.split())}'",
            server=Server.SHORT,
            shows=r"\d+ passed",
            environment=_OPENAI_ENVIRONMENT,
        )
        for file, left_out in (
            ("test_chat_completions.py", "invalid message Tokenizers choices without validation logit_bias precedence"),
            (
                "test_completions.py",
                "invalid request no_ choices validation zero max_tokens defaults sampling_parameters",
            ),
            (
                "test_openai_client.py",
                "models requires exceeds without_streaming client_completion client_chat dict1 dict2 dict3 streaming_usage",
            ),
        )
    ),
    Case(
        client="server",
        command=_OPENAI + "test_openai_client.py -k streaming_usage",
        reason="it counts the chunks of two streams of one prompt; here a chunk has as many tokens as were verified at once, and the "
        "second stream is guessed from the first",
    ),
    Case(
        client="server",
        command=_OPENAI + "test_chat_completions.py {client}/python/openai/tests/test_completions.py "
        "-k 'invalid_sampling or no_message or no_model or no_prompt or choices or logit_bias'",
        server=Server.SHORT,
        shows=r"\d+ passed",
        environment=_OPENAI_ENVIRONMENT,
        differs="it wants FastAPI's 422 where OpenAI says 400, as this gateway does, and n and logit_bias refused, which are "
        "honoured here",
        differs_by="assert 400 == 422",
    ),
    Case(
        client="server",
        command=_OPENAI + "test_chat_completions.py -k precedence",
        server=Server.SHORT,
        shows=r"\d+ passed",
        environment=_OPENAI_ENVIRONMENT,
        differs="max_tokens beside another max_completion_tokens is refused, not passed over",
        differs_by="assert 400 == 200",
    ),
    Case(
        client="server",
        command="python/openai/tests, the others",
        reason="they start, load and unload models in a process of their own, name Llama 3.1's tokenizer and its words, or "
        "want one draw at temperature 1 to say something",
    ),
    Case(
        client="server",
        command="python/openai/openai_frontend/main.py",
        reason="it runs Triton in its own process through the tritonserver bindings of Triton's container; "
        "`openai_requests.py` sends the requests that its trtllm functions build",
    ),
    *(
        Case(
            client="vllm_backend",
            command=f"{{client}}/samples/client.py -u {{grpc}} -m {VLLM_MODEL} --input-prompts {{client}}/samples/prompts.txt "
            + options,
            server=Server.VLLM,
            shows="PASS: vLLM example",
            shows_not=_ERRORS,
        )
        for options in (
            "--results-file {work}/whole.txt",
            "-s --exclude-inputs-in-outputs --results-file {work}/stream.txt",
        )
    ),
    Case(
        client="vllm_backend",
        command=f"{_OUTPUTS} -k 'not False and None-True]'",
        server=Server.VLLM,
        shows=r"\d+ passed",
    ),
    Case(
        client="vllm_backend",
        command=f"{_OUTPUTS} -k 'not False and True-True]'",
        server=Server.VLLM,
        shows=r"\d+ passed",
        differs="it wants an answer that is cut off, as OPT's is; the demo model comes to an end",
        differs_by="assert 'stop' == 'length'",
    ),
    Case(
        client="vllm_backend",
        command="{client}/ci/L0_backend_vllm/enabled_stream/enabled_stream_test.py "
        "VLLMTritonStreamTest.test_vllm_model_enabled_stream",
        server=Server.VLLM,
        shows="OK",
    ),
    Case(
        client="vllm_backend",
        command="ci/*/*.py, the others",
        reason="they compare texts with OPT's and Gemma's, look into vLLM's log and metrics, or start vLLM wrongly",
    ),
)

CASES: Final = (*_TOKEN_CLIENT, *_ADAPTED, *_TEXT_CLIENT, *_GUIDED, *_TOOLS, *_METRICS, *_ELSEWHERE)
