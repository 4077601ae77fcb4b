"""Copies of blobs, each held against its digest before anybody may count on it."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable

from pyctrd.errors import DigestMismatchError, SizeMismatchError, naming
from pyctrd.oci.descriptor import Descriptor

# Read, hashed and written at once: more would be out of the processor's caches when it is read again.
COPY_BYTES = 1 << 20
# What the kernel is asked to copy at once: Ctrl-C is heard in between.
KERNEL_BYTES = 32 << 20
# Why the kernel does not copy between two files; then they are read and written.
_NO_COPY = frozenset({errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM})
_DAMAGED = "look for what else is: pyctrd check --digests; mend it: pyctrd check --repair"

Told = Callable[[int], None]


def copy_out(source: int, descriptor: Descriptor, write: Callable[[memoryview], None], told: Told) -> None:
    """Write a blob's bytes somewhere from which they cannot be taken back.

    Args:
        source: A descriptor of its file; read from the first byte on, wherever it stands.
        descriptor: What it must be.
        write: Takes the bytes as they come, no more than the size; what it was given may be wrong if this raises.
        told: Called with the number of bytes each time.

    Raises:
        IntegrityError: The bytes are others, which is known after the last.
        OSError: The disk.
    """
    _check_size(source, descriptor)
    hasher = hashlib.new(descriptor.digest.algorithm)
    block = bytearray(min(COPY_BYTES, descriptor.size))
    offset = 0
    with memoryview(block) as view:
        while offset < descriptor.size:
            with naming(descriptor.digest):
                count = os.preadv(source, [view[: descriptor.size - offset]], offset)
            if not count:
                break
            hasher.update(view[:count])
            write(view[:count])
            offset += count
            told(count)
    _check_digest(hasher.hexdigest(), descriptor)


def copy_file(source: int, target: int, descriptor: Descriptor, told: Told, *, called: str) -> None:
    """Copy a blob into a new file, by the kernel where it can, and prove what came there.

    Args:
        source: A descriptor of its file.
        target: Of an empty one, open for both.
        descriptor: What it must be.
        told: Called with the number of bytes each time.
        called: What the new file is in, for errors.

    Raises:
        IntegrityError: The bytes are others.
        OSError: The disk.
    """
    _check_size(source, descriptor)
    offset = 0
    while offset < descriptor.size:
        with naming(called):
            count = _copy_some(source, target, offset, descriptor)
        if not count:
            break
        offset += count
        told(count)
    prove(target, descriptor)


def _copy_some(source: int, target: int, offset: int, descriptor: Descriptor) -> int:
    try:
        return os.copy_file_range(source, target, min(KERNEL_BYTES, descriptor.size - offset), offset, offset)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    with naming(descriptor.digest):
        content = os.pread(source, COPY_BYTES, offset)
    return os.pwrite(target, content, offset)


def prove(file: int, descriptor: Descriptor) -> None:
    """Hash a file.

    Raises:
        IntegrityError: It is not what it must be.
        OSError: It cannot be read.
    """
    _check_size(file, descriptor)
    hasher = hashlib.new(descriptor.digest.algorithm)
    block = bytearray(COPY_BYTES)
    offset = 0
    with memoryview(block) as view:
        while count := os.preadv(file, [view], offset):
            hasher.update(view[:count])
            offset += count
    _check_digest(hasher.hexdigest(), descriptor)


def _check_size(file: int, descriptor: Descriptor) -> None:
    if (size := os.fstat(file).st_size) != descriptor.size:
        raise SizeMismatchError(
            f"size mismatch: {descriptor.digest}: expected {descriptor.size} bytes, got {size}",
            subject=str(descriptor.digest),
            expected=descriptor.size,
            actual=size,
            hint=_DAMAGED,
        )


def _check_digest(found: str, descriptor: Descriptor) -> None:
    digest = descriptor.digest
    if found != digest.hex:
        raise DigestMismatchError(
            f"digest mismatch: {digest}: got {digest.algorithm}:{found}",
            subject=str(digest),
            expected=str(digest),
            actual=f"{digest.algorithm}:{found}",
            hint=_DAMAGED,
        )
