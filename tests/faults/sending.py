"""An image that is sent to the store as a registry, by what its server calls: in a process that is stopped half-way."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable

import pyctrd

NAME = "localhost/sent:1"


def send(engine: pyctrd.Engine, layout: str, say: Callable[[str], None]) -> None:
    """Send the image of an OCI layout: each blob in two requests, then its manifest. It stands for itself."""
    import json
    from pathlib import Path

    from pyctrd.flows.repositories import put_manifest
    from pyctrd.flows.uploads import UploadSessions

    def read(described: dict[str, str]) -> bytes:
        return (Path(layout) / "blobs" / described["digest"].replace(":", "/")).read_bytes()

    rooms = engine._rooms
    uploads = UploadSessions(rooms)
    try:
        top = json.loads((Path(layout) / "index.json").read_bytes())["manifests"][0]
        body = read(top)
        manifest = json.loads(body)
        for blob in (manifest["config"], *manifest["layers"]):
            content, upload_id = read(blob), uploads.begin("localhost/sent", "sha256")
            for start, end in ((0, 100), (100, len(content))):
                session = uploads.open("localhost/sent", upload_id)
                try:
                    session.write(content[start:end])
                    if end == len(content):
                        session.commit(blob["digest"])
                finally:
                    session.release()
            say(blob["digest"])
        put_manifest(rooms, "localhost/sent", "1", top["mediaType"], body)
        say("sent")
    finally:
        uploads.close()


def code() -> str:
    """The same as the beginning of a work's code."""
    return textwrap.indent(f"from collections.abc import Callable\n{inspect.getsource(send)}", "    ")


def end_uploads(engine: pyctrd.Engine) -> None:
    """What is left of uploads that were stopped stays for a day: until then."""
    from pyctrd.flows.uploads import UploadSessions

    uploads = UploadSessions(engine._rooms)
    for record in engine._rooms.database.uploads.list():
        uploads.open(record.repository, record.id).cancel()


def judge_sent(engine: pyctrd.Engine, layout: str, said: list[str]) -> pyctrd.Image:
    """What was told is there; then all of it is sent, and is an image."""
    for digest in said:
        if digest.startswith("sha256:"):
            assert engine.content.info(digest).digest == digest
    image = engine.images.find(NAME)
    assert image is not None or "sent" not in said, "it was sent and is gone"
    end_uploads(engine)
    if image is None:
        send(engine, layout, lambda _: None)
    return engine.images.get(NAME)
