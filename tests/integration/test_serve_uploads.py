"""Uploads to the store as a registry: in parts, over restarts and kills, several at once, and against a quota."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.metadata.database import Database
from pyctrd.registry.server import blobs
from tests.integration.conftest import command
from tests.serving import Answered, ask, begin, put_blob, sha256

CONTENT = os.urandom(300_000)
DIGEST = sha256(CONTENT)


@pytest.fixture(name="server")
def _server(engine: pyctrd.Engine) -> Iterator[pyctrd.RegistryServer]:
    with engine.serve_registry(listen="127.0.0.1:0", anonymous="push") as running:
        yield running


def patch(address: str, path: str, start: int, end: int) -> Answered:
    """The next chunk."""
    headers = {"Content-Range": f"{start}-{end - 1}", "Content-Type": "application/octet-stream"}
    return ask(address, "PATCH", path, CONTENT[start:end], headers)


def finish(address: str, path: str, digest: str = DIGEST, body: bytes | None = None) -> Answered:
    """Its end."""
    return ask(address, "PUT", f"{path}?digest={digest}", body)


def read(address: str, name: str = "app", digest: str = DIGEST) -> bytes:
    """A blob's bytes."""
    return ask(address, "GET", f"/v2/{name}/blobs/{digest}").body


def test_chunks_go_on_where_the_last_one_ended(server: pyctrd.RegistryServer) -> None:
    path = begin(server.address, "app")
    status = ask(server.address, "GET", path)
    assert (status.status, status.headers["range"]) == (204, "0-0")
    assert patch(server.address, path, 0, 100_000).headers["range"] == "0-99999"
    for start in (0, 50_000, 100_001, 200_000):
        refused = patch(server.address, path, start, start + 10)
        assert (refused.status, refused.headers["range"]) == (416, "0-99999")
        assert refused.headers["location"] == path
    assert patch(server.address, path, 100_000, 200_000).status == 202
    done = ask(server.address, "PUT", f"{path}?digest={DIGEST}", CONTENT[200_000:], {"Content-Range": "200000-299999"})
    assert (done.status, done.headers["docker-content-digest"]) == (201, DIGEST)
    assert read(server.address) == CONTENT
    assert ask(server.address, "GET", path).codes == ["BLOB_UPLOAD_UNKNOWN"]


def test_a_stream_without_a_length_is_taken(server: pyctrd.RegistryServer) -> None:
    path = begin(server.address, "app")
    parts = iter([CONTENT[:1000], CONTENT[1000:250_000], CONTENT[250_000:]])
    sent = ask(server.address, "PATCH", path, parts, {"Transfer-Encoding": "chunked"}, chunked=True)
    assert (sent.status, sent.headers["range"]) == (202, "0-299999")
    assert finish(server.address, path).status == 201


def test_a_client_that_waits_is_told_to_go_on(server: pyctrd.RegistryServer) -> None:
    path = begin(server.address, "app")
    host, _, port = server.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.putrequest("PUT", f"{path}?digest={DIGEST}")
    connection.putheader("Content-Length", str(len(CONTENT)))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(CONTENT)
    assert connection.getresponse().status == 201
    connection.close()


def test_other_bytes_than_the_digest_says_are_refused_and_leave_nothing(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer, root: Path
) -> None:
    wrong = sha256(b"something else")
    path = begin(server.address, "app")
    refused = finish(server.address, path, wrong, CONTENT)
    assert (refused.status, refused.codes) == (400, ["DIGEST_INVALID"])
    assert ask(server.address, "GET", path).status == 404
    refused = ask(server.address, "POST", f"/v2/app/blobs/uploads/?digest={wrong}", CONTENT)
    assert (refused.status, refused.codes) == (400, ["DIGEST_INVALID"])
    assert list((root / "content/ingest").iterdir()) == []
    assert engine.content.list() == []
    assert engine.content.usage().reserved_bytes == 0


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_has_the_digest_that_its_client_likes(server: pyctrd.RegistryServer, algorithm: str) -> None:
    digest = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    path = begin(server.address, "app")
    assert finish(server.address, path, digest, CONTENT).status == 201
    assert read(server.address, digest=digest) == CONTENT


def test_an_upload_can_be_given_up(server: pyctrd.RegistryServer, root: Path) -> None:
    path = begin(server.address, "app")
    patch(server.address, path, 0, 1000)
    assert ask(server.address, "DELETE", path).status == 204
    assert ask(server.address, "DELETE", path).codes == ["BLOB_UPLOAD_UNKNOWN"]
    assert list((root / "content/ingest").iterdir()) == []


def test_an_upload_is_of_its_repository(server: pyctrd.RegistryServer) -> None:
    path = begin(server.address, "app")
    assert ask(server.address, "GET", path.replace("/app/", "/other/")).codes == ["BLOB_UPLOAD_UNKNOWN"]


def test_an_upload_goes_on_in_another_server(engine: pyctrd.Engine) -> None:
    with engine.serve_registry(listen="127.0.0.1:0", anonymous="push") as first:
        path = begin(first.address, "app")
        patch(first.address, path, 0, 120_000)
    with pyctrd.Engine() as again, again.serve_registry(listen="127.0.0.1:0", anonymous="push") as second:
        assert ask(second.address, "GET", path).headers["range"] == "0-119999"
        assert patch(second.address, path, 120_000, 300_000).status == 202
        assert finish(second.address, path).status == 201
        assert read(second.address) == CONTENT
        assert again.check(digests=True) == []


class Served:
    """``pyctrd serve registry`` in a process of its own."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            command("--json", "serve", "registry", "--listen", "127.0.0.1:0", "--anonymous", "push", *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address: str = json.loads(self._process.stdout.readline())["address"]

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; its status, and what it told on standard error."""
        self._process.send_signal(number)
        _, told = self._process.communicate(timeout=60)
        return self._process.returncode, told


def test_the_command_ends_in_order_and_logs_no_secrets(state: Path) -> None:
    del state
    served = Served()
    headers = {"Authorization": "Bearer a-secret-token-of-mine"}
    ask(served.address, "GET", "/v2/app/tags/list?secret=a-secret-too", headers=headers)
    status, told = served.end(signal.SIGTERM)
    assert status == 0
    assert "GET /v2/app/tags/list 401" in told or "GET /v2/app/tags/list 40" in told
    assert "secret" not in told
    assert "Traceback" not in told


def test_what_came_before_a_kill_is_gone_on_with(state: Path) -> None:
    del state
    served = Served("-q")
    path = begin(served.address, "app")
    assert patch(served.address, path, 0, 100_000).status == 202
    host, _, port = served.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.putrequest("PATCH", path)
    connection.putheader("Content-Length", "200000")
    connection.endheaders()
    connection.send(CONTENT[100_000:150_000])
    served.end(signal.SIGKILL)
    connection.close()
    served = Served("-q")
    try:
        held = int(ask(served.address, "GET", path).headers["range"].partition("-")[2]) + 1
        assert 100_000 <= held <= 150_000
        assert patch(served.address, path, held, 300_000).status == 202
        assert finish(served.address, path).status == 201
        assert read(served.address) == CONTENT
    finally:
        assert served.end(signal.SIGINT)[0] == 0
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []


def test_what_came_before_a_client_left_is_kept(server: pyctrd.RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "BUSY_SECONDS", 0.2)
    path = begin(server.address, "app")
    host, _, port = server.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.putrequest("PATCH", path)
    connection.putheader("Content-Length", "300000")
    connection.endheaders()
    connection.send(CONTENT[:150_000])
    deadline = time.monotonic() + 30
    while ask(server.address, "GET", path).status == 204:  # until the server has begun with it
        assert time.monotonic() < deadline
    assert ask(server.address, "GET", path).codes == ["BLOB_UPLOAD_INVALID"]
    connection.close()
    while (found := ask(server.address, "GET", path)).status == 409:
        assert time.monotonic() < deadline
    held = int(found.headers["range"].partition("-")[2]) + 1
    assert held <= 150_000
    assert patch(server.address, path, held if held > 1 else 0, 300_000).status == 202
    assert finish(server.address, path).status == 201


def test_the_same_blob_from_several_clients_is_stored_once(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer
) -> None:
    found: list[int] = []

    def send(number: int) -> None:
        path = begin(server.address, f"app-{number}")
        found.append(finish(server.address, path, body=CONTENT).status)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [201] * 8
    assert [(blob.digest, blob.size) for blob in engine.content.list()] == [(DIGEST, len(CONTENT))]
    assert all(read(server.address, f"app-{number}") == CONTENT for number in range(8))
    assert engine.check(digests=True) == []


def test_a_blob_is_mounted_from_another_repository_or_uploaded(server: pyctrd.RegistryServer) -> None:
    put_blob(server.address, "base", CONTENT)
    mount = f"/v2/app/blobs/uploads/?mount={DIGEST}"
    assert ask(server.address, "POST", f"{mount}&from=nowhere").status == 202
    assert ask(server.address, "POST", f"{mount}&from=../x").status == 202
    mounted = ask(server.address, "POST", f"{mount}&from=base")
    assert (mounted.status, mounted.headers["location"]) == (201, f"/v2/app/blobs/{DIGEST}")
    assert ask(server.address, "POST", mount.replace("/app/", "/third/")).status == 201
    absent = mount.replace(DIGEST, sha256(b"absent"))
    assert ask(server.address, "POST", f"{absent}&from=base").status == 202
    assert ask(server.address, "POST", "/v2/app/blobs/uploads/?mount=md5:x").codes == ["DIGEST_INVALID"]


def test_an_upload_counts_in_the_quota_from_its_first_byte(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer
) -> None:
    engine.namespaces.set("default", quota=350_000)
    path = begin(server.address, "app")
    assert patch(server.address, path, 0, 300_000).status == 202
    assert engine.content.usage().reserved_bytes == 300_000
    second = begin(server.address, "app")
    for body, chunked in ((CONTENT, False), (iter([CONTENT]), True)):
        headers = {"Transfer-Encoding": "chunked"} if chunked else {}
        refused = ask(server.address, "PATCH", second, body, headers, chunked=chunked)
        assert (refused.status, refused.codes) == (403, ["DENIED"])
        assert b"quota exceeded" in refused.body
    assert finish(server.address, path).status == 201
    usage = engine.content.usage()
    assert (usage.charged_bytes, usage.reserved_bytes) == (300_000, 0)
    manifest = json.dumps({"schemaVersion": 2, "annotations": {"long": "x" * 100_000}, "manifests": []}).encode()
    typed = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
    refused = ask(server.address, "PUT", "/v2/app/manifests/1", manifest, typed)
    assert (refused.status, refused.codes) == (403, ["DENIED"])


def test_an_upload_to_which_nothing_came_for_a_day_is_over(state: Path, root: Path, database: Database) -> None:
    del state
    with pyctrd.Engine() as engine, engine.serve_registry(listen="127.0.0.1:0", anonymous="push") as server:
        path = begin(server.address, "app")
        patch(server.address, path, 0, 1000)
    for seconds, expected in ((23 * 3600, 1), (25 * 3600, 0)):
        with database.write():
            old = time.time_ns() - seconds * 10**9
            database._run("UPDATE uploads SET updated_ns = ?", (old,))
        with pyctrd.Engine() as engine:
            assert len(engine._rooms.database.uploads.list()) == expected
    assert list((root / "content/ingest").iterdir()) == []


def test_a_namespace_into_which_something_is_sent_is_not_removed(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer
) -> None:
    path = begin(server.address, "app")
    patch(server.address, path, 0, 1000)
    with pyctrd.Engine(namespace="keeper") as keeper, pytest.raises(pyctrd.errors.ConflictError, match="on its way"):
        keeper.namespaces.remove("default", force=True)
    ask(server.address, "DELETE", path)


def test_a_crash_between_name_and_record_leaves_nothing(
    engine: pyctrd.Engine, server: pyctrd.RegistryServer, root: Path
) -> None:
    put_blob(server.address, "app", b"here before")
    published = _core.Upload(str(root), "a" * 32)
    published.write(CONTENT)
    with engine._rooms.database.write() as tx:
        tx.ingests.add("a" * 32, namespace="default", digest=DIGEST, diff_id=None, size=len(CONTENT))
    published.publish(DIGEST, durability="none")
    assert engine._rooms.blobs.exists(DIGEST)
    with pyctrd.Engine() as again:  # whoever comes next
        assert again.check(digests=True) == []
        assert not again._rooms.blobs.exists(DIGEST)
        assert [blob.digest for blob in again.content.list()] == [sha256(b"here before")]
