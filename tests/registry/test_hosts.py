"""Where content is to be had: mirrors, their certificates and credentials, and what happens if they fail."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyctrd.errors import (
    AuthenticationError,
    InvalidError,
    NotFoundError,
    RegistryError,
    UnavailableError,
    UnsupportedError,
)
from pyctrd.oci.digest import Digest
from pyctrd.oci.reference import Reference
from pyctrd.registry import body as bodies
from pyctrd.registry.client import Client
from pyctrd.registry.endpoints import read_endpoints
from pyctrd.registry.hosts import is_within
from tests.images import BuiltImage
from tests.registry.bodies import drain, layer_of
from tests.registry_faults import Answer, FaultyRegistry

# A name that no resolver knows: whoever is reached, it is by the hosts file.
NAME = "registry.invalid:5000"


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """A directory for ``NAME``."""
    directory = tmp_path / "certs.d"
    (directory / NAME).mkdir(parents=True)
    return directory


@pytest.fixture
def mirror() -> Iterator[FaultyRegistry]:
    """Another registry."""
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture(name="made")
def _made() -> Iterator[ExitStack]:
    """Closes clients."""
    with ExitStack() as stack:
        yield stack


def write(hosts: Path, text: str) -> None:
    (hosts / NAME / "hosts.toml").write_text(text)


def open_client(made: ExitStack, hosts: Path, **options: object) -> Client:
    client = Client(hosts=[hosts], **options)  # type: ignore[arg-type] # a test's own
    made.callback(client.close)
    return client


def both(faulty: FaultyRegistry, mirror: FaultyRegistry, extra: str = "") -> str:
    return f'server = "http://{faulty.host}"\n[host."http://{mirror.host}"]\n{extra}\n'


def serve(image: BuiltImage, *registries: FaultyRegistry) -> Reference:
    for registry in registries:
        registry.add(image, "app")
    return Reference.parse(f"{NAME}/app:latest")


def test_a_mirror_is_asked_first_and_told_whose_content_is_wanted(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(hosts, both(faulty, mirror))
    client = open_client(made, hosts)
    reference = serve(image, faulty, mirror)
    assert client.manifest(reference).descriptor.digest == image.digest
    assert drain(client.open_blob(reference, layer_of(image))) == image.layers[0].content
    assert faulty.seen == []
    assert {request.query["ns"] for request in mirror.seen} == {NAME}


@pytest.mark.parametrize("answer", [Answer(404), Answer(503), Answer(403), Answer(body=None, cut=1), Answer(500)])
def test_what_a_mirror_does_not_give_the_server_gives(
    made: ExitStack,
    hosts: Path,
    faulty: FaultyRegistry,
    mirror: FaultyRegistry,
    image: BuiltImage,
    answer: Answer,
) -> None:
    write(hosts, both(faulty, mirror))
    client = open_client(made, hosts)
    reference = serve(image, faulty, mirror)
    mirror.lie("/manifests/latest", answer)
    assert client.manifest(reference).descriptor.digest == image.digest
    assert len(mirror.seen) == 1
    assert len(faulty.seen) == 1


def test_a_mirror_that_failed_is_left_alone_for_a_while(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(hosts, both(faulty, mirror))
    client = open_client(made, hosts)
    reference = serve(image, faulty, mirror)
    mirror.lie("/manifests/latest", Answer(503))
    for _ in range(3):
        client.manifest(reference)
    assert len(mirror.seen) == 1


def test_a_mirror_that_has_nothing_is_asked_again(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(hosts, both(faulty, mirror))
    client = open_client(made, hosts)
    reference = serve(image, faulty)
    for _ in range(2):
        client.manifest(reference)
    assert len(mirror.seen) == 2


def test_a_mirror_that_rests_is_asked_if_all_others_fail(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(hosts, both(faulty, mirror))
    client = open_client(made, hosts)
    reference = serve(image, faulty, mirror)
    mirror.lie("/manifests/latest", Answer(503))
    client.manifest(reference)
    faulty.lie("/manifests/latest", Answer(503))
    assert client.manifest(reference).descriptor.digest == image.digest
    assert len(mirror.seen) == 2


def test_a_mirror_that_breaks_off_a_layer_is_left_for_the_next(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(hosts, both(faulty, mirror))
    client = open_client(made, hosts)
    reference = serve(image, faulty, mirror)
    mirror.lie(image.layers[0].digest, Answer(body=None, cut=10))
    with pytest.raises(UnavailableError, match="connection broke"):
        drain(client.open_blob(reference, layer_of(image)))
    rest = client.open_blob(reference, layer_of(image), offset=10)
    assert drain(rest) == image.layers[0].content[10:]
    assert faulty.seen[-1].headers["range"] == "bytes=10-"


def test_a_server_that_brings_next_to_nothing_is_taken_for_broken(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(bodies, "SLOW_BYTES", 1 << 40)
    reference = Reference.parse(faulty.add(image, "app"))
    with pytest.raises(UnavailableError, match="too slow"):
        drain(client.open_blob(reference, layer_of(image)))


def test_capabilities_say_what_a_mirror_is_asked_for(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(hosts, both(faulty, mirror, 'capabilities = ["pull"]'))
    client = open_client(made, hosts)
    reference = serve(image, faulty, mirror)
    client.manifest(reference)
    assert mirror.seen == []
    client.manifest(reference.with_digest(Digest(image.digest)))
    assert len(mirror.seen) == 1
    write(hosts, f'server = "http://{faulty.host}"\ncapabilities = ["pull", "resolve"]\n')
    with pytest.raises(UnsupportedError, match="push"):
        open_client(made, hosts).uploads(reference).begin(layer_of(image))


def test_a_path_takes_the_place_of_v2_where_that_is_said(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(
        hosts,
        f'server = "http://{faulty.host}"\n[host."http://{mirror.host}/v2/proxy"]\noverride_path = true\n',
    )
    mirror.add(image, "proxy/app")
    serve(image, faulty)
    assert open_client(made, hosts).manifest(Reference.parse(f"{NAME}/app")).descriptor.digest == image.digest
    assert mirror.seen[0].path == "/v2/proxy/app/manifests/latest"
    assert faulty.seen == []


def test_headers_of_a_host_go_there_and_nowhere_else(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(hosts, both(faulty, mirror, f'[host."http://{mirror.host}".header]\nx-key = ["secret", "two"]'))
    client = open_client(made, hosts, plain_http=[faulty.host])
    reference = serve(image, faulty, mirror)
    mirror.lie("/manifests/latest", Answer(307, headers={"Location": f"http://{faulty.host}/v2/app/manifests/latest"}))
    client.manifest(reference)
    assert mirror.seen[0].headers["x-key"] == "secret, two"
    assert "x-key" not in faulty.seen[0].headers


def test_each_host_gets_its_own_credentials(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(hosts, both(faulty, mirror))
    asked: list[str] = []

    def keychain(host: str) -> tuple[str, str] | None:
        asked.append(host)
        return {mirror.host: ("m", "1")}.get(host)

    client = open_client(made, hosts, credentials=keychain)
    mirror.basic = ("m", "1")
    reference = serve(image, faulty, mirror)
    client.manifest(reference)
    assert asked == [mirror.host]
    mirror.basic = ("other", "2")
    faulty.basic = ("s", "3")
    with pytest.raises(AuthenticationError):
        client.manifest(reference)
    assert all("authorization" not in request.headers for request in faulty.seen)


def test_a_mirror_proves_nothing(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry, image: BuiltImage
) -> None:
    write(hosts, f'[host."http://{mirror.host}"]\n')
    client = open_client(made, hosts)
    reference = serve(image, mirror)
    assert not client.has_blob(reference, layer_of(image))  # the registry itself cannot be reached
    write(hosts, f'server = "http://{mirror.host}"\n')
    assert not open_client(made, hosts).has_blob(reference, layer_of(image))
    assert mirror.seen == []


def test_another_place_on_the_registrys_own_server_proves_nothing(
    made: ExitStack, tmp_path: Path, faulty: FaultyRegistry, image: BuiltImage
) -> None:
    (tmp_path / faulty.host).mkdir()
    file = tmp_path / faulty.host / "hosts.toml"
    faulty.add(image, "mine/app")
    reference = Reference.parse(f"{faulty.host}/app")
    file.write_text(f'server = "http://{faulty.host}/v2/mine"\noverride_path = true\n')
    client = open_client(made, tmp_path)
    assert client.manifest(reference).descriptor.digest == image.digest
    assert not client.has_blob(reference, layer_of(image))
    file.write_text(f'server = "http://{faulty.host}"\n')
    faulty.add(image, "app")
    assert open_client(made, tmp_path).has_blob(reference, layer_of(image))


def test_a_host_has_an_authority_and_a_certificate_of_its_own(
    made: ExitStack, hosts: Path, image: BuiltImage, certificates: tuple[Path, tuple[Path, Path]]
) -> None:
    ca, (certificate, key) = certificates
    with FaultyRegistry(tls=(certificate, key)) as registry:
        context = registry._server.context
        assert context is not None
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca)
        reference = serve(image, registry)
        server = f'server = "https://{registry.host}"\n'
        write(hosts, f'{server}ca = "{ca}"\nclient = [["{certificate}", "{key}"]]\n')
        assert open_client(made, hosts).manifest(reference).descriptor.digest == image.digest
        write(hosts, f'{server}ca = "{ca}"\n')
        with pytest.raises(RegistryError):
            open_client(made, hosts).manifest(reference)
        write(hosts, f'{server}client = [["{certificate}", "{key}"]]\n')
        with pytest.raises(RegistryError, match="TLS failed"):
            open_client(made, hosts).manifest(reference)


def test_certificates_may_lie_as_docker_has_them(
    made: ExitStack, tmp_path: Path, image: BuiltImage, certificates: tuple[Path, tuple[Path, Path]]
) -> None:
    ca, server = certificates
    with FaultyRegistry(tls=server) as registry:
        directory = tmp_path / "docker" / registry.host
        directory.mkdir(parents=True)
        (directory / "ca.crt").write_bytes(ca.read_bytes())
        registry.add(image, "app")
        client = open_client(made, tmp_path / "docker")
        assert client.manifest(Reference.parse(f"{registry.host}/app")).descriptor.digest == image.digest


def test_a_certificate_is_passed_over_where_that_is_said(
    made: ExitStack, hosts: Path, image: BuiltImage, certificates: tuple[Path, tuple[Path, Path]]
) -> None:
    with FaultyRegistry(tls=certificates[1]) as registry:
        reference = serve(image, registry)
        write(hosts, f'server = "https://{registry.host}"\nskip_verify = true\n')
        assert open_client(made, hosts).manifest(reference).descriptor.digest == image.digest


@pytest.mark.parametrize("named", ["127.0.0.1", "127.0.0.0/8"])
def test_an_insecure_registry_is_talked_to_as_it_speaks(
    made: ExitStack,
    hosts: Path,
    image: BuiltImage,
    certificates: tuple[Path, tuple[Path, Path]],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyctrd.registry.access.is_loopback", lambda registry: False)
    for tls in (None, certificates[1]):
        with FaultyRegistry(tls=tls) as registry:
            reference = Reference.parse(registry.add(image, "app"))
            client = open_client(made, hosts, insecure=[named])
            assert client.manifest(reference).descriptor.digest == image.digest
            with pytest.raises(RegistryError):
                open_client(made, hosts, insecure=["10.0.0.0/8"]).manifest(reference)


def test_a_network_that_is_none_is_told() -> None:
    with pytest.raises(InvalidError, match="insecure"):
        is_within("10.0.0.1", ["10.0.0.0/99"])
    assert not is_within("example.com", ["10.0.0.0/8"])
    assert is_within("[fd00::1]:5000", ["fd00::/8"])


def test_directories_are_looked_through_in_their_order(tmp_path: Path) -> None:
    for number, name in enumerate(["example.com_5000_", "_default"]):
        (tmp_path / str(number) / name).mkdir(parents=True)
        (tmp_path / str(number) / name / "hosts.toml").write_text(f'[host."https://mirror{number}"]\n')
    found = read_endpoints([tmp_path / "0", tmp_path / "1"], "example.com:5000", "https")
    assert [endpoint.base for endpoint in found] == ["https://mirror0/v2", "https://example.com:5000/v2"]
    found = read_endpoints([tmp_path / "0", tmp_path / "1"], "docker.io", "https")
    assert [endpoint.base for endpoint in found] == ["https://mirror1/v2", "https://registry-1.docker.io/v2"]
    assert [endpoint.is_mirror for endpoint in found] == [True, False]
    assert read_endpoints([tmp_path / "2"], "docker.io", "https") == ()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("server = 1", "server"),
        ("nonsense", "hosts.toml"),
        ('host = "x"', "host"),
        ('[host."ftp://m"]', "ftp://m"),
        ('[host."https://u:p@m"]', "u:p@m"),
        ('[host."https://m:99999"]', "99999"),
        ('[host."https://m"]\ncapabilities = ["fly"]', "capabilities"),
        ('[host."https://m"]\ncapabilities = "pull"', "capabilities"),
        ('[host."https://m"]\nskip_verify = "yes"', "skip_verify"),
        ('[host."https://m"]\nca = 1', "ca"),
        ('[host."https://m"]\nclient = [["a", "b", "c"]]', "client"),
        ('[host."https://m"]\ndial_timeout = "soon"', "dial_timeout"),
        ('[host."https://m"]\nskipverify = true', "skipverify"),
        ('[host."https://m".header]\nx = 1', "header"),
    ],
)
def test_a_wrong_hosts_file_is_one_clear_error(made: ExitStack, hosts: Path, text: str, field: str) -> None:
    write(hosts, text)
    with pytest.raises(InvalidError, match="invalid hosts file") as caught:
        open_client(made, hosts).manifest(Reference.parse(f"{NAME}/app"))
    assert field in str(caught.value)


def test_nobody_has_it_is_not_found(
    made: ExitStack, hosts: Path, faulty: FaultyRegistry, mirror: FaultyRegistry
) -> None:
    write(hosts, both(faulty, mirror))
    with pytest.raises(NotFoundError):
        open_client(made, hosts).manifest(Reference.parse(f"{NAME}/none"))
    assert (len(faulty.seen), len(mirror.seen)) == (1, 1)
