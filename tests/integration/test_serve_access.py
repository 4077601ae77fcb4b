"""Access to the store as a registry, as clients meet it: challenges, tokens, TLS, health and metrics."""

from __future__ import annotations

import base64
import json
import logging
import re
import shutil
import ssl
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

import pyctrd
from pyctrd.errors import AuthenticationError, DeniedError, InvalidError
from tests.archives import Tar
from tests.images import BuiltImage, build_image
from tests.registry_faults import make_certificates
from tests.registry_users import write_users
from tests.serving import ask, put_image, sha256

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


def basic(user: str) -> dict[str, str]:
    """The header of a user of the file."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:secret of {user}".encode()).decode()}


@pytest.fixture(name="users")
def _users(tmp_path: Path) -> Path:
    return write_users(tmp_path / "htpasswd")


@pytest.fixture(name="built")
def _built() -> BuiltImage:
    return build_image([Tar().file("hello", b"world").build()])


def token_for(address: str, challenge: str, headers: dict[str, str] | None = None) -> dict[str, str]:
    """Follow a challenge, as a client does."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    assert fields["realm"] == f"http://{address}/token"
    scope = f"&scope={quote(fields['scope'])}" if "scope" in fields else ""
    found = ask(address, "GET", f"/token?service={fields['service']}{scope}", headers=headers)
    assert found.status == 200, found.body
    return {"Authorization": f"Bearer {found.document['token']}"}


def test_without_users_anybody_pulls_and_nobody_pushes(engine: pyctrd.Engine, built: BuiltImage) -> None:
    with engine.serve_registry(listen="127.0.0.1:0", anonymous="push") as server:
        put_image(server.address, "app", built, "1")
    with engine.serve_registry(listen="127.0.0.1:0") as server:
        assert ask(server.address, "GET", "/v2/").status == 200
        assert ask(server.address, "GET", "/v2/app/manifests/1").status == 200
        for method, path in (
            ("POST", "/v2/app/blobs/uploads/"),
            ("PUT", "/v2/app/manifests/2"),
            ("DELETE", "/v2/app/manifests/1"),
        ):
            refused = ask(server.address, method, path, b"{}")
            assert (refused.status, refused.codes) == (403, ["DENIED"])
    with engine.serve_registry(listen="127.0.0.1:0", anonymous="none") as server:
        assert ask(server.address, "GET", "/v2/").status == 403
        assert ask(server.address, "GET", "/v2/app/manifests/1").status == 403


def test_a_client_gets_a_token_for_what_it_may(engine: pyctrd.Engine, users: Path, built: BuiltImage) -> None:
    with engine.serve_registry(listen="127.0.0.1:0", htpasswd=users, readers=["bob"]) as server:
        asked = ask(server.address, "GET", "/v2/")
        assert (asked.status, asked.codes) == (401, ["UNAUTHORIZED"])
        anybody = token_for(server.address, asked.headers["www-authenticate"])
        assert ask(server.address, "GET", "/v2/", headers=anybody).status == 200
        asked = ask(server.address, "POST", "/v2/app/blobs/uploads/", headers=anybody)
        assert asked.status == 401
        challenge = asked.headers["www-authenticate"]
        assert 'scope="repository:app:pull,push"' in challenge
        alice = token_for(server.address, challenge, basic("alice"))
        put_image(server.address, "app", built, "1", headers=alice)
        assert ask(server.address, "POST", "/v2/other/blobs/uploads/", headers=alice).status == 401  # of app alone
        bob = token_for(server.address, challenge, basic("bob"))
        assert ask(server.address, "POST", "/v2/app/blobs/uploads/", headers=bob).status == 403
        assert ask(server.address, "GET", "/v2/app/manifests/1", headers=bob).status == 200
        # A mount reads another repository, which the token says nothing of.
        layer = built.layers[0].digest
        mount = f"/v2/app/blobs/uploads/?mount={layer}&from=secret"
        assert ask(server.address, "POST", mount, headers=alice).status == 401
        wrong = {"Authorization": "Basic " + base64.b64encode(b"alice:wrong").decode()}
        assert ask(server.address, "GET", "/token", headers=wrong).headers["www-authenticate"].startswith("Basic ")
        assert ask(server.address, "GET", "/v2/app/manifests/1", headers=wrong).status == 401


def test_passwords_and_given_tokens_do_without_the_endpoint(
    engine: pyctrd.Engine, users: Path, built: BuiltImage
) -> None:
    given = {"a-token-that-was-given-out": "robot"}
    with engine.serve_registry(
        listen="127.0.0.1:0", htpasswd=users, anonymous="none", challenge="basic", tokens=given
    ) as server:
        asked = ask(server.address, "GET", "/v2/app/manifests/1")
        assert asked.headers["www-authenticate"] == 'Basic realm="registry", charset="UTF-8"'
        assert ask(server.address, "GET", "/token").status == 401
        put_image(server.address, "app", built, "1", headers=basic("alice"))
        robot = {"Authorization": "Bearer a-token-that-was-given-out"}
        assert ask(server.address, "GET", "/v2/app/manifests/1", headers=robot).status == 200


def test_pyctrd_pulls_with_a_password(
    engine: pyctrd.Engine, users: Path, built: BuiltImage, tmp_path: Path, state: Path
) -> None:
    with engine.serve_registry(listen="127.0.0.1:0", htpasswd=users, anonymous="none") as server:
        put_image(server.address, "app", built, "1", headers=basic("alice"))
        root, run = tmp_path / "other", state / "other"
        known = {server.address: ("alice", "secret of alice")}
        with pyctrd.Engine(root=root, state=run, credentials=known) as other:
            assert other.images.pull(f"{server.address}/app:1").digest == built.digest
        with pyctrd.Engine(root=root, state=run) as other, pytest.raises((AuthenticationError, DeniedError)):
            other.images.pull(f"{server.address}/app:1")


@needs_skopeo
def test_skopeo_signs_in_and_pushes(engine: pyctrd.Engine, users: Path, built: BuiltImage, tmp_path: Path) -> None:
    with engine.serve_registry(listen="127.0.0.1:0", htpasswd=users) as server:
        put_image(server.address, "app", built, "1", headers=basic("alice"))
        words = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"]
        copy = [f"docker://{server.address}/app:1", f"docker://{server.address}/copy/of/app:1"]
        refused = subprocess.run([*words, *copy], capture_output=True, check=False)
        assert refused.returncode != 0
        auth = ["--dest-creds", "alice:secret of alice"]
        done = subprocess.run([*words, *auth, *copy], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ask(server.address, "GET", "/v2/copy/of/app/manifests/1", headers=basic("alice")).status == 200
    del tmp_path


def test_it_speaks_tls(engine: pyctrd.Engine, built: BuiltImage, tmp_path: Path, state: Path) -> None:
    authority, (certificate, key) = make_certificates(tmp_path)
    with engine.serve_registry(listen="127.0.0.1:0", anonymous="push", tls_cert=certificate, tls_key=key) as server:
        context = ssl.create_default_context(cafile=authority)
        for content in (b"short", b"long" * 500_000):
            path = f"/v2/app/blobs/uploads/?digest={sha256(content)}"
            sent = ask(server.address, "POST", path, content, tls=context)
            assert sent.status == 201
            assert ask(server.address, "GET", sent.headers["location"], tls=context).body == content
        with pytest.raises(OSError):  # noqa: PT011 - of many kinds: it is no plain HTTP
            ask(server.address, "GET", "/v2/")
        with (
            pyctrd.Engine(root=tmp_path / "other", state=state / "other", ca=authority) as other,
            pytest.raises(pyctrd.errors.NotFoundError),
        ):
            other.images.pull(f"{server.address}/nothing:1")
    with pytest.raises(InvalidError, match="certificate"):
        engine.serve_registry(listen="127.0.0.1:0", tls_cert=key, tls_key=certificate)
    with pytest.raises(InvalidError, match="a certificate with its key"):
        engine.serve_registry(listen="127.0.0.1:0", tls_cert=certificate)


def test_health_and_metrics_are_anybodys_and_tell_no_names(
    engine: pyctrd.Engine, users: Path, built: BuiltImage
) -> None:
    with engine.serve_registry(listen="127.0.0.1:0", htpasswd=users, anonymous="none") as server:
        put_image(server.address, "private/name", built, "1", headers=basic("alice"))
        assert ask(server.address, "GET", "/healthz").document == {"status": "ok"}
        text = ask(server.address, "GET", "/metrics").body.decode()
        assert 'pyctrd_registry_requests_total{kind="manifests",method="PUT",status="201"} 1' in text
        assert "private" not in text
        assert "alice" not in text


def test_requests_are_logged_without_secrets(
    engine: pyctrd.Engine, users: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pyctrd")
    with engine.serve_registry(listen="127.0.0.1:0", htpasswd=users) as server:
        ask(server.address, "GET", "/v2/app/tags/list?token=hidden", headers=basic("alice"))
        ask(server.address, "GET", "/v2/%1b[31m/tags/list")
    lines = [record.getMessage() for record in caplog.records if record.name == "pyctrd.registry.access"]
    assert [re.sub(r"[\d.]+ s$", "s", line) for line in lines] == [
        "127.0.0.1 GET /v2/app/tags/list 404 s",
        "127.0.0.1 GET /v2/%1b[31m/tags/list 400 s",
    ]
    assert "hidden" not in caplog.text
    assert "secret of" not in caplog.text


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"listen": "nowhere"}, "listen"),
        ({"anonymous": "all"}, "anonymous"),
        ({"challenge": "digest"}, "challenge"),
        ({"upstreams": ["https://docker.io"]}, "reference"),
        ({"upstreams": ["localhost"]}, "upstreams"),
        ({"public_url": "registry.example"}, "public_url"),
        ({"namespaces": {"alice": "../x"}}, "namespace"),
        ({"tokens": {"short": "alice"}}, "tokens"),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_listens(
    engine: pyctrd.Engine, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        engine.serve_registry(**{"listen": "127.0.0.1:0", **options})  # type: ignore[arg-type] # wrong on purpose
    assert caught.value.field == field


def test_an_engine_that_is_closed_serves_no_more(engine: pyctrd.Engine) -> None:
    with pyctrd.Engine() as second:
        server = second.serve_registry(listen="127.0.0.1:0")
        assert ask(server.address, "GET", "/v2/").status == 200
    assert server.wait(timeout=10)
    with pytest.raises(ConnectionRefusedError):
        ask(server.address, "GET", "/v2/")
    server.close()
    del engine


def test_errors_of_a_registry_are_json(engine: pyctrd.Engine) -> None:
    with engine.serve_registry(listen="127.0.0.1:0") as server:
        for path in ("/v2/a/manifests/1", "/v2/A/manifests/1", "/nothing", "/v2/a/tags/list"):
            found = ask(server.address, "GET", path)
            assert found.headers["content-type"] == "application/json"
            (error,) = json.loads(found.body)["errors"]
            assert set(error) == {"code", "message", "detail"}
