"""Root file systems: the snapshotter protocol, overlayfs, native and composefs."""
