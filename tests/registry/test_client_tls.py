"""The client's trust: authorities, hosts that are not there, and who is talked to without TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyctrd.errors import InvalidError, RegistryError, UnavailableError, UnreachableError
from pyctrd.oci.reference import Reference
from pyctrd.registry.client import Client
from tests.images import BuiltImage
from tests.registry.bodies import drain, layer_of
from tests.registry_faults import FaultyRegistry


def test_own_authority_is_trusted_where_it_is_given(
    certificates: tuple[Path, tuple[Path, Path]], image: BuiltImage
) -> None:
    ca, server = certificates
    with FaultyRegistry(tls=server) as registry:
        client = Client(ca=ca)
        reference = Reference.parse(registry.add(image, "app"))
        assert client.manifest(reference).descriptor.digest == image.digest
        assert drain(client.open_blob(reference, layer_of(image))) == image.layers[0].content
        client.close()


def test_unknown_authority_is_refused_even_on_loopback(
    certificates: tuple[Path, tuple[Path, Path]], client: Client, image: BuiltImage
) -> None:
    with FaultyRegistry(tls=certificates[1]) as registry:
        reference = Reference.parse(registry.add(image, "app"))
        with pytest.raises(RegistryError, match="TLS failed") as caught:
            client.manifest(reference)
        assert "--ca" in caught.value.hint
        assert not registry.seen


def test_authority_that_is_no_certificate_is_invalid(tmp_path: Path, certificates: tuple[Path, object]) -> None:
    wrong = tmp_path / "ca.pem"
    wrong.write_text("nothing")
    with FaultyRegistry(tls=certificates[1]) as registry:  # type: ignore[arg-type] # the fixture's second half
        client = Client(ca=wrong)
        with pytest.raises(InvalidError, match="invalid certificates"):
            client.manifest(Reference.parse(f"{registry.host}/app"))
        client.close()


def test_missing_authority_file_is_named(tmp_path: Path) -> None:
    client = Client(ca=tmp_path / "absent.pem")
    with pytest.raises(FileNotFoundError) as caught:
        client.manifest(Reference.parse("registry.invalid/app"))
    assert caught.value.filename == str(tmp_path / "absent.pem")
    client.close()


def test_nobody_listening_is_unreachable(client: Client, faulty: FaultyRegistry) -> None:
    faulty.close()
    with pytest.raises(UnreachableError, match=f"no connection: {faulty.host}: connection refused"):
        client.manifest(Reference.parse(f"{faulty.host}/app"))


def test_unknown_host_is_unreachable(client: Client) -> None:
    with pytest.raises(UnavailableError, match=r"registry\.invalid"):
        client.manifest(Reference.parse("registry.invalid/app"))


def test_host_off_loopback_is_never_talked_to_without_tls(
    faulty: FaultyRegistry, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyctrd.registry.access.is_loopback", lambda registry: False)
    with pytest.raises(RegistryError):
        client.manifest(Reference.parse(f"{faulty.host}/app"))
    assert not faulty.seen


def test_host_that_was_declared_plain_is_talked_to_without_tls(
    faulty: FaultyRegistry, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyctrd.registry.access.is_loopback", lambda registry: False)
    client = Client(plain_http=[faulty.host])
    assert client.manifest(Reference.parse(faulty.add(image, "app"))).descriptor.digest == image.digest
    client.close()
