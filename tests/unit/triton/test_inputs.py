"""Reading arrays: what clients send, and what each bad tensor is told."""

from __future__ import annotations

import numpy as np
import pytest

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.inputs import Array, Inputs, batch_size


def one(array: Array) -> Inputs:
    return Inputs({"tensor": array})


def strings(*items: bytes) -> Array:
    return np.array([items], np.object_)


def test_absent_and_zero_size_tensors_read_as_nothing() -> None:
    for inputs in (Inputs({}), one(np.zeros((1, 0), np.int32))):
        assert "tensor" not in inputs
        assert inputs.integer("tensor") is None
        assert inputs.integers("tensor") is None
        assert inputs.number("tensor") is None
        assert inputs.flag("tensor") is None
        assert inputs.text("tensor") is None
        assert inputs.texts("tensor") == ()
        assert inputs.words("tensor") == ()


def test_each_row_is_read_for_itself() -> None:
    arrays: dict[str, Array] = {"ids": np.array([[1, 2], [3, 4]], np.int32), "t": np.array([[0.5], [0.7]], np.float32)}
    assert batch_size(arrays) == 2
    assert Inputs(arrays, 1).integers("ids") == (3, 4)
    assert Inputs(arrays, 1).number("t") == 0.7  # not 0.699999988


def test_text_is_decoded() -> None:
    assert one(strings("grüß".encode())).text("tensor") == "grüß"


@pytest.mark.parametrize(
    ("array", "getter", "says"),
    [
        (np.array([[1.0]], np.float32), "integer", "integer elements"),
        (np.array([[1]], np.int32), "number", "floating point elements"),
        (np.array([[1]], np.int32), "flag", "BOOL elements"),
        (np.array([[1]], np.int32), "text", "STRING"),
        (np.array([[1, 2]], np.int32), "integer", "one value a row"),
        (np.array([[[1]]], np.int32), "integers", r"\(batch, length\)"),
        (np.array([[np.nan]], np.float32), "number", "finite"),
        (np.array([[np.inf]], np.float32), "number", "finite"),
        (strings(b"\xff\xfe"), "text", "must be UTF-8; byte 0"),
        (strings(b"a", b"b"), "text", "one string a row"),
        (np.array([[1, 2, 3]], np.int32), "words", r"\(batch, 2, length\)"),
    ],
)
def test_a_bad_tensor_is_named_with_the_remedy(array: Array, getter: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^tensor is .*{says}"):
        getattr(one(array), getter)("tensor")


def test_rows_must_agree() -> None:
    arrays: dict[str, Array] = {"a": np.zeros((2, 1), np.int32), "b": np.zeros((1, 1), np.int32)}
    with pytest.raises(InvalidRequest, match=r"b is .*batch size must be that of a, 2"):
        batch_size(arrays)
    with pytest.raises(InvalidRequest, match="text_input"):
        batch_size({})
