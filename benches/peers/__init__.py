"""pyctrd beside containerd, podman and skopeo with umoci, on the same images, in turn, on a fresh file system."""
