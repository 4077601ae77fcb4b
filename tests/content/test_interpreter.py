"""Each native call that reads, writes, hashes, waits or mounts lets Python's other threads run meanwhile."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest

from pyctrd import _core
from tests.archives import Tar
from tests.children import Child
from tests.content.stores import put, sha256

TAR = Tar().directory("d").file("d/f", b"content").build()

# Python never takes the interpreter from a thread here: another runs only if a call lets go of it.
HARNESS = """
import os, socket, sys, threading, time
from pyctrd import _core
sys.setswitchinterval(1000)
root, tar, digest = sys.argv[1:4]
content = open(tar, "rb").read()
gate = threading.Lock()
gate.acquire()
ran = 0

def other():
    global ran
    while True:
        gate.acquire()
        ran += 1

threading.Thread(target=other, daemon=True).start()
made = iter(range(1 << 30))

def ingest(**options):
    return _core.Ingest(root, f"i{next(made)}", digest=digest, size=len(content), diff_id=digest, **options)

def filled():
    started = ingest()
    with started.buffer() as view:
        view[:len(content)] = content
    return started

def taken():
    started = ingest()
    block = started.block()
    with block.view() as view:
        view[:len(content)] = content
    return started, block

def done(**options):
    started = ingest(**options)
    started.write(content)
    started.finish()
    return started

def as_objects():
    one = done(unpack=True, form="objects", packed_bytes=0, keep_blob=False)
    _core.publish(root, [one], durability="none")
    return layer

def an_object():
    return _core.layer_objects(as_objects())[0]

def empty():
    path = f"{root}/empty-{next(made)}"
    os.mkdir(path)
    return path

def written():
    started = ingest()
    started.write(content)
    return started

def resumed():
    options = {"digest": digest, "size": len(content), "diff_id": digest, "resumable": True}
    name = f"r{next(made)}"
    left = _core.Ingest(root, name, **options)
    left.write(content)
    left.leave()
    return _core.Ingest(root, name, **options)

def attempt(call):
    try:
        call()
    except OSError:
        pass  # the kernel refused: it was asked, which is what counts

def often(call):
    # For calls of microseconds: the other thread may need several to get in.
    for _ in range(50):
        call()

layer = f"{root}/layers/sha256/{digest[7:]}"
absent = f"{root}/absent"

def view():
    return _core.ImageView([layer])

def conversion():
    target = f"{root}/converted-{next(made)}"
    return _core.Conversion(tar, target, digest=digest, size=len(content), diff_id=digest, compression="zstd")

WRITE = (os.O_WRONLY | os.O_CREAT, 0o600)
opened = []

def descriptor():
    while opened:
        os.close(opened.pop())
    opened.append(os.open(tar, 0))
    return opened[0]

def archive():
    return _core.ArchiveReader(descriptor())

def member():
    reader = archive()
    while reader.next().kind != "file":
        pass
    return reader

TABLE = b'{"version": 1, "entries": []}'
# A frame of one block that is not compressed.
TABLE = bytes.fromhex("28b52ffd0058") + (len(TABLE) << 3 | 1).to_bytes(3, "little") + TABLE

def plan():
    table = _core.digest_bytes(TABLE)
    return _core.LayerPlan.zstd_chunked(TABLE, None, digest=table, end=0, layers=[root], gap=0)

def estargz():
    try:
        _core.LayerPlan.estargz(TABLE, digest=digest, start=0, layers=[], gap=0)
    except ValueError:
        pass  # a table of the other kind, as was seen when it was read

def as_tar():
    return _core.Ingest(root, f"i{next(made)}", digest=digest, diff_id=digest)

def rebuild(plan, ingest):
    plan.rebuild(ingest, descriptor(), size=0)

def upload():
    made_now = _core.Upload(root, f"u{next(made)}")
    made_now.write(content)
    return made_now

ends = socket.socketpair()
line = ends[0].fileno()

prepare, call = lambda: None, lambda _: None
CASE
for _ in range(4000):
    subject, before = prepare(), ran
    gate.release()
    waiting = time.perf_counter() + 0.0003
    while time.perf_counter() < waiting:
        pass  # the other thread has woken, and wants the interpreter
    assert ran == before
    call(subject)
    if ran != before:
        print("let go", flush=True)
        os._exit(0)
    while ran == before:
        time.sleep(0.0001)
print("held on", flush=True)
os._exit(0)
"""

CASES = {
    "digest_bytes": "call = lambda _: _core.digest_bytes(content)",
    "digest_file": "call = lambda _: _core.digest_file(tar)",
    "verify_file": "call = lambda _: _core.verify_file(tar, digest)",
    "FileLock.acquire": "prepare, call = lambda: _core.FileLock(f'{root}/l'), lambda lock: lock.acquire(timeout=0)",
    "sweep_ingests": "call = lambda _: _core.sweep_ingests(root)",
    "remove_tree": "call = lambda _: often(lambda: _core.remove_tree(root, 'absent'))",
    "empty_trash": "call = lambda _: often(lambda: _core.empty_trash(root))",
    "layer_forms": "prepare, call = as_objects, lambda layer: often(lambda: _core.layer_forms(layer))",
    "layer_objects": "prepare, call = as_objects, lambda layer: _core.layer_objects(layer)",
    "verify_object": "prepare, call = an_object, lambda ref: often(lambda: _core.verify_object(root, ref))",
    "list_objects": "prepare, call = as_objects, lambda _: often(lambda: _core.list_objects(root))",
    "count_objects": "prepare, call = as_objects, lambda _: often(lambda: _core.count_objects(root))",
    "sweep_objects": "prepare, call = as_objects, lambda _: often(lambda: _core.sweep_objects(root))",
    "Ingest": "call = lambda _: ingest()",
    "Ingest.buffer": "prepare, call = ingest, lambda started: started.buffer()",
    "Ingest.commit": "prepare, call = filled, lambda started: started.commit(len(content))",
    "Ingest.block": "prepare, call = ingest, lambda started: started.block()",
    "Ingest.block_ahead": "prepare, call = ingest, lambda started: often(lambda: started.block_ahead())",
    "Ingest.push": "prepare, call = taken, lambda pair: pair[0].push(pair[1], len(content))",
    "Ingest.write": "prepare, call = ingest, lambda started: started.write(content)",
    "Ingest.finish": "prepare, call = written, lambda started: started.finish()",
    "Ingest.replay": "prepare, call = resumed, lambda started: started.replay()",
    "Ingest.suspend": "prepare, call = written, lambda started: started.suspend()",
    "Ingest.leave": "prepare, call = lambda: ingest(resumable=True), lambda started: started.leave()",
    "Ingest.abort": "prepare, call = ingest, lambda started: started.abort()",
    "publish": "prepare, call = done, lambda ended: _core.publish(root, [ended], durability='none')",
    "unpack": "prepare, call = empty, lambda path: _core.unpack(tar, path)",
    "LayerIndex": "call = lambda _: _core.LayerIndex(layer)",
    "ImageView": "call = lambda _: _core.ImageView([layer])",
    "ImageView.is_current": "prepare, call = view, lambda view: often(lambda: view.is_current())",
    "ImageView.walk": "prepare, call = view, lambda view: often(lambda: view.walk(b''))",
    "ImageView.find": "prepare, call = view, lambda view: often(lambda: view.find(b'd'))",
    "ImageView.find_link": "prepare, call = view, lambda view: often(lambda: view.find_link(b'd'))",
    "ImageView.changes": "prepare, call = view, lambda view: often(lambda: view.changes(view))",
    "ViewChanges.read": "prepare, call = lambda: view().changes(view()), lambda found: often(lambda: found.read(1))",
    "ImageView.open": "prepare, call = view, lambda view: often(lambda: os.close(view.open(b'd/f')))",
    "rebuild_layer": "call = lambda _: _core.rebuild_layer(layer, digest)",
    "settle_layers": "prepare, call = empty, lambda path: _core.settle_layers([layer], path)",
    "flatten_layers": "prepare, call = empty, lambda path: _core.flatten_layers([layer], path)",
    "compose_sample": "prepare, call = empty, lambda path: _core.compose_sample(path, bytes(1 << 20), 'image')",
    "compose_directory": "prepare, call = empty, lambda path: _core.compose_directory([as_objects()], path)",
    "compose_layers": "prepare, call = empty, lambda path: _core.compose_layers([as_objects()], path, '')",
    "copy_attributes": "prepare, call = empty, lambda path: _core.copy_attributes(layer, path)",
    "LayerPlan.zstd_chunked": "call = lambda _: often(lambda: attempt(plan))",
    "LayerPlan.estargz": "call = lambda _: often(lambda: attempt(estargz))",
    "LayerPlan.rebuild": "prepare, call = lambda: (plan(), as_tar()), lambda both: attempt(lambda: rebuild(*both))",
    "diff": "call = lambda _: _core.diff(layer, f'{root}/made')",
    "diff_layers": "call = lambda _: _core.diff_layers(f'{layer}/tree', f'{root}/made', [layer], overlay=False)",
    "list_changes": "call = lambda _: often(lambda: _core.list_changes(f'{layer}/tree', [layer], overlay=False))",
    "Conversion": "call = lambda _: conversion()",
    "Conversion.run": "prepare, call = conversion, lambda begun: begun.run()",
    "Conversion.cancel": "prepare, call = conversion, lambda begun: begun.cancel()",
    "Workspace": "call = lambda _: _core.Workspace(root, f'w{next(made)}')",
    "Workspace.close": (
        "prepare, call = lambda: _core.Workspace(root, f'w{next(made)}'), lambda workspace: workspace.close()"
    ),
    "Upload": "call = lambda _: _core.Upload(root, f'u{next(made)}')",
    "Upload.write": "prepare, call = upload, lambda upload: often(lambda: upload.write(content))",
    "Upload.verify": "prepare, call = upload, lambda upload: often(lambda: upload.verify(digest))",
    "Upload.publish": "prepare, call = upload, lambda upload: upload.publish(digest, durability='none')",
    "Upload.leave": "prepare, call = upload, lambda upload: upload.leave()",
    "Upload.abort": "prepare, call = upload, lambda upload: upload.abort()",
    "mount_overlay": "call = lambda _: often(lambda: attempt(lambda: _core.mount_overlay([root], absent)))",
    "mount_erofs": "call = lambda _: often(lambda: attempt(lambda: _core.mount_erofs(absent, absent)))",
    "open_node": "prepare = lambda: os.open(root, 0)\n"
    "call = lambda fd: often(lambda: os.close(_core.open_node(fd, '.')))",
    "exchange": "call = lambda _: often(lambda: attempt(lambda: _core.exchange(absent, absent)))",
    "retire_mount": "call = lambda _: often(lambda: attempt(lambda: _core.retire_mount(absent)))",
    "mount_bind": "call = lambda _: often(lambda: attempt(lambda: _core.mount_bind(absent, absent)))",
    "unmount": "call = lambda _: often(lambda: attempt(lambda: _core.unmount(absent)))",
    "send_part": "prepare, call = lambda: os.open(root + '/layer.tar', 0), lambda fd: often(lambda: _core.send_part("
    "line, fd, start=0, count=1, pause_ms=1, turn_ms=1000))",
    "spawn_shim": "call = lambda _: attempt(lambda: _core.spawn_shim([b'/absent'], report=2))",
    "ArchiveReader": "prepare, call = descriptor, lambda fd: _core.ArchiveReader(fd)",
    "ArchiveReader.next": "prepare, call = archive, lambda reader: reader.next()",
    "ArchiveReader.copy": "prepare, call = member, lambda reader: reader.copy(os.open(f'{root}/copy', *WRITE))",
    "file_system": "call = lambda _: often(lambda: _core.file_system(root))",
    "flush_file_system": "call = lambda _: _core.flush_file_system(root)",
    "flush_tree": "call = lambda _: _core.flush_tree(root)",
    "open_beneath": "prepare, call = lambda: os.open(root, 0), lambda fd: _core.open_beneath(fd, 'layer.tar')",
    "open_in_root": "prepare, call = lambda: os.open(root, 0), lambda fd: _core.open_in_root(fd, 'layer.tar')",
}
# They look at memory alone; and a namespace is entered only where there is no other thread.
AT_ONCE = {
    "enter_user_namespace",
    "join_namespace",
    "set_file_ids",
    *("Entry", "FileLock", "FileLock.release", "Ingest.stages", "Ingested", "LayerIndex.find", "LayerIndex.walk"),
    *("Block", "Block.view"),
    *(
        "Diffed",
        "LayerPlan",
        "Member",
        "ObjectRef",
        "ResponseHead",
        "StageTimes",
        "ViewChanges",
        "ViewWalk",
        "ViewWalk.read",
    ),
    "Converted",
    "detect_compression",  # four bytes
    "parse_response_head",  # 64 KiB at most
    "estargz_table_offset",  # of 51 bytes
}


def arguments(tmp_path: Path) -> tuple[Path, Path, str]:
    """A root with the layer in it, the layer's tar, and its digest."""
    root, tar = tmp_path / "root", tmp_path / "root" / "layer.tar"
    root.mkdir()
    tar.write_bytes(TAR)
    ingest = _core.Ingest(root, "first", digest=sha256(TAR), size=len(TAR), diff_id=sha256(TAR), unpack=True)
    put(ingest, TAR)
    _core.publish(root, [ingest], durability="none")
    return root, tar, sha256(TAR)


@pytest.mark.parametrize("name", CASES)
def test_a_native_call_lets_other_threads_run(name: str, tmp_path: Path) -> None:
    with Child(HARNESS.replace("CASE", CASES[name]), *arguments(tmp_path)) as child:
        assert child.hear() == "let go"


def test_a_call_that_holds_on_is_seen(tmp_path: Path) -> None:
    code = HARNESS.replace("CASE", "call = lambda _: sum(range(1000))").replace("4000", "50")
    with Child(code, *arguments(tmp_path)) as child:
        assert child.hear() == "held on"


def test_every_native_name_is_listed_here() -> None:
    names = set()
    for name, value in vars(_core).items():
        if name.startswith("_") or not callable(value):
            continue
        names.add(name)
        if inspect.isclass(value):
            methods = (n for n, v in vars(value).items() if not n.startswith("_") and callable(v))
            names.update(f"{name}.{method}" for method in methods)
    assert names - AT_ONCE == set(CASES)


# Whoever reads from a pipe waits until another thread writes into it.
PIPE = """
import os, sys, threading
from pyctrd import _core
pipe, content, digest, target = sys.argv[1], open(sys.argv[2], "rb").read(), sys.argv[3], sys.argv[4]

def feed():
    with open(pipe, "wb", buffering=0) as file:
        for start in range(0, len(content), 1000):
            file.write(content[start:start + 1000])

feeder = threading.Thread(target=feed)
feeder.start()
CASE
feeder.join()
print("done", flush=True)
"""


@pytest.mark.parametrize(
    "call",
    [
        "assert _core.digest_file(pipe) == digest",
        "_core.verify_file(pipe, digest)",
        "assert _core.unpack(pipe, target).digest == digest",
    ],
)
def test_a_native_call_reads_from_a_pipe_that_another_thread_feeds(call: str, tmp_path: Path) -> None:
    root, tar, digest = arguments(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    target = root / "empty"
    target.mkdir()
    with Child(PIPE.replace("CASE", call), pipe, tar, digest, target) as child:
        assert child.hear() == "done"


def test_a_native_wait_lets_another_thread_end_it(tmp_path: Path) -> None:
    code = """
import sys, threading
from pyctrd import _core
held, wanted = _core.FileLock(sys.argv[1]), _core.FileLock(sys.argv[1])
held.acquire()
threading.Timer(0.01, held.release).start()
print(wanted.acquire(), flush=True)
"""
    with Child(code, tmp_path / "lock") as child:
        assert child.hear() == "True"
