"""Root file systems: the snapshotter protocol, overlayfs and native."""
