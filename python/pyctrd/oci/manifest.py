"""Manifests: the config and the layers of one platform's image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Self

from pyctrd.errors import InvalidError
from pyctrd.oci.config import ImageConfig
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.document import Fields, invalid
from pyctrd.oci.media_types import CONFIGS, MANIFESTS, OCI_MANIFEST, is_layer
from pyctrd.oci.value import dataclass

# overlayfs takes 500 lower directories; nothing makes an image of more than 127 layers.
LAYERS_MAX = 1000
# 1 TiB: a hundred times what registries take for one blob. Of what claims more, nothing is fetched.
BLOB_MAX_BYTES = 1 << 40


@dataclass(frozen=True, slots=True)
class Manifest:
    """An OCI image manifest or a Docker schema 2 manifest.

    Attributes:
        media_type: Which of the two.
        config: The image config's descriptor.
        layers: The layers' descriptors, lowest first.
        annotations: Free text by key.
        raw: The whole document.

    Spec:
        image-spec v1.1 manifest.md.
    """

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode and check.

        Raises:
            InvalidError: A field is wrong, or the document could be read as an index too.
        """
        fields = Fields.parse(body, kind="manifest")
        media_type = fields.text("mediaType", OCI_MANIFEST)
        if media_type not in MANIFESTS:
            raise invalid("mediaType", media_type, "an image manifest's")
        for name in ("manifests", "fsLayers", "signatures"):
            if name in fields.values:
                raise invalid(name, fields.values[name], "a document of one type only: this is a manifest")
        if fields.integer("schemaVersion") != 2:
            raise invalid("schemaVersion", fields.values["schemaVersion"], "2")
        config = Descriptor.read(fields.object("config"))
        layers = tuple(Descriptor.read(item) for item in fields.objects("layers", most=LAYERS_MAX))
        for name, blob in (("config", config), *((f"layers[{n}]", layer) for n, layer in enumerate(layers))):
            if blob.size > BLOB_MAX_BYTES:
                raise invalid(f"{name}.size", blob.size, f"at most {BLOB_MAX_BYTES} bytes")
        return cls(
            media_type=media_type,
            config=config,
            layers=layers,
            annotations=fields.table("annotations"),
            raw=fields.values,
        )

    def check_layers(self) -> None:
        """Raise unless every layer is a tar: the kernel's own file systems are no place for strangers' bytes.

        Raises:
            InvalidError: One is something else.
        """
        for position, layer in enumerate(self.layers):
            if not is_layer(layer.media_type):
                raise InvalidError(
                    f"unknown media type: layers[{position}]: {layer.media_type} is no layer",
                    field=f"layers[{position}].mediaType",
                    value=layer.media_type,
                )

    @property
    def is_image(self) -> bool:
        """Whether it is an image's: the config says so. Else it is some other artifact, kept in a registry."""
        return self.config.media_type in CONFIGS

    @property
    def is_unpackable(self) -> bool:
        """Whether it is an image's and has layers only that are tars, as attestations have not."""
        return self.is_image and all(is_layer(layer.media_type) for layer in self.layers)

    def check_is_image(self, subject: str) -> None:
        """Raise unless the config is an image's: an artifact cannot be unpacked or run.

        Raises:
            InvalidError: It is some other artifact.
        """
        if not self.is_image:
            raise InvalidError(
                f"unknown media type: {subject}: config.mediaType: {self.config.media_type} is no image's: "
                "this is another kind of artifact",
                field="config.mediaType",
                value=self.config.media_type,
            )

    def check_config(self, config: ImageConfig) -> None:
        """Raise unless the config names a diff_id for each layer.

        Raises:
            InvalidError: The numbers differ.
        """
        if len(config.rootfs.diff_ids) != len(self.layers):
            raise invalid(
                "rootfs.diff_ids",
                len(config.rootfs.diff_ids),
                f"{len(self.layers)} entries, one for each layer",
            )
