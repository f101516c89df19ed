"""Packed adapters: written whole, read as they were written, refused by name where an engine cannot compute with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from support.packed_adapters import load_packed, random_packed, taking_adapters, write_random_packed
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder import packed_adapter
from trierarch.builder.adapter import METADATA_KEY, PIECES, AdapterTensors
from trierarch.builder.adapter_check import check_adapter, manifest_of
from trierarch.builder.adapter_source import AdapterSource, read_adapter
from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import DType, EngineManifest, Layer, Moe
from trierarch.builder.packed_adapter import digest_of, read_manifest, write_packed
from trierarch.builder.safetensors_file import SafetensorsFile, write_safetensors
from trierarch.builder.tensors import Array, Tensors

ENGINE = taking_adapters(tiny_manifest(tiny_architecture()), max_rank=8)
BFLOAT16 = taking_adapters(tiny_manifest(tiny_architecture(), DType.BFLOAT16))


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("options", [{}, {"is_dora": True}, {"pieces": PIECES}, {"whole": ("embed", "lm_head")}])
def test_what_is_written_is_read(tmp_path: Path, dtype: DType, options: dict[str, Any]) -> None:
    engine = taking_adapters(tiny_manifest(tiny_architecture(), DType.FLOAT32)).model_copy(update={"dtype": dtype})
    tensors = write_random_packed(tmp_path, "x", engine, **options)

    loaded = load_packed(tmp_path / "x.safetensors")

    check_adapter(loaded, engine)
    assert loaded.manifest == tensors.manifest == read_manifest(tmp_path / "x.safetensors")
    assert loaded.manifest.pieces == tuple(
        piece for piece in PIECES if piece in (*options.get("pieces", PIECES[:7]), *options.get("whole", ()))
    )
    assert loaded.arrays.keys() == tensors.arrays.keys()
    for name, array in tensors.arrays.items():
        assert np.array_equal(loaded.arrays[name], array)
        assert loaded.arrays[name].dtype == array.dtype
    assert loaded.num_bytes == tensors.num_bytes


def test_a_digest_is_of_names_types_shapes_and_numbers() -> None:
    array: Array = np.arange(6, dtype=np.float32)
    base = {"a": array.reshape(2, 3), "b": array}
    others: list[dict[str, Array]] = [
        {"a": array.reshape(3, 2), "b": array},
        {"a": array, "b": array.reshape(2, 3)},
        {"a": array.reshape(2, 3)},
        {"a": array.reshape(2, 3), "c": array},
        {"a": array.reshape(2, 3), "b": array[::-1]},
        {"a": array.reshape(2, 3), "b": array.view(np.uint32)},
        {"a": array.reshape(2, 3), "b": array.astype(np.float16)},
    ]
    assert len({digest_of(one) for one in [base, *others]}) == 1 + len(others)
    assert digest_of(base) == digest_of({"b": array.copy(), "a": np.asfortranarray(base["a"])})


def test_equal_adapters_are_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        write_random_packed(tmp_path, name, ENGINE)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_version_that_was_opened_is_the_one_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    old = write_random_packed(tmp_path, "x", ENGINE, seed=1)
    with AdapterSource.open(path, tmp_path, ENGINE) as source:
        new = write_random_packed(tmp_path, "x", ENGINE, seed=2)
        path.unlink()
        assert source.manifest == old.manifest
        for _ in range(2):
            assert source.read().manifest.digest == digest_of(source.read().arrays) == old.manifest.digest
    assert new.manifest.digest != old.manifest.digest


def test_altered_tensors_are_found_out(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_random_packed(tmp_path, "x", ENGINE)
    with AdapterSource.open(path, tmp_path, ENGINE) as source:
        with path.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
        with pytest.raises(AdapterError, match=r"was altered.*adapters pack"):
            source.read()
    with pytest.raises(AdapterError, match="was altered"):
        load_packed(path)


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of tensors as they are worked out; files count as settled at once."""
    found: list[str] = []

    def watched(arrays: Mapping[str, Array]) -> str:
        found.append(digest_of(arrays))
        return found[-1]

    monkeypatch.setattr(packed_adapter, "digest_of", watched)
    monkeypatch.setattr(packed_adapter, "_SETTLED_NS", -1)
    return found


def read(path: Path) -> AdapterTensors:
    with AdapterSource.open(path, path.parent, ENGINE) as source:
        return source.read()


def test_a_digest_is_worked_out_once_for_a_file_that_nobody_writes_to(tmp_path: Path, digested: list[str]) -> None:
    path = tmp_path / "x.safetensors"
    old = write_random_packed(tmp_path, "x", ENGINE, seed=1)
    for _ in range(3):
        assert read(path).manifest == old.manifest
    assert digested == [old.manifest.digest]
    new = write_random_packed(tmp_path, "x", ENGINE, seed=2)
    assert read(path).manifest == new.manifest
    assert digested == [old.manifest.digest, new.manifest.digest]


def test_a_file_that_was_just_written_is_not_trusted_yet(
    tmp_path: Path, digested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_adapter, "_SETTLED_NS", 3600 * 10**9)
    write_random_packed(tmp_path, "x", ENGINE)
    for _ in range(2):
        read(tmp_path / "x.safetensors")
    assert len(digested) == 2


def flip_last_bit(path: Path) -> None:
    """In place, as no one should; the times of the file are what they were as far as anybody can set them."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    wait_for_tick(path, times.st_ctime_ns)


def wait_for_tick(path: Path, before_ns: int) -> None:
    """A file system's clock ticks some hundred times a second; what settles is two seconds old."""
    while path.stat().st_ctime_ns == before_ns:
        path.chmod(0o644)


def test_what_is_altered_after_it_was_verified_is_found_out(tmp_path: Path, digested: list[str]) -> None:
    path = tmp_path / "x.safetensors"
    write_random_packed(tmp_path, "x", ENGINE, seed=5)
    with AdapterSource.open(path, tmp_path, ENGINE) as source:
        source.read()
        source.read()
        assert len(digested) == 1
        flip_last_bit(path)
        for _ in range(2):
            with pytest.raises(AdapterError, match=r"was altered.*adapters pack"):
                source.read()
    with pytest.raises(AdapterError, match="was altered"):
        read(path)


def test_a_version_that_was_verified_vouches_for_no_other(tmp_path: Path, digested: list[str]) -> None:
    """Whoever opened the file before it was written to in place does not believe what others found out after."""
    path, other = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    write_random_packed(tmp_path, "x", ENGINE, seed=1)
    write_random_packed(tmp_path, "y", ENGINE, seed=2)
    assert path.stat().st_size == other.stat().st_size
    with AdapterSource.open(path, tmp_path, ENGINE) as source:
        times = path.stat()
        path.write_bytes(other.read_bytes())
        wait_for_tick(path, times.st_ctime_ns)
        read(path)
        with pytest.raises(AdapterError, match="was altered"):
            source.read()


def test_numbers_are_looked_at_for_each_digest(tmp_path: Path) -> None:
    for name, value in (("good", 1.0), ("bad", float("nan")), ("worse", float("inf"))):
        arrays = dict(random_packed(ENGINE, seed=11).arrays)
        arrays["layers.1.v.b"][3, 1] = value
        write_packed(AdapterTensors(manifest_of(arrays, ENGINE, name), arrays), tmp_path / f"{name}.safetensors")
    for name in ("good", "bad", "worse", "bad", "good", "worse"):
        if name == "good":
            read(tmp_path / "good.safetensors")
            continue
        with pytest.raises(AdapterError, match=r"layers\.1\.v\.b holds NaN or infinity"):
            read(tmp_path / f"{name}.safetensors")


def test_a_table_that_one_engine_took_is_looked_at_anew_for_another(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_random_packed(tmp_path, "x", ENGINE, rank=4)
    small = taking_adapters(tiny_manifest(tiny_architecture()), max_rank=2)
    other = taking_adapters(tiny_manifest(tiny_architecture(hidden_size=16, num_heads=2)))
    for _ in range(2):
        AdapterSource.open(path, tmp_path, ENGINE).close()
        with pytest.raises(AdapterError, match="--max-lora-rank 4"):
            AdapterSource.open(path, tmp_path, small)
        with pytest.raises(AdapterError, match="another base model"):
            AdapterSource.open(path, tmp_path, other)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_a_digest_of_a_file_is_that_of_its_arrays(tmp_path: Path, dtype: DType) -> None:
    engine = taking_adapters(tiny_manifest(tiny_architecture(), dtype))
    tensors = write_random_packed(tmp_path, "x", engine, is_dora=True)
    loaded = load_packed(tmp_path / "x.safetensors").arrays
    assert digest_of(loaded) == digest_of(dict(loaded)) == digest_of(tensors.arrays) == tensors.manifest.digest


def test_tensors_in_another_order_are_the_same_adapter(tmp_path: Path) -> None:
    """Whoever writes such files himself need not know ours; the digest does not depend on where they lie."""
    tensors = random_packed(ENGINE, is_dora=True)
    metadata = {METADATA_KEY: json.dumps(tensors.manifest.model_dump(mode="json"))}
    safetensors.numpy.save_file(dict(tensors.arrays), tmp_path / "x.safetensors", metadata)
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        reordered = Tensors(file.table, file.read_tensors().content())
    assert load_packed(tmp_path / "x.safetensors").manifest == tensors.manifest
    assert digest_of(reordered) == tensors.manifest.digest


@pytest.mark.parametrize("text", [None, "{", "[]", '"x"', "{}", "[" * 100_000])
def test_metadata_that_is_no_manifest_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(2, np.float32)}, {} if text is None else {METADATA_KEY: text})
    with pytest.raises(AdapterError, match=r"no packed adapter|cannot be read|schema_version is None"):
        read_manifest(path)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("schema_version", 1, "schema_version is 1, this Trierarch reads 2"),
        ("schema_version", 3, "schema_version is 3"),
        ("digest", "abc", "digest: "),
        ("rank", 0, "rank: "),
        ("dtype", "int7", "dtype: "),
        ("colour", "red", "colour: "),
    ],
)
def test_a_manifest_with_something_odd_is_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    tensors = random_packed(ENGINE)
    raw = tensors.manifest.model_dump(mode="json") | {field: value}
    write_safetensors(tmp_path / "x.safetensors", tensors.arrays, {METADATA_KEY: json.dumps(raw)})
    with pytest.raises(AdapterError, match=f"{message}.*adapters pack"):
        AdapterSource.open(tmp_path / "x.safetensors", tmp_path, ENGINE)


def test_what_is_not_there_or_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"does not exist; name a packed adapter"):
        AdapterSource.open(tmp_path / "x.safetensors", tmp_path, ENGINE)
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(AdapterError, match=r"x\.safetensors cannot be read.*adapters pack"):
        AdapterSource.open(tmp_path / "x.safetensors", tmp_path, ENGINE)


Spoil = Callable[[dict[str, Any]], None]


def put(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Spoil:
    return lambda arrays: arrays.__setitem__(name, np.ones(shape, dtype))


def drop(name: str) -> Spoil:
    return lambda arrays: arrays.pop(name)


def fill(name: str, value: float) -> Spoil:
    return lambda arrays: arrays[name].__setitem__((0, 0), value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            put("layers.2.q.a", (4, 32)),
            r"layers\.2\.q\.a is nothing that engine 'tiny' can adapt.*2 layers.*this model",
        ),
        (put("layers.0.norm.weight", (32,)), r"layers\.0\.norm\.weight is nothing"),
        (put("layers.00.q.a", (4, 32)), r"layers\.00\.q\.a is nothing"),
        (put("", (1,)), "is nothing that engine"),
        (
            put("layers.1.o.a", (4, 31)),
            r"layers\.1\.o\.a has shape \(4, 31\), engine 'tiny' wants \(4, 32\).*another base",
        ),
        (
            put("layers.1.k.b", (32, 4)),
            r"layers\.1\.k\.b has shape \(32, 4\), engine 'tiny' wants \(16, 4\).*another base",
        ),
        (put("layers.1.k.b", (16, 3)), r"layers\.1\.k\.b has shape \(16, 3\), engine 'tiny' wants \(16, 4\)"),
        (put("layers.1.k.a", (4,)), r"layers\.1\.k\.a has rank 0"),
        (put("layers.1.k.a", (0, 32)), r"layers\.1\.k\.a has rank 0.*train"),
        (put("layers.1.k.a", (9, 32)), r"layers\.1\.k\.a has rank 9, lora\.max_rank is 8; rebuild.*--max-lora-rank 9"),
        (drop("layers.0.up.b"), r"layers\.0\.up has a: it takes a and b"),
        (drop("layers.0.up.a"), r"layers\.0\.up has b: it takes a and b"),
        (put("layers.0.up.weight", (48, 32)), r"layers\.0\.up has a, b, weight"),
        (put("embed.a", (50, 4)), r"embed has a: "),
        (put("embed.weight", (50, 31)), r"embed\.weight has shape \(50, 31\), engine 'tiny' wants \(50, 32\)"),
        (put("embed.gain", (32,)), r"embed has gain"),
        (put("layers.0.q.gain", (32,)), "is_dora is False, and the tensors say True"),
        (put("layers.0.q.gain", (31,)), r"layers\.0\.q\.gain has shape \(31,\)"),
        (put("layers.0.q.a", (4, 32), np.float16), r"layers\.0\.q\.a is of type F16, engine 'tiny' wants F32.*pack"),
        (put("layers.0.q.a", (4, 32), np.int64), r"layers\.0\.q\.a is of type int64, engine 'tiny' wants F32.*pack"),
        (fill("layers.0.q.a", float("nan")), r"layers\.0\.q\.a holds NaN or infinity; train"),
        (fill("layers.1.down.b", float("-inf")), r"layers\.1\.down\.b holds NaN or infinity"),
        (dict.clear, "has no tensor"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_the_remedy(spoil: Spoil, message: str) -> None:
    tensors = random_packed(ENGINE)
    arrays = dict(tensors.arrays)
    spoil(arrays)
    with pytest.raises(AdapterError, match=message):
        check_adapter(AdapterTensors(tensors.manifest, arrays), ENGINE)


@pytest.mark.parametrize(
    "claims, engine, message",
    [
        (
            {},
            ENGINE.model_copy(update={"lora": None}),
            "lora is null: engine 'tiny' takes no adapters; .*--max-adapters",
        ),
        ({}, BFLOAT16, "dtype is 'float32', the engine computes in 'bfloat16'; pack it anew"),
        ({"rank": 3}, ENGINE, "rank is 3, and the tensors say 4"),
        ({"pieces": ("q",)}, ENGINE, "pieces is .*and the tensors say"),
        ({"is_dora": True}, ENGINE, "is_dora is True, and base_digest None"),
        ({"base_digest": "0" * 64}, ENGINE, "is_dora is False, and base_digest '0"),
        ({"is_dora": True, "base_digest": "1" * 64}, ENGINE, "base_digest is 1.*weights of another engine; pack"),
    ],
)
def test_what_the_manifest_claims_is_checked(claims: dict[str, Any], engine: EngineManifest, message: str) -> None:
    tensors = random_packed(ENGINE)
    spoiled = replace(tensors, manifest=tensors.manifest.model_copy(update=claims))
    with pytest.raises(AdapterError, match=message):
        check_adapter(spoiled, engine)


def test_bits_of_bfloat16_that_are_nan_are_found() -> None:
    tensors = random_packed(BFLOAT16)
    arrays = dict(tensors.arrays)
    arrays["layers.0.q.b"] = np.full_like(arrays["layers.0.q.b"], 0x7FC0)
    with pytest.raises(AdapterError, match=r"layers\.0\.q\.b holds NaN"):
        check_adapter(AdapterTensors(tensors.manifest, arrays), BFLOAT16)


def test_experts_are_not_adapted() -> None:
    moe = Moe(num_experts=3, experts_per_token=2, intermediate_size=4, normalize_top_k=True)
    engine = taking_adapters(tiny_manifest(tiny_architecture(moe=moe, layers=(Layer(), Layer(is_moe=True)))))
    tensors = random_packed(engine)
    assert {name.split(".")[2] for name in tensors.arrays if name.startswith("layers.1.")} == {"q", "k", "v", "o"}
    check_adapter(tensors, engine)
    arrays = {
        **tensors.arrays,
        "layers.1.up.a": np.ones((4, 32), np.float32),
        "layers.1.up.b": np.ones((48, 4), np.float32),
    }
    with pytest.raises(AdapterError, match=r"layers\.1\.up\.a is nothing .*experts are not adapted"):
        check_adapter(AdapterTensors(manifest_of(arrays, engine, "random"), arrays), engine)


def test_a_file_that_does_not_fit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write_random_packed(tmp_path, "x", ENGINE, rank=4)
    small = taking_adapters(tiny_manifest(tiny_architecture()), max_rank=2)
    with pytest.raises(AdapterError, match="--max-lora-rank 4"):
        AdapterSource.open(tmp_path / "x.safetensors", tmp_path, small)
    assert read_adapter(tmp_path / "x.safetensors", tmp_path, ENGINE).manifest.rank == 4


def test_a_replaced_file_is_another_version(tmp_path: Path) -> None:
    first = random_packed(ENGINE, seed=1)
    second = random_packed(ENGINE, seed=2)
    for tensors in (first, second):
        write_packed(tensors, tmp_path / "x.safetensors")
        assert read_manifest(tmp_path / "x.safetensors") == tensors.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
