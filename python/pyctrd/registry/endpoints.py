"""Where a registry's content is to be had: containerd's ``hosts.toml``, and the certificates of Docker's directories.

Loaded where there is such a directory.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyctrd.errors import InvalidError
from pyctrd.registry.hosts import ALL_CAPABILITIES, Endpoint, Trust, api_host

HOSTS_FILE = "hosts.toml"
DEFAULT_DIRECTORY = "_default"
FILE_MAX_BYTES = 1024 * 1024

# What containerd has besides, and what is not ours to decide: they change nothing here.
_IGNORED = frozenset({"server", "host", "plain-http", "rewrite"})
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


def read_endpoints(directories: Sequence[Path], registry: str, scheme: str) -> tuple[Endpoint, ...]:
    """Where a registry's content is to be had, in the order in which it is asked; none where nothing is said of it.

    Args:
        directories: Each with a directory for a registry: ``host:port``, ``host_port_`` or ``_default``.
        registry: Its name.
        scheme: How its own server is talked to, where the file does not say.

    Raises:
        InvalidError: A file is wrong; the message names it and the field.
        OSError: A file cannot be read.

    Spec:
        containerd's docs/hosts.md; Docker's "Verify repository client with certificates".
    """
    for directory in directories:
        for name in _names(registry):
            if (file := directory / name / HOSTS_FILE).is_file():
                return tuple(_Reader(file, registry, scheme).endpoints())
            if name != DEFAULT_DIRECTORY and (trust := _certificates(directory / name)) is not None:
                host = api_host(registry)
                return (Endpoint(f"{scheme}://{host}/v2", registry, ALL_CAPABILITIES, trust=trust),)
    return ()


def _names(registry: str) -> tuple[str, ...]:
    host, colon, port = registry.rpartition(":")
    if colon and port.isdigit():
        return (registry, f"{host}_{port}_", DEFAULT_DIRECTORY)
    return (registry, DEFAULT_DIRECTORY)


def _certificates(directory: Path) -> Trust | None:
    """Docker's form: ``*.crt`` are authorities, ``*.cert`` with ``*.key`` are who we are."""
    try:
        names = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    authorities = tuple(path for path in names if path.suffix == ".crt")
    client = tuple((path, path.with_suffix(".key")) for path in names if path.suffix == ".cert")
    return Trust(authorities, client, verify=True) if authorities or client else None


class _Reader:
    """Reads one file."""

    def __init__(self, file: Path, registry: str, scheme: str) -> None:
        self._file = file
        self._registry = registry
        self._scheme = scheme

    def endpoints(self) -> Iterator[Endpoint]:
        """The mirrors in their order, then the server itself."""
        document = self._load()
        hosts = document.get("host", {})
        if not isinstance(hosts, dict):
            raise self._wrong("host", hosts, "a table for each mirror")
        for url, table in hosts.items():
            if not isinstance(table, dict):
                raise self._wrong(f"host.{url!r}", table, "a table")
            yield self._endpoint(url, table, f"host.{url!r}", is_mirror=True)
        own = f"{self._scheme}://{api_host(self._registry)}"
        server = document.get("server", own)
        if not isinstance(server, str):
            raise self._wrong("server", server, "a URL")
        endpoint = self._endpoint(server or own, document, "server", is_mirror=True)
        # Another server than the registry's own, or another place on it, proves nothing of what that has.
        is_own = endpoint.base == f"{own}/v2"
        yield endpoint._replace(host=self._registry, is_mirror=False) if is_own else endpoint

    def _load(self) -> dict[str, Any]:
        with self._file.open("rb") as file:
            content = file.read(FILE_MAX_BYTES + 1)
        if len(content) > FILE_MAX_BYTES:
            raise self._wrong("size", len(content), f"at most {FILE_MAX_BYTES} bytes")
        try:
            return tomllib.loads(content.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidError(f"invalid hosts file: {self._file}: {error}", field=str(self._file)) from error

    def _endpoint(self, url: str, table: Mapping[str, Any], field: str, *, is_mirror: bool) -> Endpoint:
        known = {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", *_IGNORED}
        if unknown := sorted(set(table) - known):
            raise self._wrong(f"{field}.{unknown[0]}", table[unknown[0]], "a field of containerd's hosts.toml")
        if "://" not in url:
            url = f"https://{url}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise self._wrong(field, url, "a URL") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or port == 0:
            raise self._wrong(field, url, "http:// or https:// and a host, with no user")
        path = parts.path.rstrip("/")
        if not self._switch(table, "override_path", field):
            path = path if path.endswith("/v2") else f"{path}/v2"
        return Endpoint(
            f"{parts.scheme}://{parts.netloc}{path}",
            parts.netloc,
            self._capabilities(table, field),
            trust=Trust(
                tuple(self._paths(table, "ca", field)),
                tuple(self._client(table, field)),
                verify=not self._switch(table, "skip_verify", field),
            ),
            headers=tuple(self._headers(table, field)),
            dial_seconds=self._seconds(table, field),
            is_mirror=is_mirror,
        )

    def _capabilities(self, table: Mapping[str, Any], field: str) -> frozenset[str]:
        words = table.get("capabilities", sorted(ALL_CAPABILITIES))
        if not isinstance(words, list) or not ALL_CAPABILITIES.issuperset(words):
            raise self._wrong(f"{field}.capabilities", words, "a list of pull, resolve, push")
        return frozenset(words)

    def _switch(self, table: Mapping[str, Any], name: str, field: str) -> bool:
        value = table.get(name, False)
        if not isinstance(value, bool):
            raise self._wrong(f"{field}.{name}", value, "true or false")
        return value

    def _path(self, value: object, field: str) -> Path:
        if not isinstance(value, str) or not value:
            raise self._wrong(field, value, "a path")
        return self._file.parent / value

    def _paths(self, table: Mapping[str, Any], name: str, field: str) -> Iterator[Path]:
        value = table.get(name, [])
        for one in value if isinstance(value, list) else [value]:
            yield self._path(one, f"{field}.{name}")

    def _client(self, table: Mapping[str, Any], field: str) -> Iterator[tuple[Path, Path | None]]:
        value = table.get("client", [])
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, list):
                if len(one) not in (1, 2):
                    raise self._wrong(f"{field}.client", one, "a certificate and its key")
                pair = [self._path(part, f"{field}.client") for part in one if part != ""]
                yield pair[0], pair[1] if len(pair) > 1 else None
            else:
                yield self._path(one, f"{field}.client"), None

    def _headers(self, table: Mapping[str, Any], field: str) -> Iterator[tuple[str, str]]:
        value = table.get("header", {})
        if not isinstance(value, dict):
            raise self._wrong(f"{field}.header", value, "a table")
        for name, said in value.items():
            words = said if isinstance(said, list) else [said]
            if not all(isinstance(word, str) for word in words):
                raise self._wrong(f"{field}.header.{name}", said, "text, or a list of texts")
            yield name, ", ".join(words)

    def _seconds(self, table: Mapping[str, Any], field: str) -> float | None:
        value = table.get("dial_timeout")
        if value is None:
            return None
        found = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if found is None or not float(found[1]):
            raise self._wrong(f"{field}.dial_timeout", value, "a time: 5s, 500ms")
        return float(found[1]) * _UNITS[found[2]]

    def _wrong(self, field: str, value: object, expected: str) -> InvalidError:
        return InvalidError(
            f"invalid hosts file: {self._file}: {field}: {str(value)[:80]!r}: expected {expected}",
            field=field,
            value=value,
        )
