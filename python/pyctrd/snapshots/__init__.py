"""Root file systems: the snapshotter protocol, overlayfs, native, composefs and erofs."""
