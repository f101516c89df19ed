"""A safetensors file is what safetensors itself says, or refused; nothing that others write makes us crash or fill memory."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trierarch.builder.errors import ResourceError
from trierarch.builder.safetensors_file import (
    MAX_HEADER_BYTES,
    SafetensorsFile,
    write_safetensors,
)
from trierarch.builder.safetensors_header import SafetensorsError, TensorTable, parse_header, parse_whole
from trierarch.builder.tensors import Array, headers_of, num_bytes_of

SHARED = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def arrays() -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {
        "small": generator.standard_normal(3).astype(np.float16),
        "large": generator.standard_normal((5, 7)).astype(np.float32),
        "bits": torch.arange(6.0).view(2, 3).bfloat16().view(torch.uint16).numpy(),
        "none": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float32),
    }


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def opened(tmp_path: Path, content: bytes) -> Mapping[str, Array]:
    """What a file of this content holds."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with SafetensorsFile(path) as file:
        read, mapped = file.tensors(file.read()), file.map()
    assert read.keys() == mapped.keys()
    for name, array in read.items():
        assert array.tobytes() == mapped[name].tobytes()
        assert not array.flags.writeable
    return read


def test_what_is_written_is_read_here_and_by_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, arrays(), {"kind": "test"})

    theirs = safetensors.torch.load_file(str(path))
    with SafetensorsFile(path) as file:
        ours, metadata, headers = file.map(), file.metadata, file.headers

    assert metadata == {"kind": "test"}
    assert headers["bits"] == ("BF16", (2, 3))
    assert ours.keys() == theirs.keys() == arrays().keys()
    for name, array in arrays().items():
        assert ours[name].dtype == array.dtype
        assert ours[name].shape == tuple(theirs[name].shape) == array.shape
        tensor = theirs[name].view(torch.uint16) if name == "bits" else theirs[name]
        assert ours[name].tobytes() == tensor.numpy().tobytes() == array.tobytes()
        assert ours[name].ctypes.data % array.itemsize == 0


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", arrays(), {})
    write_safetensors(tmp_path / "b", dict(reversed(arrays().items())), {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.randn(4).bfloat16(),
        "c": torch.arange(5),
        "d": torch.ones(1, 1).char(),
    }
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})

    read = opened(tmp_path, (tmp_path / "x.safetensors").read_bytes())

    assert {name: array.shape for name, array in read.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert np.array_equal(read["a"], tensors["a"].numpy())
    assert np.array_equal(read["b"], tensors["b"].view(torch.uint16).numpy())
    assert np.array_equal(read["c"], tensors["c"].numpy())


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DATA = bytes(8)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut short"),
    "seven bytes": (bytes(7), "cut short"),
    "huge length": (raw({}, length=2**64 - 1), "header is cut short"),
    "length beyond the file": (raw({}, length=100), "header is cut short"),
    "not JSON": (raw(b"{"), "not JSON"),
    "not text": (raw(b"\xff\xfe"), "not JSON"),
    "deep": (raw(b"[" * 100_000), "not JSON"),
    "a list": (raw([1]), "not a JSON object"),
    "a long number": (raw(b'{"a":' + b"9" * 5000 + b"}"), "cannot be read"),
    "duplicate": (raw(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), DATA), "twice"),
    "duplicate within": (raw(b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', DATA), "twice"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "metadata are not strings"),
    "metadata list": (raw({"__metadata__": ["a"]}), "metadata are not strings"),
    "no entry": (raw({"a": 3}, DATA), "a has no dtype"),
    "more keys": (raw({"a": entry() | {"strides": [1]}}, DATA), "or more than these"),
    "unknown type": (raw({"a": entry("F7")}, DATA), "a is of type 'F7'"),
    "type is a list": (raw({"a": entry(["F32"])}, DATA), "a is of type"),
    "negative size": (raw({"a": entry(shape=[-2])}, DATA), "no shape"),
    "true size": (raw({"a": entry(shape=[True, 2])}, DATA), "no shape"),
    "size of a float": (raw({"a": entry(shape=[2.0])}, DATA), "no shape"),
    "shape is a number": (raw({"a": entry(shape=2)}, DATA), "no shape"),
    "many axes": (raw({"a": entry(shape=[1] * 9)}, DATA), "no shape"),
    "huge size": (raw({"a": entry(shape=[2**63, 2**63])}, DATA), "no shape"),
    "three offsets": (raw({"a": entry(offsets=[0, 4, 8])}, DATA), "no place"),
    "negative offset": (raw({"a": entry(offsets=[-8, 0])}, DATA), "no place"),
    "offsets of another size": (raw({"a": entry(offsets=[0, 4])}, DATA), "not where its header says"),
    "beyond the end": (raw({"a": entry(shape=[2**40], offsets=[0, 2**42])}, DATA), "header speaks of"),
    "overlap": (raw({"a": entry(), "b": entry()}, DATA), "overlaps"),
    "half an overlap": (raw({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlaps"),
    "gap": (raw({"a": entry(offsets=[8, 16])}, bytes(16)), "leaves a gap"),
    "too little": (raw({"a": entry()}, DATA[1:]), "header speaks of"),
    "too much": (raw({"a": entry()}, DATA + b"x"), "header speaks of"),
}


@pytest.mark.parametrize("content, message", HOSTILE.values(), ids=HOSTILE)
def test_what_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(SafetensorsError, match=message):
        opened(tmp_path, content)


def test_a_large_header_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((1 << 33).to_bytes(8, "little"))
        file.truncate(1 << 34)  # sparse
    tracemalloc.start()
    try:
        with pytest.raises(SafetensorsError, match=f"at most {MAX_HEADER_BYTES}"):
            SafetensorsFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@SHARED
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(raw({"__metadata__": {"k": "v"}, "a": entry(), "b": entry("BF16", [2, 3], [8, 20])}, bytes(20)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            content[place] = data.draw(st.sampled_from(b'0123456789-.{}[]",:eE\x00\xff'))
        elif kind == "cut" and len(content) > 1:
            del content[place]
        else:
            content[place:place] = data.draw(st.binary(min_size=1, max_size=3))
    try:
        read = opened(tmp_path, bytes(content))
    except SafetensorsError:
        return
    assert sum(array.nbytes for array in read.values()) <= len(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@SHARED
@given(
    header=JSON | st.dictionaries(st.text(max_size=4), st.fixed_dictionaries({k: JSON for k in entry()}), max_size=3)
)
def test_any_header_is_read_or_refused(tmp_path: Path, header: Any) -> None:
    try:
        opened(tmp_path, raw(header))
    except SafetensorsError:
        return
    assert isinstance(header, dict)


def parsed(parse: Callable[[], tuple[Mapping[str, str], TensorTable]]) -> Any:
    """What a header says, or that it is refused."""
    try:
        metadata, table = parse()
    except (ValueError, RecursionError):
        return None
    return dict(metadata), table.headers, table.places, table.names, table.num_bytes


@SHARED
@given(data=st.data())
def test_a_header_in_two_parts_is_a_whole_one(data: st.DataObject) -> None:
    """Metadata first, the rest remembered: the same tensors, and the same refusals, as of all in one."""
    tensors = data.draw(st.sampled_from([{}, {"a": entry()}, {"a": entry(), "b": entry("BF16", [2, 3], [8, 20])}]))
    metadata = data.draw(st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2))
    text = json.dumps(
        {"__metadata__": metadata, **tensors}, separators=(",", ":"), ensure_ascii=data.draw(st.booleans())
    )
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(text)))
        text = (
            text[:place]
            + data.draw(st.sampled_from(["", ",", "}", '"', " ", "{", '"__metadata__":{},']))
            + text[place + 1 :]
        )
    whole = parsed(lambda: parse_whole(text))
    assert parsed(lambda: parse_header(text.encode())) == parsed(lambda: parse_header(text.encode())) == whole


@pytest.mark.parametrize("rest", [',"__metadata__":{}}', ",}", ', "a":1}', "}", "} x", "", ',"a":{},"a":{}}'])
def test_what_follows_the_metadata_is_as_strict_as_the_whole(rest: str) -> None:
    text = '{"__metadata__":{"k":"v"}' + rest
    assert parsed(lambda: parse_header(text.encode())) == parsed(lambda: parse_whole(text))
    assert (parsed(lambda: parse_whole(text)) is None) == (rest != "}")


def test_files_that_differ_in_their_metadata_alone_have_one_table(tmp_path: Path) -> None:
    for name in "ab":
        write_safetensors(tmp_path / name, arrays(), {"name": name * 70})
    with SafetensorsFile(tmp_path / "a") as a, SafetensorsFile(tmp_path / "b") as b:
        assert a.table is b.table
        assert (a.metadata, b.metadata) == ({"name": "a" * 70}, {"name": "b" * 70})
        assert a.table.is_as_written
        assert a.read_tensors()["large"].tobytes() == b.map()["large"].tobytes() == arrays()["large"].tobytes()


def test_runs_are_all_numbers_by_type(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", arrays(), {})
    with SafetensorsFile(tmp_path / "x") as file:
        tensors = file.read_tensors()
    assert [run.dtype for run in tensors.runs()] == [np.float32, np.uint16, np.float16]
    assert b"".join(run.tobytes() for run in tensors.runs()) == tensors.content().tobytes()
    assert num_bytes_of(tensors) == num_bytes_of(arrays()) == tensors.content().nbytes
    assert headers_of(tensors) == headers_of(arrays())


def test_a_view_that_lies_askew_is_copied(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], [0, 1]), "b": entry(offsets=[1, 9])}
    read = opened(tmp_path, raw(header, b"\x07" + np.array([1.5, -2.0], np.float32).tobytes()))
    assert read["b"].flags.aligned
    assert read["b"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_never_makes_us_wait(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    with pytest.raises(OSError, match="not a regular file"):
        SafetensorsFile(tmp_path / "x")


def test_what_was_opened_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(3, np.float32)}, {})
    with SafetensorsFile(path) as file:
        write_safetensors(path, {"a": np.zeros(3, np.float32)}, {})
        assert file.tensors(file.read())["a"].tolist() == [1, 1, 1]
        path.unlink()
        mapped = file.map()
    assert mapped["a"].tolist() == [1, 1, 1]


def test_one_that_is_cut_short_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(3000, np.float32)}, {})
    with SafetensorsFile(path) as file:
        os.truncate(path, 1000)
        with pytest.raises(SafetensorsError, match="cut short"):
            file.read()


def test_descriptors_go_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(3, np.float32)}, {})
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        with SafetensorsFile(path) as file:
            file.read()
        file.close()
        with pytest.raises(SafetensorsError):
            SafetensorsFile(bad)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(3, np.float32)}, {})
    content = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_safetensors(path, {"a": np.zeros(9, np.float32)}, {})
    assert path.read_bytes() == content
    assert [one.name for one in tmp_path.iterdir()] == ["x.safetensors"]
