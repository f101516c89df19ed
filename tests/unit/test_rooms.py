"""The rooms' walls: who may import whom, read from the source so that no import has to succeed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The builder's contract with everybody: what an engine is, whether it is sound, and how errors look.
CONTRACT = {
    "trierarch.builder.manifest",
    "trierarch.builder.errors",
    "trierarch.builder.mapping",
    "trierarch.builder.verify",
    "trierarch.builder.adapter",
    "trierarch.builder.adapter_check",
    "trierarch.builder.adapter_source",
    "trierarch.builder.packed_adapter",
    "trierarch.builder.safetensors_file",
    "trierarch.builder.tensorrt_llm.compatibility",
    "trierarch.builder.safetensors_header",
    "trierarch.builder.tensors",
}

# folder -> prefixes of ours it may import, besides its own
ROOMS: dict[str, set[str]] = {
    "builder": set(),
    "python_backend": CONTRACT | {"trierarch.builder.machine"},
    "ensembles": CONTRACT
    | {
        "trierarch.builder.staging",
        "trierarch.python_backend.triton.contract",
        "trierarch.python_backend.triton.path_list",
    },
    "kserve": CONTRACT,
    "orchestrator": {"trierarch"},
    "benchmarks": {"trierarch"},
}

# Inside the backend: what each kind of room must not reach.
FORBIDDEN: dict[str, set[str]] = {
    "python_backend/kv": {"torch", "numpy", "triton_python_backend_utils", "trierarch.python_backend.executors"},
    "python_backend/scheduling": {
        "torch",
        "numpy",
        "triton_python_backend_utils",
        "trierarch.python_backend.executors",
    },
    "python_backend/beams": {"torch", "numpy", "triton_python_backend_utils", "trierarch.python_backend.executors"},
    "python_backend/speculation": {"torch", "triton_python_backend_utils", "trierarch.python_backend.executors"},
    "python_backend/executors": {"triton_python_backend_utils", "trierarch.python_backend.triton", "transformers"},
    # Of TensorRT-LLM nothing is imported with our modules: what is checked first decides whether it is at all.
    "python_backend/executors/tensorrt_llm": {
        "tensorrt_llm",
        "trierarch.python_backend.executors.cpu",
        "trierarch.python_backend.executors.torch",
    },
    "python_backend/text": {"torch", "transformers", "triton_python_backend_utils", "trierarch.python_backend.triton"},
    "python_backend/triton": {"torch", "transformers", "trierarch.python_backend.executors.torch"},
    "python_backend/guides": {"torch", "triton_python_backend_utils", "trierarch.python_backend.executors"},
    "python_backend/adapters": {"torch", "triton_python_backend_utils", "trierarch.python_backend.executors"},
    "kserve": {"torch", "triton_python_backend_utils", "tritonclient", "kserve", "kubernetes.config"},
    "orchestrator/sleep": {"torch", "numpy", "tritonclient", "trierarch.python_backend.executors"},
    "orchestrator/sleep/lifecycle.py": {"asyncio", "time", "os"},
    "orchestrator/sleep/room.py": {"asyncio", "time", "os"},
    # One process that may wait for days with nothing behind it; the model has the tokenizer and the template.
    "orchestrator/gateway": {"torch", "numpy", "transformers", "tokenizers", "jinja2", "pydantic"}
    | {
        f"trierarch.python_backend.{room}"
        for room in ("text", "executors", "scheduling", "kv", "speculation", "adapters")
    },
    "builder/manifest.py": {"torch", "numpy"},
    "builder/mapping.py": {"torch", "numpy"},
    "builder/adapter.py": {"torch"},
    "builder/adapter_check.py": {"torch"},
    "builder/adapter_source.py": {"torch"},
    "builder/packed_adapter.py": {"torch"},
    "builder/safetensors_file.py": {"torch"},
    "builder/safetensors_header.py": {"torch"},
    "builder/tensors.py": {"torch"},
    "builder/verify.py": {"torch", "numpy"},
    "builder/tensorrt_llm/compatibility.py": {"torch"},
    "builder/tensorrt_llm/releases.py": {"torch"},
}


# What starts without torch, with all that it imports: a second of a start, and some 200 MB.
LIGHT = (
    "python_backend/executors/cpu",
    "python_backend/executors/sampling",
    "python_backend/executors/drawing.py",
    "python_backend/guides",
    "builder/adapter_source.py",
)
HEAVY = {"torch", "transformers", "scipy", "trierarch.python_backend.executors.torch"}


def _imports(path: Path, is_lazy_too: bool = True) -> set[str]:
    """Modules that a file imports; those that it imports only when a function is called only if `is_lazy_too`."""
    modules: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if is_lazy_too else tree.body:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules.add(node.module)
    return modules


def _sources(place: str) -> list[Path]:
    path = ROOT / place
    if path.suffix == ".py":
        return [path]
    # Hidden folders hold what is not ours, such as the rivals' environments.
    return sorted(source for source in path.rglob("*.py") if not any(part[0] == "." for part in source.parts))


def _files(module: str) -> list[Path]:
    """The source of one of our modules, and of the packages it lies in."""
    parts = module.split(".")[1:]
    places = [ROOT.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    files = [place / "__init__.py" for place in places] + [places[-1].with_suffix(".py")] if places else []
    return [file for file in files if file.exists()]


def _is_within(module: str, prefixes: set[str]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_house_allows(room: str) -> None:
    allowed = ROOMS[room] | {f"trierarch.{room}"}
    sources = _sources(room)
    assert sources, f"{room} is empty"
    strays = {
        f"{source.relative_to(ROOT)} imports {module}"
        for source in sources
        for module in _imports(source)
        if _is_within(module, {"trierarch"}) and not _is_within(module, allowed)
    }
    assert not strays


@pytest.mark.parametrize("place", FORBIDDEN)
def test_deciding_computing_and_translating_never_reach_into_each_other(place: str) -> None:
    strays = {
        f"{source.relative_to(ROOT)} imports {module}"
        for source in _sources(place)
        for module in _imports(source)
        if _is_within(module, FORBIDDEN[place])
    }
    assert not strays


@pytest.mark.parametrize("place", LIGHT)
def test_what_starts_light_reaches_nothing_heavy(place: str) -> None:
    seen, paths = set[Path](), list(_sources(place))
    while paths:
        path = paths.pop()
        if path in seen:
            continue
        seen.add(path)
        imports = _imports(path, is_lazy_too=path in _sources(place))
        assert not {module for module in imports if _is_within(module, HEAVY)}, f"{path.relative_to(ROOT)}, by {place}"
        paths += [source for module in imports if _is_within(module, {"trierarch"}) for source in _files(module)]
    assert len(seen) > len(_sources(place))


def test_every_folder_of_the_package_is_linked() -> None:
    linked = {link.name for link in (ROOT / ".src/trierarch").iterdir()}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages | {"kserve"} == linked


def test_our_kserve_never_hides_kserves_own() -> None:
    """Whoever runs in the repository's root has it first on the path: a package there would be `import kserve`."""
    assert not (ROOT / "kserve/__init__.py").exists()
    assert not list((ROOT / "tests").rglob("kserve/__init__.py"))
