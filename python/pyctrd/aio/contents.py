"""``engine.content``: blobs by digest, as one namespace sees them."""

from __future__ import annotations

from pyctrd import contents
from pyctrd.aio.face import Face, calls, gives


class Content(Face[contents.Content]):
    """As ``pyctrd.Content``."""

    info = calls(contents.Content.info)
    open = gives(contents.Content.open, lambda file, _: file, discard=lambda file: file.close())
    rebuild = calls(contents.Content.rebuild)
    list = calls(contents.Content.list)
    usage = calls(contents.Content.usage)
    check = calls(contents.Content.check)
