"""Tensors: the inputs of one request, packed as Triton's wire wants them, and the outputs of a response, unpacked."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

from trierarch.orchestrator.gateway.triton_messages import service_pb2
from trierarch.python_backend.triton.status import TAG_ERRORS

_LENGTH: Final = struct.Struct("<I")


class Tensors:
    """Inputs of one row, by name: each (1, n). A name that is set again is replaced."""

    def __init__(self) -> None:
        self._packed: dict[str, tuple[str, tuple[int, ...], bytes]] = {}  # name -> datatype, shape, elements

    def texts(self, name: str, *values: str) -> None:
        """STRING."""
        encoded = [value.encode() for value in values]
        content = b"".join(_LENGTH.pack(len(value)) + value for value in encoded)
        self._packed[name] = ("BYTES", (1, len(values)), content)

    def integers(self, name: str, values: Sequence[int]) -> None:
        """INT32."""
        self._packed[name] = ("INT32", (1, len(values)), struct.pack(f"<{len(values)}i", *values))

    def integer(self, name: str, value: int | None) -> None:
        """INT32 of one element; None sends nothing."""
        if value is not None:
            self.integers(name, (value,))

    def unsigned(self, name: str, value: int | None) -> None:
        """UINT64 of one element, modulo 2**64; None sends nothing."""
        if value is not None:
            self._packed[name] = ("UINT64", (1, 1), struct.pack("<Q", value % 2**64))

    def numbers(self, name: str, values: Sequence[float]) -> None:
        """FP32."""
        self._packed[name] = ("FP32", (1, len(values)), struct.pack(f"<{len(values)}f", *values))

    def number(self, name: str, value: float | None) -> None:
        """FP32 of one element; None sends nothing."""
        if value is not None:
            self.numbers(name, (value,))

    def flag(self, name: str, value: bool = True) -> None:
        """BOOL of one element."""
        self._packed[name] = ("BOOL", (1, 1), b"\1" if value else b"\0")

    def words(self, name: str, words: Sequence[Sequence[int]]) -> None:
        """The contract's word list (1, 2, n): token ids, then end offsets padded with -1."""
        tokens = [token for word in words for token in word]
        ends, end = [], 0
        for word in words:
            end += len(word)
            ends.append(end)
        ends += [-1] * (len(tokens) - len(ends))
        self._packed[name] = ("INT32", (1, 2, len(tokens)), struct.pack(f"<{2 * len(tokens)}i", *tokens, *ends))

    def copy(self) -> Tensors:
        """The same inputs, to be changed by themselves."""
        copied = Tensors()
        copied._packed = dict(self._packed)
        return copied

    def request(self, model: str, request_id: str, outputs: Iterable[str]) -> Any:
        """A ModelInferRequest for `outputs`."""
        request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        request.parameters[TAG_ERRORS].bool_param = True
        for name, (datatype, shape, content) in self._packed.items():
            request.inputs.add(name=name, datatype=datatype, shape=shape)
            request.raw_input_contents.append(content)
        for name in outputs:
            request.outputs.add(name=name)
        return request


def outputs_of(response: Any) -> dict[str, bytes]:
    """A ModelInferResponse's elements, by output."""
    return dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))


def all_texts(content: bytes) -> list[str]:
    """The elements of a STRING output."""
    texts, place = [], 0
    while place < len(content):
        (length,) = _LENGTH.unpack_from(content, place)
        place += 4 + length
        texts.append(content[place - length : place].decode("utf-8", errors="replace"))
    return texts


def first_text(content: bytes) -> str:
    """The first element of a STRING output."""
    (length,) = _LENGTH.unpack_from(content)
    return content[4 : 4 + length].decode("utf-8", errors="replace")


def all_integers(content: bytes) -> tuple[int, ...]:
    """The elements of an INT32 output."""
    return struct.unpack(f"<{len(content) // 4}i", content)


def all_numbers(content: bytes) -> tuple[float, ...]:
    """The elements of an FP32 output."""
    return struct.unpack(f"<{len(content) // 4}f", content)
