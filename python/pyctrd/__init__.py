"""pyctrd: OCI images pulled, verified, stored, unpacked and run, as a library with no daemon.

    import pyctrd

    with pyctrd.Engine() as engine:
        image = engine.images.pull("docker.io/library/alpine:3.20")
        container = engine.containers.run(image, ["echo", "hello"], network="none")
        print(container.wait().exit_code, container.logs())
        container.delete()

Names are loaded when they are first used, so that ``import pyctrd`` costs next to nothing.
"""

from __future__ import annotations

from pyctrd import errors as errors
from pyctrd.errors import PyctrdError as PyctrdError

TYPE_CHECKING = False  # what `typing` has too, which a command loads only if it needs it
if TYPE_CHECKING:
    from typing import Any

    from pyctrd import aio as aio
    from pyctrd._core import Diffed as Diffed
    from pyctrd._core import Ingested as Ingested
    from pyctrd.container import Container as Container
    from pyctrd.container_options import ContainerOptions as ContainerOptions
    from pyctrd.containers import Containers as Containers
    from pyctrd.content.limits import Limits as Limits
    from pyctrd.contents import Content as Content
    from pyctrd.engine import Engine as Engine
    from pyctrd.engine import diff as diff
    from pyctrd.engine import enter_user_namespace as enter_user_namespace
    from pyctrd.engine import unpack as unpack
    from pyctrd.engine import verify as verify
    from pyctrd.flows.check import Finding as Finding
    from pyctrd.flows.events import Event as Event
    from pyctrd.flows.files import FileChange as FileChange
    from pyctrd.flows.files import FileEntry as FileEntry
    from pyctrd.flows.policies import RestoredContainers as RestoredContainers
    from pyctrd.flows.progress import LayerProgress as LayerProgress
    from pyctrd.flows.progress import ProgressCallback as ProgressCallback
    from pyctrd.flows.progress import PullManyProgress as PullManyProgress
    from pyctrd.flows.progress import PullProgress as PullProgress
    from pyctrd.flows.serve import RegistryServer as RegistryServer
    from pyctrd.flows.space import ContainerSpace as ContainerSpace
    from pyctrd.flows.space import ImageSpace as ImageSpace
    from pyctrd.flows.space import NamespaceSpace as NamespaceSpace
    from pyctrd.flows.space import Space as Space
    from pyctrd.flows.space import StoreSpace as StoreSpace
    from pyctrd.flows.space import VolumeSpace as VolumeSpace
    from pyctrd.flows.survey import Collected as Collected
    from pyctrd.flows.survey import Collection as Collection
    from pyctrd.image import Image as Image
    from pyctrd.images import Images as Images
    from pyctrd.leases import Lease as Lease
    from pyctrd.leases import Leases as Leases
    from pyctrd.metadata.content import ContentRecord as ContentRecord
    from pyctrd.metadata.leases import LeaseResource as LeaseResource
    from pyctrd.metadata.namespaces import Namespace as Namespace
    from pyctrd.metadata.snapshots import ContainerSnapshot as ContainerSnapshot
    from pyctrd.metadata.usage import ContentUsage as ContentUsage
    from pyctrd.metadata.usage import NamespaceUsage as NamespaceUsage
    from pyctrd.namespaces import Namespaces as Namespaces
    from pyctrd.oci.changes import ConfigChanges as ConfigChanges
    from pyctrd.oci.config import ImageConfig as ImageConfig
    from pyctrd.oci.descriptor import Descriptor as Descriptor
    from pyctrd.oci.manifest import Manifest as Manifest
    from pyctrd.oci.reference import Reference as Reference
    from pyctrd.policies import Candidate as Candidate
    from pyctrd.policies import Policy as Policy
    from pyctrd.process import ExecOutput as ExecOutput
    from pyctrd.process import Process as Process
    from pyctrd.pulls import PullMany as PullMany
    from pyctrd.pulls import PullResult as PullResult
    from pyctrd.registries import Registries as Registries
    from pyctrd.registries import Repository as Repository
    from pyctrd.runtime.health import Health as Health
    from pyctrd.runtime.health import HealthResult as HealthResult
    from pyctrd.runtime.idmaps import IdRange as IdRange
    from pyctrd.runtime.logs import LogLine as LogLine
    from pyctrd.runtime.processes import ProcessInfo as ProcessInfo
    from pyctrd.runtime.state import ContainerStatus as ContainerStatus
    from pyctrd.runtime.state import ExitStatus as ExitStatus
    from pyctrd.runtime.stats import ContainerStats as ContainerStats
    from pyctrd.runtime.stats import CpuStats as CpuStats
    from pyctrd.runtime.stats import InterfaceStats as InterfaceStats
    from pyctrd.runtime.stats import IoStats as IoStats
    from pyctrd.runtime.stats import MemoryStats as MemoryStats
    from pyctrd.snapshots.protocol import Change as Change
    from pyctrd.transfers import Transfer as Transfer
    from pyctrd.volumes import Volume as Volume
    from pyctrd.volumes import Volumes as Volumes

__version__ = "0.1.0"

_LAZY = {
    "Candidate": "pyctrd.policies",
    "Change": "pyctrd.snapshots.protocol",
    "Collected": "pyctrd.flows.survey",
    "Collection": "pyctrd.flows.survey",
    "ConfigChanges": "pyctrd.oci.changes",
    "Container": "pyctrd.container",
    "ContainerOptions": "pyctrd.container_options",
    "ContainerSnapshot": "pyctrd.metadata.snapshots",
    "ContainerSpace": "pyctrd.flows.space",
    "ContainerStats": "pyctrd.runtime.stats",
    "ContainerStatus": "pyctrd.runtime.state",
    "Containers": "pyctrd.containers",
    "Content": "pyctrd.contents",
    "ContentRecord": "pyctrd.metadata.content",
    "ContentUsage": "pyctrd.metadata.usage",
    "CpuStats": "pyctrd.runtime.stats",
    "Descriptor": "pyctrd.oci.descriptor",
    "Diffed": "pyctrd._core",
    "Engine": "pyctrd.engine",
    "Event": "pyctrd.flows.events",
    "ExecOutput": "pyctrd.process",
    "ExitStatus": "pyctrd.runtime.state",
    "FileChange": "pyctrd.flows.files",
    "FileEntry": "pyctrd.flows.files",
    "Finding": "pyctrd.flows.check",
    "Health": "pyctrd.runtime.health",
    "HealthResult": "pyctrd.runtime.health",
    "IdRange": "pyctrd.runtime.idmaps",
    "Image": "pyctrd.image",
    "ImageConfig": "pyctrd.oci.config",
    "ImageSpace": "pyctrd.flows.space",
    "Images": "pyctrd.images",
    "Ingested": "pyctrd._core",
    "InterfaceStats": "pyctrd.runtime.stats",
    "IoStats": "pyctrd.runtime.stats",
    "LayerProgress": "pyctrd.flows.progress",
    "Lease": "pyctrd.leases",
    "LeaseResource": "pyctrd.metadata.leases",
    "Leases": "pyctrd.leases",
    "Limits": "pyctrd.content.limits",
    "LogLine": "pyctrd.runtime.logs",
    "Manifest": "pyctrd.oci.manifest",
    "MemoryStats": "pyctrd.runtime.stats",
    "Namespace": "pyctrd.metadata.namespaces",
    "NamespaceSpace": "pyctrd.flows.space",
    "NamespaceUsage": "pyctrd.metadata.usage",
    "Namespaces": "pyctrd.namespaces",
    "Policy": "pyctrd.policies",
    "Process": "pyctrd.process",
    "ProcessInfo": "pyctrd.runtime.processes",
    "ProgressCallback": "pyctrd.flows.progress",
    "PullMany": "pyctrd.pulls",
    "PullManyProgress": "pyctrd.flows.progress",
    "PullProgress": "pyctrd.flows.progress",
    "PullResult": "pyctrd.pulls",
    "Reference": "pyctrd.oci.reference",
    "Registries": "pyctrd.registries",
    "Repository": "pyctrd.registries",
    "RegistryServer": "pyctrd.flows.serve",
    "RestoredContainers": "pyctrd.flows.policies",
    "Space": "pyctrd.flows.space",
    "StoreSpace": "pyctrd.flows.space",
    "Transfer": "pyctrd.transfers",
    "Volume": "pyctrd.volumes",
    "VolumeSpace": "pyctrd.flows.space",
    "Volumes": "pyctrd.volumes",
    "diff": "pyctrd.engine",
    "enter_user_namespace": "pyctrd.engine",
    "unpack": "pyctrd.engine",
    "verify": "pyctrd.engine",
}

__all__ = ["PyctrdError", "__version__", "errors", *_LAZY]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    module = "pyctrd.aio" if name == "aio" else _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'pyctrd' has no attribute {name!r}")
    from importlib import import_module

    loaded = import_module(module)
    value = loaded if name == "aio" else getattr(loaded, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted({*globals(), *__all__})
