"""Root file systems: the snapshotter protocol, overlayfs, native, composefs and erofs."""

# How the directories begin in which something is tried or made: who has one works on it.
TRIAL = "trial-"
# Likewise those of what was frozen: several snapshots may lie on one.
FROZEN = "frozen-"
