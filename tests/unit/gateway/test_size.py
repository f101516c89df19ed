"""What a gateway costs while nobody asks it anything."""

from __future__ import annotations

import json
import subprocess
import sys

MAX_IDLE_BYTES = 120 << 20
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "pydantic", "jinja2", "tritonclient.grpc")
PROGRAM = f"""
import json, sys
from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
from trierarch.orchestrator.gateway.gateway_server import GatewayServer
from trierarch.orchestrator.gateway.source import always_on
from trierarch.orchestrator.gateway.upstream import Endpoints
with GatewayServer(GatewayConfig(port=0), lambda: always_on(Endpoints("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"))):
    pages = int(open("/proc/self/statm").read().split()[1])
    print(json.dumps({{"bytes": pages * 4096, "heavy": [name for name in {HEAVY!r} if name in sys.modules]}}))
"""


def test_an_idle_gateway_is_small_and_has_nothing_heavy_in_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=100)
    told = json.loads(done.stdout)
    assert told["heavy"] == []
    assert told["bytes"] < MAX_IDLE_BYTES


def test_clients_that_come_later_have_the_same_messages() -> None:
    """The library's own package may be imported behind ours, in the same process."""
    program = (
        "from trierarch.orchestrator.gateway.triton_messages import service_pb2;"
        "import tritonclient.grpc.service_pb2 as theirs;"
        "assert theirs.ModelInferRequest is service_pb2.ModelInferRequest;"
        "import tritonclient.grpc as client;"
        "client.InferenceServerClient('127.0.0.1:1').close()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
