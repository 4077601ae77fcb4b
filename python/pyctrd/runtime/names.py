"""A container's own /etc/hosts and /etc/resolv.conf, where the user says what stands there.

Spec:
    hosts(5), resolv.conf(5); docker-run(1), ``--add-host``, ``--dns``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from pyctrd.errors import InvalidError, UnsupportedError

FILE_MODE = 0o644
FILE_MAX_BYTES = 1 << 20
_LOOPBACK = (
    "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
)
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?")


def hosts_text(entries: Sequence[str], *, hostname: str, base: str = "") -> str:
    """What /etc/hosts says.

    Args:
        entries: ``NAME:ADDRESS`` or ``NAME=ADDRESS``; an IPv6 address may stand in brackets.
        hostname: The container's own name.
        base: The host's, in whose network it is; "" begins with the loopback names.

    Raises:
        InvalidError: An entry has no good name or address.
        UnsupportedError: "host-gateway": there is no bridge.
    """
    lines = []
    for entry in entries:
        found = re.fullmatch(r"([^:=]+)[:=](.+)", entry)
        name, address = found.groups() if found else ("", "")
        if address == "host-gateway":
            raise UnsupportedError(
                f"unsupported: add_hosts: {entry}", feature="host-gateway", needs="a bridge", hint="give its address"
            )
        lines.append(f"{_address('add_hosts', address.strip('[]'), entry)}\t{_name('add_hosts', name, entry)}\n")
    start = base if base.endswith("\n") or not base else base + "\n"
    own = f"127.0.1.1\t{hostname}\n" if hostname and not base else ""
    return (start or _LOOPBACK + own) + "".join(lines)


def resolv_text(*, servers: Sequence[str], search: Sequence[str], options: Sequence[str], base: str = "") -> str:
    """What /etc/resolv.conf says: of each kind of line the user's, else the base's.

    Args:
        servers: Addresses.
        search: Domains; "." for none.
        options: As resolv.conf(5): "ndots:2".
        base: The host's file.

    Raises:
        InvalidError: An address, a domain or an option is none.
    """
    kept = [line.split() for line in base.splitlines() if line.strip() and line.lstrip()[0] not in "#;"]
    lines = [["nameserver", _address("dns", server, server)] for server in servers]
    lines = lines or [words for words in kept if words[0] == "nameserver"]
    if search:
        domains = [] if list(search) == ["."] else [_name("dns_search", domain, domain) for domain in search]
        lines += [["search", *domains]] if domains else []
    else:
        lines += [words for words in kept if words[0] in ("search", "domain")]
    for option in options:
        if not re.fullmatch(r"[a-z0-9-]+(:\d+)?", option):
            raise InvalidError(
                f"dns_options: {option}: expected a name, or name:number", field="dns_options", value=option
            )
    if options:
        lines.append(["options", *options])
    else:
        lines += [words for words in kept if words[0] == "options"]
    return "".join(" ".join(words) + "\n" for words in lines)


def read_base(path: str) -> str:
    """The host's file; "" where there is none."""
    try:
        with Path(path).open("rb") as file:
            return file.read(FILE_MAX_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def write_file(path: Path, text: str) -> None:
    """Write a container's file into its bundle; anyone in the container may read it."""
    path.write_text(text)
    path.chmod(FILE_MODE)


def _address(field: str, text: str, entry: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError as error:
        raise InvalidError(f"{field}: {entry}: expected an IP address", field=field, value=entry) from error


def _name(field: str, text: str, entry: str) -> str:
    if not _NAME.fullmatch(text):
        raise InvalidError(f"{field}: {entry}: expected a host's name", field=field, value=entry)
    return text
