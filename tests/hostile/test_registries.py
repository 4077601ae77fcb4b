"""Part G: what registries answer, and what a client makes of it. Which test has which case stands in ``CASES``."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import pyctrd
from pyctrd.errors import (
    AuthenticationError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    RegistryError,
    UnavailableError,
)
from pyctrd.oci.reference import Reference
from pyctrd.registry.client import Client
from pyctrd.registry.pool import Fault, Pool, Route
from pyctrd.registry.transport import ATTEMPTS_MAX
from tests import listeners
from tests.archives import Tar
from tests.content.stores import files_below
from tests.hostile.documents import root
from tests.images import build_image
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root

TESTS = Path(__file__).parents[1]
LATEST = "/manifests/latest"
HERE = "hostile/test_registries.py"
CLIENT, TLS, HOSTS = (f"registry/test_{name}.py" for name in ("client", "client_tls", "hosts"))
CONNECTION, UPLOAD, CHALLENGE = (f"registry/test_{name}.py" for name in ("connection", "upload", "challenge"))
RESUME = "integration/test_resume.py"
CASES = {
    "G01": (HERE, "test_g01_credentials_of_one_registry_go_to_its_own_token_server"),
    "G02": (CLIENT, "test_token_endpoint_without_tls_gets_no_credentials"),
    "G03": (CLIENT, "test_token_endpoint_on_this_machine_is_for_local_registries_only"),
    "G04": (CLIENT, "test_realm_that_leads_nowhere_is_refused"),
    "G05": (CLIENT, "test_redirect_to_another_host_loses_the_authorization"),
    "G06": (CLIENT, "test_redirect_to_plain_http_is_refused"),
    "G07": (CLIENT, "test_redirects_in_a_circle_end"),
    "G08": (CLIENT, "test_token_that_never_works_ends"),
    "G09": (HERE, "test_g09_a_challenge_without_end_is_read_in_bounds"),
    "G10": (HERE, "test_g10_what_a_token_server_sends_is_read_in_bounds"),
    "G11": (CLIENT, "test_body_that_ends_early_is_unavailable"),
    "G12": (HERE, "test_g12_a_layer_that_is_announced_shorter_than_it_is_comes_to_nothing"),
    "G13": (HERE, "test_g13_a_layer_without_a_length_comes_whole"),
    "G14": (HERE, "test_g14_a_layer_without_end_is_cut_off"),
    "G15": (HOSTS, "test_a_server_that_brings_next_to_nothing_is_taken_for_broken"),
    "G16": (CONNECTION, "test_what_is_no_head_is_refused"),
    "G17": (RESUME, "test_a_connection_that_breaks_at_any_byte_is_gone_on_from_there"),
    "G18": (RESUME, "test_a_server_that_ignores_ranges_sends_all_and_the_rest_is_taken"),
    "G19": (CLIENT, "test_another_range_than_was_asked_for_starts_over"),
    "G20": (RESUME, "test_a_server_without_that_range_is_asked_for_all"),
    "G21": (RESUME, "test_where_the_registry_lies_as_well_it_is_told_and_nothing_is_kept"),
    "G22": (CLIENT, "test_retry_after_is_honoured"),
    "G23": (CLIENT, "test_passing_fault_is_retried"),
    "G24": (HERE, "test_g24_a_registry_that_fails_for_ever_is_told_with_how_often_it_was_asked"),
    "G25": (HERE, "test_g25_a_layer_that_is_not_there_is_named_and_nothing_shows"),
    "G26": (HOSTS, "test_what_a_mirror_does_not_give_the_server_gives"),
    "G27": (HOSTS, "test_each_host_gets_its_own_credentials"),
    "G28": (CLIENT, "test_manifest_that_denies_its_announced_digest_is_refused"),
    "G29": (HERE, "test_g29_a_tag_that_moves_meanwhile_is_asked_for_once"),
    "G30": (HERE, "test_g30_a_certificate_that_is_not_good_is_refused"),
    "G31": (CLIENT, "test_encoded_blob_is_refused"),
    "G32": (UPLOAD, "test_a_location_elsewhere_gets_no_credentials"),
    "G33": (UPLOAD, "test_a_registry_that_says_it_stored_something_else_is_not_believed"),
    "G34": (UPLOAD, "test_a_mount_that_is_refused_becomes_an_upload"),
    "G35": (HERE, "test_g35_what_is_no_reference_is_refused_before_anybody_is_asked"),
    "G36": ("registry/test_transport.py", "test_no_proxy_is_looked_at_for_each_host"),
}
IMAGE = build_image([Tar().file("file", b"x" * 50_000).build()])
LAYER = IMAGE.layers[0]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyctrd.registry.transport.pause", lambda _: None)


def refused(engine: pyctrd.Engine, reference: str, kind: type[Exception], match: str) -> None:
    """A pull that fails so and leaves nothing; how soon, the deadline of every case looks at."""
    with pytest.raises(kind, match=match):
        engine.images.pull(reference)
    assert engine.images.list() == []
    assert engine.check(digests=True) == []
    assert engine.gc().items == () or engine.content.list() == []


def test_every_case_of_part_g_is_here() -> None:
    assert list(CASES) == [f"G{number:02}" for number in range(1, 37)]
    for path, name in CASES.values():
        assert re.search(rf"^def {name}\(", (TESTS / path).read_text(), re.MULTILINE), (path, name)


def test_g01_credentials_of_one_registry_go_to_its_own_token_server(engine: pyctrd.Engine) -> None:
    with FaultyRegistry() as one, FaultyRegistry() as other:
        one.require_tokens()
        reference = one.add(IMAGE, "app")
        challenge = f'Bearer realm="{other.base}/token",service="x",scope="repository:app:pull"'
        one.lie(LATEST, Answer(401, headers={"WWW-Authenticate": challenge}))
        client = Client(credentials={other.host: ("eve", "of another")})
        with pytest.raises(RegistryError):
            client.manifest(Reference.parse(reference))
        client.close()
        # Whoever the token server is: what is known of its host is for pulls from there.
        sent = {seen.headers.get("authorization", "").partition(" ")[0] for seen in (*one.seen, *other.seen)}
        assert sent == {"", "Bearer"}
    assert engine.images.list() == []


@pytest.mark.parametrize(
    "challenge",
    ['Bearer realm="' + "x" * 60_000, 'Bearer realm="a' + '\\"' * 20_000, "Basic, " * 5_000, 'Bearer a="b", ' * 3_000],
)
def test_g09_a_challenge_without_end_is_read_in_bounds(
    engine: pyctrd.Engine, registry: FaultyRegistry, challenge: str
) -> None:
    reference = registry.add(IMAGE, "app")
    registry.lie(LATEST, *[Answer(401, headers={"WWW-Authenticate": challenge})] * 9)
    refused(engine, reference, RegistryError, r"(?s).*")
    assert len(registry.requests(LATEST)) <= 2 * ATTEMPTS_MAX


@pytest.mark.parametrize("fields", [{"expires_in": -1}, {"expires_in": 10**12}, {"expires_in": "soon"}])
def test_g10_what_a_token_server_says_of_its_tokens_end_is_not_believed(
    engine: pyctrd.Engine, registry: FaultyRegistry, fields: dict[str, object]
) -> None:
    registry.require_tokens()
    registry.token_fields = dict(fields)
    assert engine.images.pull(registry.add(IMAGE, "app")).digest == IMAGE.digest
    registry.require_tokens()  # those that were given are good no more
    other = build_image([Tar().file("other", b"y").build()])
    assert engine.images.pull(registry.add(other, "other")).digest == other.digest


def test_g10_what_a_token_server_sends_is_read_in_bounds(engine: pyctrd.Engine, registry: FaultyRegistry) -> None:
    registry.require_tokens()
    reference = registry.add(IMAGE, "app")
    registry.lie("/token", *[Answer(body=b'{"token":"' + b"x" * (8 << 20) + b'"}')] * ATTEMPTS_MAX)
    refused(engine, reference, InvalidError, "too large: token")


def test_g12_a_layer_that_is_announced_shorter_than_it_is_comes_to_nothing(
    engine: pyctrd.Engine, registry: FaultyRegistry
) -> None:
    reference = registry.add(IMAGE, "app")
    registry.lie(f"/blobs/{LAYER.digest}", *[Answer(body=None, announced=len(LAYER.content) // 2)] * 20)
    refused(engine, reference, (IntegrityError, UnavailableError), r"(?s).*")  # type: ignore[arg-type] # pytest takes both


def test_g13_a_layer_without_a_length_comes_whole(engine: pyctrd.Engine, registry: FaultyRegistry) -> None:
    reference = registry.add(IMAGE, "app")
    registry.lie(f"/blobs/{LAYER.digest}", Answer(body=None, chunked=True))
    assert engine.images.pull(reference).read_file("/file") == b"x" * 50_000


def test_g14_a_layer_without_end_is_cut_off(engine: pyctrd.Engine, registry: FaultyRegistry) -> None:
    reference = registry.add(IMAGE, "app")
    registry.lie(f"/blobs/{LAYER.digest}", *[Answer(body=LAYER.content + b"\0" * (64 << 20), chunked=True)] * 9)
    refused(engine, reference, IntegrityError, "size|too large|longer")
    assert files_below(root() / "content/ingest") == []


def test_g24_a_registry_that_fails_for_ever_is_told_with_how_often_it_was_asked(
    engine: pyctrd.Engine, registry: FaultyRegistry
) -> None:
    reference = registry.add(IMAGE, "app")
    registry.lie(LATEST, *[Answer(500)] * 99)
    refused(engine, reference, UnavailableError, rf"status 500 \(asked {ATTEMPTS_MAX} times\)")


def test_g25_a_layer_that_is_not_there_is_named_and_nothing_shows(
    engine: pyctrd.Engine, registry: FaultyRegistry
) -> None:
    reference = registry.add(IMAGE, "app")
    registry.lie(f"/blobs/{LAYER.digest}", *[Answer(404)] * 20)
    refused(engine, reference, NotFoundError, LAYER.digest)


def test_g29_a_tag_that_moves_meanwhile_is_asked_for_once(engine: pyctrd.Engine, registry: FaultyRegistry) -> None:
    first, second = (build_image([Tar().file("which", word).build()]) for word in (b"first", b"second"))
    reference = registry.add(first, "app")
    registry.lie(LATEST, Answer(body=first.manifest.content, headers={"Content-Type": first.manifest.media_type}))
    registry.add(second, "app")
    image = engine.images.pull(reference)
    assert (image.digest, image.read_file("/which")) == (first.digest, b"first")
    assert len(registry.requests(LATEST)) == 1


def make_certificate(directory: Path, *, days: int, address: str) -> tuple[Path, tuple[Path, Path]]:
    """One that signed itself, an authority, good for so many days from ten days ago on: ``(ca, (it, its key))``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(days=10)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = directory / "cert.pem", directory / "key.pem"
    pem.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    kind = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    return pem, (pem, secret)


@pytest.mark.parametrize(
    ("days", "address", "given", "why"),
    [
        (5, "127.0.0.1", True, "expired"),
        (30, "192.0.2.1", True, "address|IP"),
        (30, "127.0.0.1", False, "self.signed"),
    ],
)
def test_g30_a_certificate_that_is_not_good_is_refused(
    tmp_path: Path, state: Path, days: int, address: str, why: str, *, given: bool
) -> None:
    del state
    ca, server = make_certificate(tmp_path, days=days, address=address)
    with FaultyRegistry(tls=server) as registry, pyctrd.Engine(ca=ca if given else None) as engine:
        reference = registry.add(IMAGE, "app")
        refused(engine, reference, RegistryError, rf"TLS failed: .*(?i:{why})")
        assert registry.seen == []  # and not by plain HTTP either


BAD_REFERENCES = [
    "127.0.0.1:5000/../x",
    "127.0.0.1:5000/a//b",
    "127.0.0.1:5000/Upper",
    "127.0.0.1:99999/a",
    "a@sha256:12",
]


@pytest.mark.parametrize("reference", [*BAD_REFERENCES, "127.0.0.1:5000/" + "a" * 300])
def test_g35_what_is_no_reference_is_refused_before_anybody_is_asked(engine: pyctrd.Engine, reference: str) -> None:
    refused(engine, reference, InvalidError, "invalid (reference|digest)")


@pytest.mark.parametrize("link", ["<" * 60_000, "<a>;" * 15_000, "<a>" + " " * 60_000, "<a>;" + "rel=" * 14_000])
def test_a_link_without_end_is_read_in_bounds(engine: pyctrd.Engine, registry: FaultyRegistry, link: str) -> None:
    registry.lie("/app/tags/list", Answer(body=b'{"name":"app","tags":["1"]}', headers={"Link": link}))
    assert list(engine.registry.repository(f"{registry.host}/app").tags()) == ["1"]


def test_a_token_that_ends_in_the_middle_of_a_pull_is_replaced(state: Path, registry: FaultyRegistry) -> None:
    del state
    registry.require_tokens()
    reference = registry.add(IMAGE, "app")

    def let_it_end(_: pyctrd.Candidate) -> None:
        registry.require_tokens()  # which forgets those that were given

    with pyctrd.Engine(policy=let_it_end) as engine:
        assert engine.images.pull(reference).digest == IMAGE.digest
    assert len(registry.requests("/token")) == 2


def _no_tls() -> Pool:
    return Pool(lambda _: pytest.fail("nobody here speaks TLS"))


def test_a_registry_that_takes_no_connection_is_left_in_time() -> None:
    with listeners.full() as port, contextlib.closing(_no_tls()) as pool:
        route = Route("http", "127.0.0.1", port, dial_seconds=0.2)
        with pytest.raises(Fault, match=r"no connection: .*: none in 0\.2 seconds"):
            pool.request(route, "GET", "/v2/", {}, repeatable=True)


def test_a_registry_that_wants_a_login_is_told_so(engine: pyctrd.Engine, registry: FaultyRegistry) -> None:
    registry.basic = ("ada", "secret")
    refused(engine, registry.add(IMAGE, "app"), AuthenticationError, "credentials needed")
