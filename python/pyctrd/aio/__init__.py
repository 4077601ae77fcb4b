"""The engine, awaitable: the same names as ``pyctrd`` has, over its threads.

    from pyctrd import aio

    async with aio.Engine() as engine:
        image = await engine.images.pull("docker.io/library/alpine:3.20")
        container = await engine.containers.run(image, ["echo", "hello"])
        print((await container.wait()).exit_code, await container.logs())
        await container.delete()

Methods are awaited, iterators are asynchronous, and so are context managers. Values, options and errors are those of
``pyctrd``.
"""

from __future__ import annotations

from pyctrd.aio.containers import Container as Container
from pyctrd.aio.containers import Containers as Containers
from pyctrd.aio.contents import Content as Content
from pyctrd.aio.engine import Engine as Engine
from pyctrd.aio.engine import RegistryServer as RegistryServer
from pyctrd.aio.engine import diff as diff
from pyctrd.aio.engine import unpack as unpack
from pyctrd.aio.engine import verify as verify
from pyctrd.aio.images import Image as Image
from pyctrd.aio.images import Images as Images
from pyctrd.aio.images import PullMany as PullMany
from pyctrd.aio.images import PullResult as PullResult
from pyctrd.aio.leases import Lease as Lease
from pyctrd.aio.leases import Leases as Leases
from pyctrd.aio.namespaces import Namespaces as Namespaces
from pyctrd.aio.processes import Process as Process
from pyctrd.aio.registries import Registries as Registries
from pyctrd.aio.registries import Repository as Repository
from pyctrd.aio.streams import Stream as Stream
from pyctrd.aio.streams import Transfer as Transfer
from pyctrd.aio.volumes import Volume as Volume
from pyctrd.aio.volumes import Volumes as Volumes

__all__ = [
    "Container",
    "Containers",
    "Content",
    "Engine",
    "Image",
    "Images",
    "Lease",
    "Leases",
    "Namespaces",
    "Process",
    "PullMany",
    "PullResult",
    "Registries",
    "RegistryServer",
    "Repository",
    "Stream",
    "Transfer",
    "Volume",
    "Volumes",
    "diff",
    "unpack",
    "verify",
]
