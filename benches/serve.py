"""The store as a registry beside docker-registry: pulls, blobs, many clients, pushes, processor time and memory.

    python -m benches.serve [--seconds 3] [--megabytes 256] [--durability none]

They run on this machine, one after the other, over loopback; the client is a process of its own. Figures of one machine
with others at work rank, no more: the ratios are what counts. Where nginx is installed (Debian: nginx-light), it sends
the same blob from a file, as the bound of what can be.
"""

from __future__ import annotations

import argparse
import http.client
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyctrd.oci.media_types import ACCEPT
from tests.archives import Tar
from tests.images import BuiltImage, build_image
from tests.registries import Registry
from tests.serving import ask, put_image, put_manifest, sha256

CLIENTS = 100
TICKS = os.sysconf("SC_CLK_TCK")
BUFFER = bytearray(1 << 20)
HEAD_END = b"\r\n\r\n"


@dataclass
class Subject:
    """A registry that is measured."""

    name: str
    address: str
    pid: int

    def cpu_seconds(self) -> float:
        """Of all of its threads and of its children, until now."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        ticks = 0
        for pid in (self.pid, *children):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS

    def peak_mib(self) -> float:
        """Resident memory at the most."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        return 0.0


@contextmanager
def ours(directory: Path, durability: str) -> Iterator[Subject]:
    """``pyctrd serve registry`` in a process of its own."""
    environment = os.environ | {"PYCTRD_DURABILITY": durability}
    words = ["--root", str(directory / "root"), "--state", str(directory / "state"), "serve", "registry", "-q"]
    with subprocess.Popen(
        [sys.executable, "-m", "pyctrd", *words, "--listen", "127.0.0.1:0", "--anonymous", "push"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        yield Subject("pyctrd", process.stdout.readline().split()[-1], process.pid)
        process.terminate()


@contextmanager
def theirs(directory: Path) -> Iterator[Subject]:
    """docker-registry."""
    with Registry(directory) as running:
        yield Subject("docker-registry", running.host, running.pid)


@contextmanager
def nginx(directory: Path, blob: bytes) -> Iterator[Subject]:
    """One worker for each processor, which sends ``/blob`` by sendfile."""
    directory.mkdir(mode=0o755)
    directory.joinpath("blob").write_bytes(blob)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    temporary = " ".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    directory.joinpath("conf").write_text(
        f"daemon off; user root; worker_processes {os.cpu_count()}; pid {directory}/pid; events {{}}\n"
        f"http {{ access_log off; sendfile on; keepalive_requests 1000000; {temporary}\n"
        f"server {{ listen {address} reuseport; root {directory}; }} }}\n"
    )
    command = ["nginx", "-c", str(directory / "conf"), "-e", str(directory / "errors")]
    with subprocess.Popen(command, start_new_session=True) as process:
        until = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))):
            assert time.monotonic() < until, directory.joinpath("errors").read_text()
            time.sleep(0.01)
        yield Subject("nginx", address, process.pid)
        process.terminate()


def get_many(address: str, paths: Sequence[str], clients: int, seconds: float) -> tuple[int, int]:
    """Ask for some paths in turn by so many connections that are kept: how many answers came, and their bytes."""
    host, _, port = address.rpartition(":")
    accept = ", ".join(ACCEPT)
    requests = [f"GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\n\r\n".encode() for path in paths]
    count = size = 0
    with selectors.DefaultSelector() as selector, ExitStack() as opened:
        for _ in range(clients):
            connected = opened.enter_context(socket.create_connection((host, int(port))))
            connected.sendall(requests[0])
            selector.register(connected, selectors.EVENT_READ, [1, b"", -1])
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for key, _ in selector.select(1.0):
                assert isinstance(key.fileobj, socket.socket)
                connected, state = key.fileobj, key.data
                got = connected.recv_into(BUFFER)
                assert got, "the registry closed a connection"
                if state[2] < 0:
                    state[1] += BUFFER[:got]
                    if (end := state[1].find(HEAD_END)) < 0:
                        continue
                    head = state[1][:end].lower()
                    assert head.startswith(b"http/1.1 200"), head
                    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    state[2] = length - (len(state[1]) - end - len(HEAD_END))
                    state[1] = b""
                else:
                    state[2] -= got
                size += got
                if state[2] == 0:
                    count += 1
                    connected.sendall(requests[state[0] % len(requests)])
                    state[0], state[2] = state[0] + 1, -1
    return count, size


def push(address: str, content: bytes) -> None:
    """Send one blob: begin, then all of it."""
    connection = http.client.HTTPConnection(address)
    connection.request("POST", "/v2/pushed/blobs/uploads/")
    answer = connection.getresponse()
    answer.read()
    location = answer.getheader("location") or ""
    path = location.partition(address)[2] or location
    joined = "&" if "?" in path else "?"
    connection.request("PUT", f"{path}{joined}digest={sha256(content)}", content)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == http.client.CREATED, answer.status
    connection.close()


def send_image(subject: Subject, name: str, image: BuiltImage) -> None:
    """Send an image; docker-registry takes no blob in one request."""
    if subject.name == "pyctrd":
        put_image(subject.address, name, image, "1")
        return
    for blob in image.blobs:
        connection = http.client.HTTPConnection(subject.address)
        connection.request("POST", f"/v2/{name}/blobs/uploads/")
        answer = connection.getresponse()
        answer.read()
        path = (answer.getheader("location") or "").partition(subject.address)[2]
        connection.request("PUT", f"{path}&digest={blob.digest}", blob.content)
        assert connection.getresponse().read() == b""
        connection.close()
    assert put_manifest(subject.address, name, "1", image.manifest).status == http.client.CREATED


def measure(subject: Subject, image: BuiltImage, large: BuiltImage, options: argparse.Namespace) -> dict[str, float]:
    """All figures of one registry."""
    found: dict[str, float] = {"idle MiB": subject.peak_mib()}
    send_image(subject, "small", image)
    send_image(subject, "large", large)
    blobs = [f"/v2/small/blobs/{blob.digest}" for blob in image.blobs]
    pull = ["/v2/small/manifests/1", f"/v2/small/manifests/{image.digest}", *blobs]
    for name, paths, clients, share in (
        ("pulls/s, 1 client", pull, 1, len(pull)),
        ("pulls/s, 100 clients", pull, CLIENTS, len(pull)),
        ("manifests/s, 100 clients", pull[:1], CLIENTS, 1),
    ):
        before = subject.cpu_seconds()
        count, _ = get_many(subject.address, paths, clients, options.seconds)
        found[name] = count / share / options.seconds
        found[f"CPU ms/{name.partition(',')[0][:-2]}, {clients}"] = (
            (subject.cpu_seconds() - before) / (count / share) * 1000
        )
    found |= measure_blob(subject, f"/v2/large/blobs/{large.layers[0].digest}", options)
    found |= _measure_push(subject, options)
    found["peak MiB"] = subject.peak_mib()
    return found


def measure_blob(subject: Subject, path: str, options: argparse.Namespace) -> dict[str, float]:
    """One large blob, again and again."""
    found: dict[str, float] = {}
    for clients in (1, 4):
        before = subject.cpu_seconds()
        _, size = get_many(subject.address, [path], clients, options.seconds)
        found[f"blob MB/s, {clients}"] = size / options.seconds / 1e6
        found[f"blob CPU s/GB, {clients}"] = (subject.cpu_seconds() - before) / size * 1e9
    return found


def _measure_push(subject: Subject, options: argparse.Namespace) -> dict[str, float]:
    contents = [os.urandom(options.megabytes * 1_000_000) for _ in range(2)]
    before, began = subject.cpu_seconds(), time.monotonic()
    for content in contents:
        push(subject.address, content)
    size = sum(map(len, contents))
    found = {
        "push MB/s": size / (time.monotonic() - began) / 1e6,
        "push CPU s/GB": (subject.cpu_seconds() - before) / size * 1e9,
    }
    began = time.monotonic()
    for number in range(100):
        push(subject.address, b"%d" % number * 100)
    found["small pushes/s"] = 100 / (time.monotonic() - began)
    assert ask(subject.address, "GET", "/v2/").status == http.client.OK
    return found


def main() -> None:
    """Measure both, and print what each takes and how often the other's that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each figure is taken")
    parser.add_argument("--megabytes", type=int, default=256, help="of the blobs that are sent and asked for")
    parser.add_argument("--durability", default="batch", help="of pyctrd; docker-registry flushes nothing")
    options = parser.parse_args()
    image = build_image([Tar().file(f"f{number}", os.urandom(20_000)).build() for number in range(3)])
    large = build_image([Tar().file("large", os.urandom(options.megabytes * 1_000_000)).build()], compression="none")
    found = []
    with tempfile.TemporaryDirectory(prefix="pyctrd-serve-") as directory:
        with ours(Path(directory) / "ours", options.durability) as subject:
            found.append(measure(subject, image, large, options))
        with theirs(Path(directory) / "theirs") as subject:
            found.append(measure(subject, image, large, options))
        best: dict[str, float] = {}
        if shutil.which("nginx"):
            with nginx(Path(directory) / "nginx", large.layers[0].content) as subject:
                best = measure_blob(subject, "/blob", options)
    print(f"{'':32} {'pyctrd':>12} {'docker-registry':>16} {'ratio':>8} {'nginx':>10}")
    for name, value in found[0].items():
        bound = f"{best[name]:10.2f}" if name in best else ""
        print(f"{name:32} {value:12.2f} {found[1][name]:16.2f} {value / found[1][name]:8.2f} {bound}".rstrip())


if __name__ == "__main__":
    main()
