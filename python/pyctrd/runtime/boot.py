"""Which boot of the machine this is."""

from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """As the kernel made it up: 36 characters."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
