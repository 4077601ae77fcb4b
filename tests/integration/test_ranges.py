"""Ranges: a large layer comes over several connections where that is faster, and over one wherever it is not.

The network between is a relay of the tests; the registry behind it a real one, but where it has to lie.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import InvalidError
from tests.children import Child, until
from tests.content.stores import files_below
from tests.images import BuiltImage, Images
from tests.integration.cuts import PULL, image_of, kept, kept_of_dead, noise
from tests.registries import Registry
from tests.registry_faults import Answer, FaultyRegistry
from tests.relays import SlowRelay

pytestmark = pytest.mark.root

LAYER_BYTES = 32 << 20
# Of each connection; a layer over one takes four seconds.
RATE = 8e6
# Of those which are killed before the end: if a busy machine hides what a second connection gains, there is time for
# another trial.
LASTING_RATE = 2e6
TRUTH = Answer(body=None)


@pytest.fixture(scope="module")
def built() -> BuiltImage:
    """An image of one large layer."""
    return image_of(noise(40, LAYER_BYTES))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not any(thread.name.startswith("pyctrd") for thread in threading.enumerate()))


def layer_ranges(relay: SlowRelay, built: BuiltImage) -> list[str | None]:
    """With which ranges the layer was asked for."""
    return [asked.range for asked in relay.asked() if asked.path.endswith(built.layers[0].digest)]


def assert_whole(engine: pyctrd.Engine, reference: str, root: Path) -> None:
    """The image is what was pushed, and nothing else is left."""
    assert engine.images.get(reference).read_file("/f0") == noise(40, LAYER_BYTES)
    assert engine.check(digests=True) == []
    assert files_below(root / "content/ingest") == []
    assert engine.content.usage().reserved_bytes == 0


# where it pays


@pytest.mark.parametrize(("latency", "keep_blobs"), [(0.0, True), (0.05, False)])
def test_a_limit_of_each_connection_is_got_around(
    images: Images, registry: Registry, root: Path, built: BuiltImage, *, latency: float, keep_blobs: bool
) -> None:
    pushed = images.push(built).reference
    told: list[int] = []
    with SlowRelay(registry.host, rate=RATE, latency=latency) as relay, pyctrd.Engine() as engine:
        reference = pushed.replace(registry.host, relay.host)
        engine.images.pull(reference, keep_blobs=keep_blobs, progress=lambda seen: told.append(seen.received_bytes))
        assert relay.connections_most >= 3
        asked = layer_ranges(relay, built)
        assert_whole(engine, reference, root)
    assert asked.count(None) == 1
    assert len(asked) > 4
    assert told == sorted(told)
    assert told[-1] == len(built.layers[0].content)


def test_no_byte_is_asked_for_twice_but_what_the_first_connection_had_on_its_way(
    images: Images, registry: Registry, root: Path, built: BuiltImage
) -> None:
    pushed = images.push(built).reference
    with SlowRelay(registry.host, rate=RATE) as relay, pyctrd.Engine() as engine:
        reference = pushed.replace(registry.host, relay.host)
        engine.images.pull(reference)
        spans = sorted(
            tuple(map(int, asked.removeprefix("bytes=").split("-")))
            for asked in layer_ranges(relay, built)
            if asked is not None
        )
        assert_whole(engine, reference, root)
    assert spans[-1][1] == len(built.layers[0].content) - 1
    assert all(following[0] == span[1] + 1 for span, following in itertools.pairwise(spans))


def test_connections_that_break_are_gone_on_from_where_they_were(
    images: Images, registry: Registry, root: Path, built: BuiltImage
) -> None:
    pushed = images.push(built).reference
    # Later than the first connection needs to be helped, and in the middle of a range.
    with SlowRelay(registry.host, rate=4e6, breaks_after=(5 << 20) + 1234) as relay, pyctrd.Engine() as engine:
        reference = pushed.replace(registry.host, relay.host)
        engine.images.pull(reference)
        asked = [span for span in layer_ranges(relay, built) if span is not None]
        assert_whole(engine, reference, root)
    # The same may be asked for twice, on a connection that broke while it was idle.
    ends = [span.rpartition("-")[2] for span in set(asked)]
    assert len(set(ends)) < len(ends)  # of a range, the rest was asked for


# where it does not


def test_where_the_stages_are_what_is_slow_nothing_is_tried(images: Images, state: Path) -> None:
    del state  # named so that PYCTRD_STATE is the test's
    pushed = images.push(image_of(noise(45, 2 * LAYER_BYTES))).reference
    code = f"{PULL}\nprint([name for name in sys.modules if name == 'pyctrd.flows.ranges'])"
    done = subprocess.run([sys.executable, "-c", code, pushed], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_line_that_is_full_is_left_to_one_connection(
    images: Images, registry: Registry, root: Path, built: BuiltImage
) -> None:
    pushed = images.push(built).reference
    with SlowRelay(registry.host, total=RATE) as relay, pyctrd.Engine() as engine:
        reference = pushed.replace(registry.host, relay.host)
        engine.images.pull(reference)
        asked = layer_ranges(relay, built)
        assert_whole(engine, reference, root)
    assert asked[0] is None
    assert 1 < len(asked) <= 4  # it was tried, and given up


@pytest.mark.parametrize("options", [{"layer_connections": 1}, {"concurrency": 1}])
def test_it_can_be_turned_off(
    images: Images, registry: Registry, root: Path, built: BuiltImage, options: dict[str, int]
) -> None:
    pushed = images.push(built).reference
    with SlowRelay(registry.host, rate=RATE * 2) as relay, pyctrd.Engine(**options) as engine:  # type: ignore[arg-type] # numbers all
        reference = pushed.replace(registry.host, relay.host)
        engine.images.pull(reference)
        assert layer_ranges(relay, built) == [None]
        assert_whole(engine, reference, root)


def test_its_bound_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCTRD_LAYER_CONNECTIONS", "7")
    with pytest.raises(InvalidError, match="PYCTRD_LAYER_CONNECTIONS: '7': expected 1 to 6"):
        pyctrd.Engine()
    with pytest.raises(InvalidError, match="layer_connections: '0': expected 1 to 6"):
        pyctrd.Engine(layer_connections=0)
    pyctrd.Engine(layer_connections=2).close()


def test_all_layers_together_have_no_more_connections_than_they_may(
    images: Images, registry: Registry, root: Path
) -> None:
    layers = [noise(41, LAYER_BYTES), noise(42, LAYER_BYTES // 2), noise(43, LAYER_BYTES // 2)]
    pushed = images.push(image_of(*layers)).reference
    with SlowRelay(registry.host, rate=RATE) as relay, pyctrd.Engine(concurrency=3) as engine:
        reference = pushed.replace(registry.host, relay.host)
        image = engine.images.pull(reference)
        assert relay.connections_most <= 3 + 1  # one has ended, and is still counted, as another begins
        for at, layer in enumerate(layers):
            assert image.read_file(f"/f{at}") == layer
    assert files_below(root / "content/ingest") == []


# registries that do not give ranges rightly


@pytest.fixture
def slow(faulty: FaultyRegistry) -> Iterator[SlowRelay]:
    """A network before the registry that lies."""
    with SlowRelay(faulty.host, rate=RATE) as relay:
        yield relay


LIES: dict[str, Callable[[BuiltImage], Answer]] = {
    "all": lambda built: Answer(200, body=built.layers[0].content),
    "another range": lambda _: Answer(body=None, headers={"Content-Range": "bytes 5-6/7"}),
    "another size": lambda _: Answer(body=None, announced=100, cut=100),
    "no such range": lambda _: Answer(416),
    "another tag": lambda _: Answer(body=None, headers={"ETag": '"b"'}),
    "another encoding": lambda _: Answer(body=None, headers={"Content-Encoding": "gzip"}),
    "too many": lambda _: Answer(429, headers={"Retry-After": "60"}),
    "failure": lambda _: Answer(500),
    "forbidden": lambda _: Answer(403),
    "nothing": lambda _: Answer(body=None, cut=0),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_range_that_is_answered_wrongly_is_left_to_the_first_connection(
    root: Path, faulty: FaultyRegistry, slow: SlowRelay, built: BuiltImage, lie: str
) -> None:
    reference = faulty.add(built, "app").replace(faulty.host, slow.host)
    faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(body=None, headers={"ETag": '"a"'}), *[LIES[lie](built)] * 9)
    with pyctrd.Engine() as engine:
        engine.images.pull(reference)
        asked = layer_ranges(slow, built)
        assert asked[0] is None
        assert len(asked) == 2  # nothing that had come was asked for again
        assert_whole(engine, reference, root)
        if lie == "all":
            again = image_of(noise(44, LAYER_BYTES))
            engine.images.pull(faulty.add(again, "again").replace(faulty.host, slow.host))
            assert layer_ranges(slow, again) == [None]


@pytest.mark.parametrize("lie", ["all", "no such range", "too many"])
def test_where_ranges_are_answered_wrongly_at_last_one_connection_brings_the_rest(
    root: Path, faulty: FaultyRegistry, slow: SlowRelay, built: BuiltImage, lie: str
) -> None:
    reference = faulty.add(built, "app").replace(faulty.host, slow.host)
    faulty.lie(f"/blobs/{built.layers[0].digest}", *[TRUTH] * 4, *[replace(LIES[lie](built), of_parts=True)] * 99)
    with pyctrd.Engine() as engine:
        engine.images.pull(reference)
        asked = layer_ranges(slow, built)
        assert asked[0] is None
        assert any(span is not None and span.endswith("-") for span in asked)
        assert_whole(engine, reference, root)


def test_a_range_that_is_to_be_had_of_another_host_is_left_to_the_first_connection(
    root: Path, faulty: FaultyRegistry, slow: SlowRelay, built: BuiltImage
) -> None:
    reference = faulty.add(built, "app").replace(faulty.host, slow.host)
    with FaultyRegistry() as other:
        other.add(built, "app")
        blob = f"/v2/app/blobs/{built.layers[0].digest}"
        faulty.require_tokens()
        faulty.lie(blob, TRUTH, Answer(307, headers={"Location": f"{other.base}{blob}"}))
        with pyctrd.Engine(plain_http={other.host}) as engine:
            engine.images.pull(reference)
            assert len(layer_ranges(slow, built)) == 2
            assert_whole(engine, reference, root)
        assert len(other.seen) == 1
        assert "authorization" not in other.seen[0].headers


def test_each_range_goes_to_where_the_first_was_redirected_to_without_secrets(
    root: Path, faulty: FaultyRegistry, built: BuiltImage
) -> None:
    with FaultyRegistry() as storage, SlowRelay(storage.host, rate=RATE) as slow:
        reference = faulty.add(built, "app")
        storage.add(built, "app")
        blob = f"/v2/app/blobs/{built.layers[0].digest}"
        faulty.require_tokens()
        faulty.lie(blob, *[Answer(307, headers={"Location": f"http://{slow.host}{blob}?signature=1"})] * 99)
        with pyctrd.Engine(plain_http={slow.host}) as engine:
            engine.images.pull(reference)
            assert_whole(engine, reference, root)
        assert len(storage.seen) > 4
        assert len(faulty.requests("/blobs/" + built.layers[0].digest)) == len(storage.seen)
        assert all("authorization" not in seen.headers for seen in storage.seen)


def test_ranges_of_other_bytes_are_fetched_again_whole(
    root: Path, faulty: FaultyRegistry, slow: SlowRelay, built: BuiltImage
) -> None:
    reference = faulty.add(built, "app").replace(faulty.host, slow.host)
    faulty.lie(f"/blobs/{built.layers[0].digest}", TRUTH, Answer(body=None, garbled=True))
    with pyctrd.Engine() as engine:
        engine.images.pull(reference)
        assert layer_ranges(slow, built).count(None) == 2
        assert_whole(engine, reference, root)


# ends before the end


def test_of_a_pull_that_is_killed_a_prefix_is_kept_and_gone_on_from(
    images: Images, registry: Registry, root: Path, built: BuiltImage
) -> None:
    pushed = images.push(built).reference
    with SlowRelay(registry.host, rate=LASTING_RATE) as relay:
        reference = pushed.replace(registry.host, relay.host)
        with Child(PULL, reference):
            until(partial(has_several, relay))
        content = max((path.read_bytes() for path in kept_of_dead(root)), key=len)
        assert 0 < len(content) < len(built.layers[0].content)
        assert built.layers[0].content.startswith(content)
        relay.asked()
        with pyctrd.Engine() as engine:
            engine.images.pull(reference)
            assert layer_ranges(relay, built)[0] == f"bytes={len(content)}-"
            assert_whole(engine, reference, root)


def test_a_pull_that_is_given_up_ends_all_of_its_connections(
    images: Images, registry: Registry, root: Path, built: BuiltImage
) -> None:
    pushed = images.push(built).reference
    with SlowRelay(registry.host, rate=LASTING_RATE) as relay, pyctrd.Engine() as engine:
        reference = pushed.replace(registry.host, relay.host)

        def give_up(_: pyctrd.PullProgress) -> None:
            if has_several(relay):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.images.pull(reference, progress=give_up)
        (left,) = kept(root)
        assert built.layers[0].content.startswith(left.read_bytes())


def has_several(relay: SlowRelay) -> bool:
    """Whether a layer comes over several connections."""
    return relay.connections_most >= 3
