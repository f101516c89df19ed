"""The adapters in memory: what is loaded, what it takes the place of, and what never happens."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from support.eventually import eventually
from support.memory_adapters import MemorySource, ToyWeights, arrange, arrange_draft, make_adapter
from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.errors import AdapterError
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.cache import RETRY_SECONDS, AdapterCache
from trierarch.python_backend.adapters.loader import AdapterLoader


class Shelf:
    """A cache, its clock, and a few adapters of 4 bytes."""

    def __init__(self, max_bytes: int = 10) -> None:
        self.now = 0.0
        self.cache = AdapterCache(max_bytes, arrange, clock=lambda: self.now)
        self.adapters = {name: make_adapter(name) for name in "abcde"}

    def __getitem__(self, names: str) -> list[Adapter]:
        return [self.adapters[name] for name in names]

    def prefer(self, names: str) -> None:
        self.cache.prefer(self[names])

    def load(self) -> str:
        """Load what can be loaded, and say what is loaded then."""
        while self.cache.load_next():
            pass
        return self.loaded

    @property
    def loaded(self) -> str:
        return "".join(name for name, adapter in self.adapters.items() if self.cache.get(adapter.digest) is not None)

    def pin(self, name: str) -> None:
        assert self.cache.pin(self.adapters[name].digest) is not None

    def unpin(self, name: str) -> None:
        self.cache.unpin(self.adapters[name].digest)

    def is_stuck(self, name: str) -> bool:
        return self.cache.is_stuck(self.adapters[name].digest)


def test_what_is_wanted_is_loaded_once_and_in_order() -> None:
    shelf = Shelf()
    for adapter in shelf["baab"]:
        shelf.cache.want(adapter)
    assert shelf.cache.load_next()
    assert shelf.loaded == "b"
    assert shelf.load() == "ab"
    assert shelf.cache.num_loads == 2
    assert shelf.cache.num_bytes == 8
    loaded = shelf.cache.get(shelf.adapters["a"].digest)
    assert loaded is not None
    assert loaded.weights == ToyWeights(shelf.adapters["a"].digest, 4)


def test_the_longest_unused_make_room() -> None:
    shelf = Shelf()
    shelf.prefer("ab")
    shelf.load()
    shelf.pin("a")
    shelf.unpin("a")
    shelf.prefer("c")
    assert shelf.load() == "ac"
    assert shelf.cache.num_evictions == 1


def test_what_is_pinned_stays_and_a_load_waits_for_it() -> None:
    shelf = Shelf()
    shelf.prefer("ab")
    shelf.load()
    shelf.pin("a")
    shelf.pin("a")
    shelf.pin("b")
    shelf.prefer("c")
    assert shelf.load() == "ab"
    assert shelf.is_stuck("c")
    assert shelf.cache.error(shelf.adapters["c"].digest) is None
    shelf.unpin("a")
    assert shelf.load() == "ab"
    shelf.unpin("a")
    assert not shelf.is_stuck("c")
    assert shelf.load() == "bc"
    shelf.cache.check_integrity(Counter([shelf.adapters["b"].digest]))


def test_the_line_never_takes_its_own_heads_place() -> None:
    shelf = Shelf()
    shelf.prefer("abc")
    assert shelf.load() == "ab"
    assert shelf.is_stuck("c")
    shelf.prefer("cab")
    assert not shelf.is_stuck("c")
    assert shelf.load() == "ac", "b stands furthest back"
    shelf.prefer("b")
    assert "b" in shelf.load()


def test_one_that_waits_for_room_keeps_nobody_from_the_room_that_there_is() -> None:
    shelf = Shelf()
    large = make_adapter("large", num_bytes=8)
    shelf.prefer("a")
    shelf.load()
    shelf.pin("a")
    shelf.cache.prefer([large, *shelf["b"]])
    assert shelf.load() == "ab"
    shelf.unpin("a")
    assert shelf.load() == ""
    assert shelf.cache.get(large.digest) is not None


def test_one_larger_than_all_memory_fails_by_name_and_one_that_just_fits_does_not() -> None:
    shelf = Shelf()
    fits, huge = make_adapter("fits", num_bytes=10), make_adapter("huge", num_bytes=11, guess=3)
    shelf.cache.prefer([huge, fits])
    shelf.load()
    assert shelf.cache.get(fits.digest) is not None
    error = shelf.cache.error(huge.digest)
    assert isinstance(error, AdapterError)
    assert "takes 11 bytes, lora.host_bytes is 10" in str(error)


def test_one_that_is_larger_than_it_looks_waits_until_there_is_room_for_all_of_it() -> None:
    shelf = Shelf()
    coy = make_adapter("coy", num_bytes=8, guess=1)
    shelf.prefer("a")
    shelf.load()
    shelf.pin("a")
    shelf.cache.prefer([coy])
    shelf.load()
    assert shelf.cache.get(coy.digest) is None
    assert shelf.cache.is_stuck(coy.digest)
    shelf.unpin("a")
    shelf.load()
    assert shelf.cache.get(coy.digest) is not None


def test_the_draft_models_weights_count() -> None:
    cache = AdapterCache(10, arrange, lambda _, tensors: ToyWeights(tensors.manifest.digest, 5))
    adapter = make_adapter("x")
    cache.want(adapter)
    cache.load_next()
    assert cache.num_bytes == 9
    other = make_adapter("y")
    cache.want(other)
    assert not cache.load_next()
    assert cache.is_stuck(other.digest)


def test_a_failure_is_told_and_tried_again_for_whoever_asks_later() -> None:
    shelf = Shelf()
    source = MemorySource("bad", fault="it is damaged")
    bad = Adapter("bad", source)
    shelf.cache.want(bad)
    shelf.load()
    assert str(shelf.cache.error(bad.digest)) == "it is damaged"
    assert shelf.cache.has_failures
    shelf.now = RETRY_SECONDS - 0.1
    shelf.cache.want(bad)
    assert not shelf.cache.load_next()
    shelf.now = RETRY_SECONDS
    source.fault = None
    shelf.cache.want(bad)
    assert shelf.cache.error(bad.digest) is None
    shelf.load()
    assert shelf.cache.get(bad.digest) is not None
    assert (shelf.cache.num_loads, shelf.cache.num_failures) == (1, 1)


def test_what_nobody_foresaw_is_a_failure_of_that_adapter_alone() -> None:
    def arrange_some(tensors: AdapterTensors) -> ToyWeights:
        if tensors.manifest.source == "bad 0":
            raise MemoryError
        return arrange(tensors)

    cache = AdapterCache(10, arrange_some)
    bad, good = make_adapter("bad"), make_adapter("good")
    cache.prefer([bad, good])
    assert cache.load_next()
    assert cache.load_next()
    assert isinstance(cache.error(bad.digest), MemoryError)
    assert cache.get(good.digest) is not None


def test_failures_are_not_remembered_for_ever() -> None:
    shelf = Shelf()
    first = make_adapter("0", fault="damaged")
    shelf.cache.want(first)
    shelf.load()
    for number in range(1, 1025):
        shelf.cache.prefer([make_adapter(str(number), fault="damaged")])
        shelf.load()
    assert shelf.cache.error(first.digest) is None


def test_loads_are_timed() -> None:
    shelf = Shelf()

    def slowly(tensors: AdapterTensors) -> ToyWeights:
        shelf.now += 0.5
        return arrange(tensors)

    cache = AdapterCache(10**6, slowly, clock=lambda: shelf.now)
    for number in range(100):
        cache.prefer([make_adapter(str(number))])
        cache.load_next()
    assert (cache.num_loads, cache.load_seconds, cache.load_durations) == (100, 50.0, (0.5,) * 64)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), max_bytes=st.integers(5, 16))
def test_whatever_is_wanted_and_pinned_the_budget_holds(seed: int, max_bytes: int) -> None:
    random = Random(seed)
    cache = AdapterCache(max_bytes, arrange, arrange_draft)
    adapters = [make_adapter(str(n), 0, random.randint(1, 6), guess=random.randint(0, 8)) for n in range(8)]
    pins: Counter[str] = Counter()
    for _ in range(80):
        adapter = random.choice(adapters)
        match random.randrange(5):
            case 0:
                cache.want(adapter)
            case 1:
                cache.prefer(random.sample(adapters, random.randint(0, 5)))
            case 2:
                if cache.pin(adapter.digest) is not None:
                    pins[adapter.digest] += 1
            case 3:
                if pins[adapter.digest]:
                    cache.unpin(adapter.digest)
                    pins[adapter.digest] -= 1
            case _:
                cache.load_next()
        cache.check_integrity(+pins)
        assert all(cache.get(digest) is not None for digest in +pins)
    for digest in (+pins).elements():
        cache.unpin(digest)
    for adapter in adapters:
        cache.prefer([adapter])
        for _ in range(3):
            cache.load_next()
        assert (cache.get(adapter.digest) is None) == (cache.error(adapter.digest) is not None)


class Gate:
    """An `arrange` that waits at a gate."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.has_come = threading.Event()

    def __call__(self, tensors: AdapterTensors) -> ToyWeights:
        self.has_come.set()
        assert self.is_open.wait(60)
        return arrange(tensors)


def test_the_loaders_thread_loads_what_is_wanted_and_says_so() -> None:
    gate, changes = Gate(), threading.Semaphore(0)
    cache = AdapterCache(100, gate)
    loader = AdapterLoader(cache, changes.release)
    a, bad = make_adapter("a"), make_adapter("bad", fault="damaged")
    cache.want(a)
    assert gate.has_come.wait(60)
    cache.want(bad)
    assert cache.get(a.digest) is None
    assert not cache.is_stuck(a.digest)
    gate.is_open.set()
    for _ in range(2):
        assert changes.acquire(timeout=60)
    assert cache.get(a.digest) is not None
    assert cache.error(bad.digest) is not None
    loader.close()
    loader.close()
    assert cache.num_bytes == 0


def test_closing_waits_for_the_load_under_way_and_starts_no_other() -> None:
    gate = Gate()
    cache = AdapterCache(100, gate)
    loader = AdapterLoader(cache, lambda: None)
    for name in "ab":
        cache.want(make_adapter(name))
    assert gate.has_come.wait(60)
    closer = threading.Thread(target=loader.close)
    closer.start()
    eventually(lambda: cache._is_closed, "word of the end")
    gate.is_open.set()
    closer.join(60)
    assert not closer.is_alive()
    assert cache.num_loads == 1


def test_a_load_that_waits_for_room_goes_on_once_there_is_some() -> None:
    changes = threading.Semaphore(0)
    cache = AdapterCache(4, arrange)
    loader = AdapterLoader(cache, changes.release)
    a, b = make_adapter("a"), make_adapter("b")
    cache.want(a)
    assert changes.acquire(timeout=60)
    assert cache.pin(a.digest) is not None
    cache.prefer([b])
    assert not changes.acquire(timeout=0.05)
    cache.unpin(a.digest)
    assert changes.acquire(timeout=60)
    assert cache.get(b.digest) is not None
    loader.close()


def test_many_threads_at_once() -> None:
    cache = AdapterCache(12, arrange, arrange_draft)
    loader = AdapterLoader(cache, lambda: None)
    adapters = [make_adapter(str(number)) for number in range(8)]

    def use(seed: int) -> None:
        random = Random(seed)
        for _ in range(300):
            adapter = random.choice(adapters)
            cache.want(adapter)
            if random.random() < 0.2:
                cache.prefer(random.sample(adapters, 3))
            if cache.pin(adapter.digest) is not None:
                loaded = cache.get(adapter.digest)
                assert loaded is not None
                assert isinstance(loaded.weights, ToyWeights)
                assert loaded.weights.digest == adapter.digest
                assert cache.num_bytes <= cache.max_bytes
                cache.unpin(adapter.digest)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(use, range(4)))
    loader.close()
    cache.check_integrity(Counter())
    assert cache.num_loads > 0
