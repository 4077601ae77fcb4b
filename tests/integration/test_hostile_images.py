"""Part C of the hostile cases: images and options that a container is made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import CommandNotFoundError, InvalidError, NotFoundError, PyctrdError
from pyctrd.runtime.users import find_user
from tests.archives import Tar
from tests.images import Images, build_image, busybox_tar
from tests.integration.conftest import Cli

pytestmark = pytest.mark.root

SECRET = "of the host alone"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host that an image tries to reach."""
    made = tmp_path / "outside"
    made.mkdir()
    (made / "victim").write_text(SECRET)
    return made


def seen(directory: Path) -> dict[str, tuple[Any, ...]]:
    """All that is there, with what a change would show."""
    found = {}
    for path in (directory, *directory.rglob("*")):
        facts = path.lstat()
        body = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (facts.st_mode, facts.st_uid, facts.st_size, facts.st_mtime_ns, facts.st_nlink, body)
    return found


def build(images: Images, name: str, tar: Tar | None = None, **config: Any) -> str:
    """busybox, with a layer over it."""
    tars = [busybox_tar(), *([] if tar is None else [tar.build()])]
    return images.push(build_image(tars, config={"Env": ["PATH=/bin"], **config}), name, tag="hostile").reference


def run(engine: pyctrd.Engine, reference: str, *command: str, **options: Any) -> tuple[int, str]:
    image = engine.images.pull(reference)
    container = engine.containers.run(image, command, **options)
    ended = container.wait(60)
    text = container.logs()
    container.delete()
    return ended.exit_code, text


def attempt(engine: pyctrd.Engine, reference: str, *command: str, **options: Any) -> tuple[int, str] | None:
    """As ``run``; None where it is refused, which is said in one line."""
    try:
        return run(engine, reference, *command, **options)
    except PyctrdError as error:
        said = str(error)
    assert "\n" not in said
    return None


@pytest.mark.parametrize("user", ["4294967296", "2147483648", "-1", "1000:4294967296", "99999999999", "0:-5"])
def test_c01_c02_a_number_out_of_range_is_refused_and_never_a_name(tmp_path: Path, user: str) -> None:
    (tmp_path / "etc").mkdir()
    name, _, group = user.partition(":")
    (tmp_path / "etc/passwd").write_text(f"{name}:x:0:0::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text(f"{group}:x:0:\n")
    with pytest.raises(InvalidError) as caught:
        find_user(tmp_path, user)
    assert caught.value.field in ("user", "group")


def test_c02_digits_are_a_number_whatever_names_the_image_has(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("1000:x:0:0:root by name:/root:/bin/sh\napp:x:1000:7::/home:/bin/sh\n")
    (tmp_path / "etc/group").write_text("50:x:0:\n")
    user = find_user(tmp_path, "1000:50")
    assert (user.uid, user.gid) == (1000, 50)
    (tmp_path / "etc/passwd").write_text("1000:x:0:0:root by name:/root:/bin/sh\n")
    assert find_user(tmp_path, "1000").uid == 1000


def test_c03_users_are_looked_up_in_the_image_wherever_its_files_lead(
    engine: pyctrd.Engine, images: Images, outside: Path
) -> None:
    (outside / "passwd").write_text("host:x:0:0::/:/bin/sh\n")
    trap = Tar().symlink("etc/passwd", str(outside / "passwd")).symlink("etc/group", "../../../../etc/group")
    with pytest.raises(NotFoundError, match="host"):
        run(engine, build(images, "c03-link", trap), "id", user="host")
    kinds = {"fifo": Tar().fifo("etc/passwd"), "proc": Tar().symlink("etc/passwd", "/proc/self/root/etc/passwd")}
    for name, tar in {**kinds, "folder": Tar().directory("etc/passwd")}.items():
        with pytest.raises(PyctrdError) as caught:
            run(engine, build(images, f"c03-{name}", tar), "id", user="root-by-name")
        assert "\n" not in str(caught.value)
    assert engine.containers.list() == []


@pytest.mark.parametrize("kind", ["large", "one line", "zeros", "groups"])
def test_c04_c05_files_of_users_are_read_in_bounds(tmp_path: Path, kind: str) -> None:
    (tmp_path / "etc").mkdir()
    passwd, group = tmp_path / "etc/passwd", tmp_path / "etc/group"
    passwd.write_text("app:x:1000:1000::/:/bin/sh\n")
    group.write_text("")
    if kind == "large":
        os.truncate(passwd, 1 << 30)
    elif kind == "one line":
        passwd.write_bytes(b"x" * (100 << 20))
    elif kind == "zeros":
        passwd.write_bytes(b"\0" * 1000 + b"\nbin\xffary:x:1:1\napp:x:1000:1000::/:/bin/sh\n")
        assert find_user(tmp_path, "app").uid == 1000
        return
    else:
        group.write_text("".join(f"g{number}:x:{number}:app\n" for number in range(1_000_000)))
    with pytest.raises(InvalidError, match="at most"):
        find_user(tmp_path, "app")


def test_c06_a_link_within_the_image_is_followed_in_it(engine: pyctrd.Engine, images: Images) -> None:
    tar = Tar().file("nix/store/passwd", b"app:x:4321:4322::/:/bin/sh\n").symlink("etc/passwd", "/nix/store/passwd")
    assert run(engine, build(images, "c06", tar), "id", "-u", user="app") == (0, "4321\n")


def test_c07_groups_are_all_there_and_the_primary_is_among_them(engine: pyctrd.Engine, images: Images) -> None:
    tar = Tar().file("etc/group", b"app:x:1000:app\none:x:2001:app\ntwo:x:2002:root,app\n")
    status, text = run(engine, build(images, "c07", tar), "id", "-G", user="app", group_add=["3003"])
    assert (status, sorted(text.split())) == (0, ["1000", "2001", "2002", "3003"])


@pytest.mark.parametrize("where", ["/proc/self/fd/7", "/proc/1/cwd", "../../x", "/etc/motd", "/out", "/new/deep"])
def test_c08_a_working_directory_is_in_the_container_or_refused(
    engine: pyctrd.Engine, images: Images, outside: Path, where: str
) -> None:
    reference = build(images, f"c08-{abs(hash(where))}", Tar().symlink("out", str(outside / "made")), WorkingDir=where)
    before = seen(outside)
    found = attempt(engine, reference, "sh", "-c", "pwd; cat victim ../victim; ls")
    assert found is None or SECRET not in found[1]
    assert seen(outside) == before


def test_c09_nothing_that_is_open_here_is_open_in_a_container(engine: pyctrd.Engine, images: Images) -> None:
    held = [os.open("/etc/hostname", os.O_RDONLY) for _ in range(100)]
    try:
        for descriptor in held:
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - os takes it so
        script = "ls -l /proc/self/fd | tr -s ' ' | grep -c -e '->'; ls /proc/self/fd"
        image = engine.images.pull(images.busybox.reference)
        container = engine.containers.run(image, ["sh", "-c", f"{script}; sleep 600"])
        shim = json.loads((Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id / "shim.json").read_text())
        found = container.exec_output(["ls", "/proc/self/fd"])
        # The last one is of the listing itself.
        assert found.stdout.decode().split() == ["0", "1", "2", "3"]
        for pid in (shim["shim_pid"], container.status.pid):
            links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
            assert [link for link in links if link == "/etc/hostname"] == []
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_c10_volumes_are_filled_from_the_image_alone(engine: pyctrd.Engine, images: Images, outside: Path) -> None:
    tar = Tar().symlink("x", str(outside))
    reference = build(images, "c10", tar, Volumes={f"/../..{outside}": {}, "/x": {}})
    before = seen(outside)
    found = attempt(engine, reference, "sh", "-c", f"cat /x/victim {outside}/victim; true")
    assert found is None or (found[0], SECRET in found[1]) == (0, False)
    assert seen(outside) == before


def test_c11_variables_are_the_containers_alone(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    with pytest.raises(InvalidError):
        engine.containers.create(image, ["env"], env=["A=\0"])
    large = "x" * 100_000
    status, text = run(
        engine, images.busybox.reference, "env", env=["LD_PRELOAD=/none.so", "PYTHONPATH=/none", f"LARGE={large}"]
    )
    assert status == 0
    assert {"LD_PRELOAD=/none.so", "PYTHONPATH=/none", f"LARGE={large}"} <= set(text.splitlines())
    container = engine.containers.run(image, ["sleep", "600"], env=["LD_PRELOAD=/none.so"])
    shim = json.loads((Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id / "shim.json").read_text())
    assert b"/none.so" not in Path(f"/proc/{shim['shim_pid']}/environ").read_bytes()
    # More than the kernel passes to a program.
    found = attempt(engine, images.busybox.reference, "env", env=[f"LARGE={'x' * (1 << 20)}"])
    assert found is None or found[0] != 0


def test_c12_what_is_no_command_is_told(engine: pyctrd.Engine, images: Images) -> None:
    for name, config in {"empty": {"Entrypoint": [""]}, "none": {}}.items():
        with pytest.raises(InvalidError, match="command"):
            run(engine, build(images, f"c12-{name}", None, **config))
    reference = build(images, "c12-many", Entrypoint=["/bin/sh", "-c", "echo $#", *["x"] * 10_000])
    assert run(engine, reference) == (0, "9999\n")
    with pytest.raises(CommandNotFoundError):
        run(engine, build(images, "c12-missing", Entrypoint=["/none"]))
    assert engine.containers.list() == []


def test_c13_labels_of_an_image_are_nobodys_orders(engine: pyctrd.Engine, images: Images, outside: Path) -> None:
    orders = {"pyctrd.runtime": "/bin/false", "containerd.io/restart.loguri": f"binary://{outside}/victim", "a": "b"}
    reference = build(images, "c13", Labels=orders)
    container = engine.containers.run(engine.images.pull(reference), ["true"], labels={"own": "1"})
    assert container.wait(60).exit_code == 0
    assert container.labels == {"own": "1"}


@pytest.mark.parametrize("case", ["dev", "devices", "proc", "sys", "proc file", "deep"])
def test_c14_c16_links_at_mount_points_lead_nowhere_else(
    engine: pyctrd.Engine, images: Images, outside: Path, case: str
) -> None:
    out = str(outside)
    tar = {
        "dev": lambda: Tar().whiteout("dev").symlink("dev", out),
        "devices": lambda: Tar().symlink("dev/null", f"{out}/victim").symlink("dev/console", f"{out}/victim"),
        "proc": lambda: Tar().whiteout("proc").symlink("proc", out),
        "sys": lambda: Tar().whiteout("sys").symlink("sys", "../../../../../../../../" + out.lstrip("/")),
        "proc file": lambda: Tar().whiteout("proc").file("proc", b""),
        "deep": lambda: (
            Tar()
            .symlink("etc/resolv.conf", f"{out}/resolv")
            .symlink("etc/hosts", f"{out}/victim")
            .symlink("etc/hostname", "/proc/self/root/x")
        ),
    }[case]()
    before = seen(outside)
    found = attempt(
        engine,
        build(images, f"c14-{case.replace(' ', '-')}", tar),
        *("sh", "-c", "echo x > /dev/null; cat /etc/hosts; ls /dev /sys"),
        add_hosts={"a": "10.0.0.1"},
        dns=["10.0.0.2"],
        terminal=case == "devices",
    )
    assert found is None or SECRET not in found[1]
    assert seen(outside) == before
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("link", ["/", "../../../../..", "/proc/self/root", "/proc/self/cwd"])
def test_c15_mounts_through_links_of_the_image_stay_in_it(
    engine: pyctrd.Engine, images: Images, outside: Path, tmp_path: Path, link: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "mine").write_text("mounted")
    reference = build(images, f"c15-{abs(hash(link))}", Tar().symlink("x", link))
    before, mounts = seen(outside), Path("/proc/self/mounts").read_text()
    found = attempt(
        engine,
        reference,
        *("sh", "-c", "cat /x/etc/mine /etc/mine; true"),
        binds=[f"{source}:/x/etc", f"{source}:/x{outside}"],
    )
    assert found is None or "mounted" in found[1] or link == "/proc/self/cwd"  # hidden by the container's own /proc
    assert seen(outside) == before
    assert Path("/etc/passwd").exists()
    assert Path("/proc/self/mounts").read_text().count(str(source)) == mounts.count(str(source))


def test_c17_a_container_does_not_replace_the_runtime(engine: pyctrd.Engine, images: Images) -> None:
    program = Path(str(shutil.which("runc")))
    before = hashlib.sha256(program.read_bytes()).hexdigest()
    reference = build(images, "c17", Tar().symlink("evil", "/proc/self/exe"), Entrypoint=["/evil"])
    attempt(engine, reference, "--version")
    image = engine.images.pull(reference)
    container = engine.containers.run(image, ["-c", "sleep 600"], entrypoint=["/bin/sh"])
    # It waits for the runtime to come in, and writes to what runs then.
    writes = "for p in /proc/[0-9]*; do echo evil 2>/dev/null > $p/exe; done"
    watcher = container.exec(["sh", "-c", f"while true; do {writes}; done"], detach=True)
    for _ in range(20):
        assert container.exec_output(["true"]).exit_code == 0
    watcher.kill()
    assert hashlib.sha256(program.read_bytes()).hexdigest() == before


def test_c20_names_that_lead_elsewhere_are_refused(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    for name in ("../x", "a" * 300, "a/b", "a\0b", "a\nb", ".", "..", "-x", "f" * 64):
        with pytest.raises(InvalidError) as caught:
            engine.containers.create(image, ["true"], name=name)
        assert "\n" not in str(caught.value)
        with pytest.raises(NotFoundError):
            engine.containers.get(name)
    assert engine.containers.list() == []


@pytest.mark.parametrize("signal", ["SIGFOO", "-1", "9999"])
def test_c22_a_stop_signal_that_is_none_is_told_when_it_is_made(
    engine: pyctrd.Engine, images: Images, signal: str
) -> None:
    image = engine.images.pull(build(images, f"c22-{signal.strip('-').lower()}", StopSignal=signal))
    with pytest.raises(InvalidError, match="signal"):
        engine.containers.create(image, ["true"])
    assert engine.containers.list() == []


def test_c23_two_of_one_image_at_once_see_their_own_variables(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    for turn in range(10):
        both = [engine.containers.run(image, ["env"], env=[f"MINE={turn}-{one}"]) for one in (0, 1)]
        for one, container in enumerate(both):
            container.wait(60)
            assert [line for line in container.logs().splitlines() if line.startswith("MINE=")] == [
                f"MINE={turn}-{one}"
            ]
            container.delete()


def test_c24_output_without_end_and_clients_without_number_take_no_memory(
    engine: pyctrd.Engine, images: Images
) -> None:
    image = engine.images.pull(images.busybox.reference)
    script = "dd if=/dev/zero bs=1M count=200 2>/dev/null; echo; echo done >&2; sleep 600"
    container = engine.containers.run(image, ["sh", "-c", script], terminal=False)
    lines = container.log_lines(follow=True)
    assert next(line for line in lines if line.stream == "stderr").text == "done\n"
    lines.close()  # type: ignore[attr-defined]
    directory = Path(os.environ["PYCTRD_STATE"]) / "shims" / container.id
    shim = json.loads((directory / "shim.json").read_text())["shim_pid"]
    from pyctrd.runtime.shim import Connection, Kind, Mode

    for _ in range(1000):
        connection = Connection.open(directory, Mode.STREAMS)
        if connection is not None:  # of too many at once some are turned away
            with connection, suppress(ConnectionError):
                connection.send(Kind.RESIZE, b"\0\x20\0\x20")
    container.exec_output(["true"])
    facts = Path(f"/proc/{shim}/status").read_text()
    assert int(facts.partition("VmRSS:")[2].split()[0]) < 8192
    assert facts.partition("Threads:")[2].split()[0] == "1"


def test_c25_a_value_of_70000_bytes_is_whole_or_refused(engine: pyctrd.Engine, images: Images) -> None:
    value = "x" * 70_000
    assert attempt(engine, images.busybox.reference, "true", annotations={"long": value}) in (None, (0, ""))


def test_a_device_directory_of_the_hosts_and_an_init_are_refused_in_one_line(cli: Cli, images: Images) -> None:
    for target in ("/dev", "/dev/"):
        done = cli("run", "--rm", "--init", "-v", f"/dev:{target}", images.busybox.reference, "true")
        assert done.status == 125
        assert "init: it stands in /dev" in done.err
    assert not Path("/dev/pyctrd-init").exists()
