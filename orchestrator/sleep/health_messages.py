"""The messages by which gRPC clients ask for health, which are answered here: without the client library's, 30 MB to import.

`inference.ModelReadyRequest` names a model (field 1) and a version (2); its answer, those of ServerLive and ServerReady, and
`grpc.health.v1.HealthCheckResponse` have one field of one byte.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

TRUE: Final = b"\x08\x01"
FALSE: Final = b""
"""Of a bool, which proto3 leaves out where it is false."""
SERVING: Final = b"\x08\x01"
NOT_SERVING: Final = b"\x08\x02"
"""Of grpc.health.v1.HealthCheckResponse."""


def model_asked_for(request: bytes) -> tuple[str, str]:
    """Name and version, empty for any, of a ModelReadyRequest.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    message = _ModelReadyRequest.FromString(request)
    return message.name, message.version


def _model_ready_request() -> Any:
    file = FileDescriptorProto(name="model_ready.proto", package="inference", syntax="proto3")
    message = file.message_type.add(name="ModelReadyRequest")
    for number, name in enumerate(("name", "version"), start=1):
        message.field.add(
            name=name,
            number=number,
            type=FieldDescriptorProto.TYPE_STRING,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
        )
    pool = DescriptorPool()  # its own: the client library registers the same name in the common one
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("inference.ModelReadyRequest"))


_ModelReadyRequest: Final = _model_ready_request()
