"""What users of Docker and Podman set when they run something, looked at from inside the container."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.cli.run import run_command
from pyctrd.errors import ConflictError, InvalidError, NotFoundError, UnsupportedError
from pyctrd.runtime.cgroup import CgroupForm, cgroup_form
from pyctrd.runtime.security_options import host_capabilities
from tests.images import Images
from tests.integration.conftest import Cli, command

pytestmark = pytest.mark.root
DEADLINE_SECONDS = 60.0
V1 = pytest.mark.skipif(cgroup_form() in (CgroupForm.V2, CgroupForm.NONE), reason="reads version 1's control groups")


@pytest.fixture
def busybox(cli: Cli, images: Images) -> str:
    """An image that is in the store already."""
    assert cli("pull", images.busybox.reference).status == 0
    return images.busybox.reference


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A mount on the host that propagates, with another one beneath."""
    root = tmp_path / "shared"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root], check=True)
    try:
        subprocess.run(["mount", "--make-rshared", root], check=True)
        (root / "beneath").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root / "beneath"], check=True)
        yield root
    finally:
        subprocess.run(["umount", "-R", root], check=True)


def look(cli: Cli, image: str, *options: str, script: str) -> str:
    """What a script in a container with these options prints."""
    done = cli("run", "--rm", *options, image, "sh", "-c", script)
    assert done.status == 0, done.err
    return done.out


def spec_of(container: pyctrd.Container) -> dict[str, Any]:
    """A container's ``config.json``."""
    path = Path(os.environ["PYCTRD_ROOT"]) / "containers" / "default" / container.id / "config.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_binds_take_dockers_options(cli: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    options = f"{tmp_path}:/mnt:ro,nosuid,nodev,noexec,Z"
    out = look(cli, busybox, "-v", options, script="cat /mnt/file; touch /mnt/x || echo no; grep ' /mnt ' /proc/mounts")
    assert out.startswith("of the host\nno\n")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(out.split()[-3].split(","))
    mount = f"type=bind,source={tmp_path}/file,target=/one,readonly"
    assert look(cli, busybox, "--mount", mount, script="cat /one") == "of the host\n"


def test_a_mount_within_another_is_made_after_it(cli: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "outer" / "in").mkdir(parents=True)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "here").touch()
    options = ("-v", f"{tmp_path}/inner:/m/in", "-v", f"{tmp_path}/outer:/m", "--tmpfs", "/m/in/deep")
    (tmp_path / "inner" / "deep").mkdir()
    assert look(cli, busybox, *options, script="ls /m/in") == "deep\nhere\n"


def test_what_is_mounted_beneath_is_read_only_too(cli: Cli, busybox: str, shared: Path) -> None:
    script = "touch /m/x || echo no; touch /m/beneath/x || echo no"
    assert look(cli, busybox, "-v", f"{shared}:/m:ro", script=script) == "no\n"
    assert look(cli, busybox, "-v", f"{shared}:/m:rro", script=script) == "no\nno\n"
    mount = f"type=bind,source={shared},target=/m,readonly,bind-recursive=readonly"
    assert look(cli, busybox, "--mount", mount, script=script) == "no\nno\n"
    alone = f"type=bind,source={shared},target=/m,bind-recursive=disabled"
    assert look(cli, busybox, "--mount", alone, script="grep -c ' /m' /proc/mounts") == "1\n"


def test_mounts_propagate_where_that_is_asked(cli: Cli, busybox: str, shared: Path, engine: pyctrd.Engine) -> None:
    container = engine.containers.run(busybox, ["sleep", "100"], binds=[f"{shared}:/m:rslave"])
    (shared / "later").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared / "later"], check=True)
    mounts = Path(f"/proc/{container.status.pid}/mounts").read_text()
    assert " /m/later " in mounts
    optional = look(cli, busybox, "-v", f"{shared}:/m:rshared", script="grep ' /m ' /proc/self/mountinfo")
    assert "shared:" in optional


def test_memory_can_be_mounted(cli: Cli, busybox: str) -> None:
    script = "grep ' /t ' /proc/mounts; stat -c %a /t; ls -a /t | wc -l"
    out = look(cli, busybox, "--tmpfs", "/t:size=1m,mode=1770", script=script)
    assert "size=1024k" in out
    assert "noexec" in out
    assert out.endswith("1770\n2\n")
    out = look(cli, busybox, "--mount", "type=tmpfs,target=/t,tmpfs-size=2m,tmpfs-mode=700", script=script)
    assert "size=2048k" in out
    assert "size=1024k" in look(cli, busybox, "--shm-size", "1m", script="grep /dev/shm /proc/mounts")


def test_a_read_only_root_may_have_places_to_write(cli: Cli, busybox: str) -> None:
    script = "touch /x || echo no; touch /tmp/x /run/x /var/tmp/x && echo yes"
    assert look(cli, busybox, "--read-only", "--read-only-tmpfs", script=script) == "no\nyes\n"


def test_capabilities_are_given_and_taken(cli: Cli, busybox: str) -> None:
    script = "grep CapBnd /proc/self/status"

    def bits(*options: str) -> int:
        return int(look(cli, busybox, *options, script=script).split()[1], 16)

    assert bits("--cap-drop", "ALL") == 0
    assert bits("--cap-drop", "all", "--cap-add", "net_admin") == 1 << 12
    assert bits("--cap-add", "SYS_PTRACE") >> 19 & 1
    assert bits("--cap-add", "ALL").bit_count() == len(host_capabilities())


def test_privileged_hides_nothing(cli: Cli, busybox: str) -> None:
    script = (
        "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t\\n'; echo;"
        "grep -c ' /proc/' /proc/mounts; grep ' /sys ' /proc/mounts; test -e /dev/kmsg && echo kmsg;"
        "mkdir /new && mount -t tmpfs x /new && echo mounted"
    )
    first, *rest = look(cli, busybox, "--privileged", script=script).splitlines()
    assert first.startswith("CapEff:")
    assert first.endswith("NoNewPrivs:0Seccomp:0")
    assert int(first.split(":")[1][:16], 16).bit_count() == len(host_capabilities())
    assert rest[0] == "0"
    assert rest[1].split()[3].startswith("rw")
    assert rest[-1] == "mounted"
    assert ("kmsg" in rest) == Path("/dev/kmsg").exists()


def test_security_options(cli: Cli, busybox: str, tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["uname"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_BOOT"]}},
        ],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    status = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t\\n'"
    assert look(cli, busybox, script=status) == "NoNewPrivs:1Seccomp:2"
    unconfined = ("--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges=false")
    assert look(cli, busybox, *unconfined, script=status) == "NoNewPrivs:0Seccomp:0"
    script = "mkdir /x 2>&1; uname -s"
    own = ("--security-opt", f"seccomp={tmp_path}/profile.json")
    assert "No space left on device\nLinux" in look(cli, busybox, *own, script=script)
    if "CAP_SYS_BOOT" in host_capabilities():
        refused = cli("run", "--rm", *own, "--cap-add", "SYS_BOOT", busybox, "uname", "-s")
        assert refused.out.strip() == ""
    script = "echo 1 > /proc/sys/kernel/ctrl-alt-del && echo written; grep -c ' /proc/' /proc/mounts || true"
    before = "/proc/sys/kernel/ctrl-alt-del"
    kept = Path(before).read_text()
    try:
        out = look(cli, busybox, "--security-opt", "systempaths=unconfined", script=script)
        assert out == "written\n0\n"
    finally:
        Path(before).write_text(kept)
    masked = ("--security-opt", "mask=/etc/passwd", "--security-opt", "unmask=/proc/keys:/proc/kcore")
    assert look(cli, busybox, *masked, script="wc -c < /etc/passwd; grep -c kcore /proc/mounts || true") == "0\n0\n"


def test_devices(cli: Cli, busybox: str, tmp_path: Path) -> None:
    os.mknod(tmp_path / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    out = look(
        cli, busybox, "--device", f"{tmp_path}/zero:/dev/mine:r", script="head -c 3 /dev/mine | wc -c; ls /dev/mine"
    )
    assert out == "3\n/dev/mine\n"
    assert look(cli, busybox, "--device", f"{tmp_path}:/dev/all", script="ls /dev/all") == "zero\n"
    if not Path("/dev/loop-control").exists():
        return
    script = "mknod /k c 10 237 && ( : < /k ) 2>/dev/null && echo may || true"
    assert look(cli, busybox, script=script) == ""
    assert look(cli, busybox, "--device-cgroup-rule", "c 10:237 rwm", script=script) == "may\n"


CDI: dict[str, Any] = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.com/zero",
    "containerEdits": {"env": ["ALL=yes"]},
    "devices": [
        {
            "name": "one",
            "containerEdits": {
                "env": ["ONE=1"],
                "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/zero", "permissions": "r"}],
                "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/vendor", "options": ["ro", "bind"]}],
            },
        }
    ],
}


def test_devices_of_vendors(cli: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "vendor.json").write_text(json.dumps(CDI))
    options = ("--cdi-spec-dir", str(tmp_path), "--device", "vendor.com/zero=one")
    out = look(cli, busybox, *options, script="echo $ALL $ONE; head -c 2 /dev/vendor0 | wc -c; cat /vendor")
    assert out == f"yes 1\n2\n{Path('/etc/hostname').read_text()}"


@V1
def test_limits(cli: Cli, busybox: str) -> None:
    read = {
        "memory/memory.limit_in_bytes": "67108864",
        "memory/memory.memsw.limit_in_bytes": "134217728",
        "memory/memory.soft_limit_in_bytes": "33554432",
        "memory/memory.swappiness": "10",
        "cpu/cpu.shares": "512",
        "cpu/cpu.cfs_period_us": "50000",
        "cpu/cpu.cfs_quota_us": "25000",
        "cpuset/cpuset.cpus": "0",
        "cpuset/cpuset.mems": "0",
        "pids/pids.max": "40",
    }
    options = [
        *("-m", "64m", "--memory-swap", "128m", "--memory-reservation", "32m", "--memory-swappiness", "10"),
        *("--cpu-shares", "512", "--cpu-period", "50000", "--cpu-quota", "25000", "--cpuset-cpus", "0"),
        *("--cpuset-mems", "0", "--pids-limit", "40", "--cgroup-parent", "/pyctrd-test/options", "--oom-kill-disable"),
    ]
    script = f"cd /sys/fs/cgroup; cat {' '.join(read)}; grep -w oom_kill_disable memory/memory.oom_control; nproc"
    try:
        out = look(cli, busybox, *options, script=script).splitlines()
    finally:
        for controller in Path("/sys/fs/cgroup").iterdir():
            for group in ("pyctrd-test/options", "pyctrd-test"):
                if (controller / group).is_dir():
                    (controller / group).rmdir()
    assert out == [*read.values(), "oom_kill_disable 1", "1"]


@V1
def test_rates_of_block_devices(cli: Cli, busybox: str) -> None:
    disk = next(path for path in sorted(Path("/dev").iterdir()) if path.is_block_device() and path.name[:3] != "ram")
    kinds = ("read-bps", "write-bps", "read-iops", "write-iops")
    options = [word for rate, kind in enumerate(kinds, 1) for word in (f"--device-{kind}", f"{disk}:{rate}k")]
    number = disk.stat().st_rdev
    device = f"{os.major(number)}:{os.minor(number)}"
    files = " ".join(f"blkio.throttle.{kind.replace('-', '_')}_device" for kind in kinds)
    out = look(cli, busybox, *options, script=f"cd /sys/fs/cgroup/blkio; cat {files}")
    assert out == "".join(f"{device} {rate * 1024}\n" for rate in (1, 2, 3, 4))


def test_namespaces_of_the_host(cli: Cli, busybox: str) -> None:
    for option, kind in (("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("cgroupns", "cgroup"), ("network", "net")):
        out = look(cli, busybox, f"--{option}", "host", script=f"readlink /proc/self/ns/{kind}")
        assert out.strip() == str(Path(f"/proc/self/ns/{kind}").readlink())
        out = look(
            cli, busybox, f"--{option}", f"ns:/proc/{os.getpid()}/ns/{kind}", script=f"readlink /proc/self/ns/{kind}"
        )
        assert out.strip() == str(Path(f"/proc/self/ns/{kind}").readlink())
    assert look(cli, busybox, "--uts", "host", script="hostname; echo $HOSTNAME") == f"{os.uname().nodename}\n" * 2


def test_nothing_stays_of_a_container_among_the_hosts_processes(busybox: str, engine: pyctrd.Engine) -> None:
    script = "sleep 4321 & sleep 4321 & echo ready; wait"
    for timeout in (0, 10):
        container = engine.containers.run(busybox, ["sh", "-c", script], pid="host")
        for line in container.log_lines(follow=True):
            assert line.text == "ready\n"
            break
        groups = Path(f"/proc/{container.status.pid}/cgroup").read_text()
        assert container.stop(timeout).exit_code == 143
        container.delete(force=True)
        path = next(line.split(":")[2] for line in groups.splitlines())
        deadline = time.monotonic() + DEADLINE_SECONDS
        while any(path in read(at) for at in Path("/proc").glob("[0-9]*/cgroup")):  # killed, not all reaped yet
            assert time.monotonic() < deadline
            time.sleep(0.02)


def read(path: Path) -> str:
    """A file of a process; "" where that has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def test_namespaces_of_another_container(cli: Cli, busybox: str, engine: pyctrd.Engine) -> None:
    first = engine.containers.run(busybox, ["sleep", "100"], name="first", add_hosts=["db:10.1.2.3"])
    for option, kind in (("network", "net"), ("pid", "pid"), ("ipc", "ipc"), ("uts", "uts")):
        out = look(cli, busybox, f"--{option}", "container:first", script=f"readlink /proc/self/ns/{kind}")
        assert out.strip() == str(Path(f"/proc/{first.status.pid}/ns/{kind}").readlink())
    assert "10.1.2.3\tdb" in look(cli, busybox, "--network", "container:first", script="cat /etc/hosts")
    # Started again, it is in what the first has now.
    second = engine.containers.run(busybox, ["sleep", "100"], network="container:first")
    for container in (second, first):
        container.stop(0)
    with pytest.raises(ConflictError, match="first"):
        second.start()
    first.start()
    second.start()
    assert str(Path(f"/proc/{second.status.pid}/ns/net").readlink()) == str(
        Path(f"/proc/{first.status.pid}/ns/net").readlink()
    )
    first.stop(0)
    with pytest.raises(ConflictError, match="first"):
        engine.containers.run(busybox, ["true"], pid="container:first")
    with pytest.raises(NotFoundError, match="nobody"):
        engine.containers.run(busybox, ["true"], pid="container:nobody")


def test_kernel_parameters(cli: Cli, busybox: str) -> None:
    options = ("--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "kernel.msgmax=4096", "--domainname", "example")
    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/kernel/domainname"
    assert look(cli, busybox, *options, script=script) == "1\n4096\nexample\n"


def test_names(cli: Cli, busybox: str) -> None:
    options = (
        "--add-host",
        "db:10.0.0.1",
        "--add-host",
        "six:[fd00::1]",
        "--dns",
        "192.0.2.1",
        "--dns-search",
        "a.test",
    )
    out = look(cli, busybox, *options, "--dns-option", "ndots:2", script="cat /etc/hosts /etc/resolv.conf")
    assert "127.0.0.1\tlocalhost\n" in out
    assert "10.0.0.1\tdb\nfd00::1\tsix\n" in out
    assert out.endswith("nameserver 192.0.2.1\nsearch a.test\noptions ndots:2\n")
    out = look(cli, busybox, "--network", "host", "--add-host", "db:10.0.0.1", script="cat /etc/hosts")
    assert out == Path("/etc/hosts").read_text().rstrip("\n") + "\n10.0.0.1\tdb\n"


def test_groups(cli: Cli, busybox: str) -> None:
    assert look(cli, busybox, "--group-add", "1234", "-u", "7:8", script="id -G") == "8 1234\n"


def test_an_init_reaps(cli: Cli, busybox: str) -> None:
    done = cli("run", "--rm", "--init", busybox, "sh", "-c", "cat /proc/1/comm; exit 7")
    if "no small init" in done.err:
        pytest.skip("no init is installed")
    assert done.out.strip() == "pyctrd-init"
    assert done.status == 7


def test_files_of_variables_and_labels(cli: Cli, busybox: str, tmp_path: Path, engine: pyctrd.Engine) -> None:
    (tmp_path / "env").write_text("# comment\n\nA=1\nB=two words\n  C=3\n")
    out = look(cli, busybox, "--env-file", f"{tmp_path}/env", "-e", "A=9", script="echo $A $B $C")
    assert out == "9 two words 3\n"
    (tmp_path / "labels").write_text("one=1\n#two=2\n")
    made = cli(
        "create", "--name", "made", "--label-file", f"{tmp_path}/labels", "--annotation", "x.y=z", busybox, "true"
    )
    assert made.status == 0
    container = engine.containers.get("made")
    assert (container.labels, container.status.state) == ({"one": "1"}, "created")
    assert spec_of(container)["annotations"] == {"x.y": "z"}


def test_files_with_the_id_and_the_process(cli: Cli, busybox: str, tmp_path: Path, engine: pyctrd.Engine) -> None:
    files = ("--cidfile", f"{tmp_path}/id", "--pidfile", f"{tmp_path}/pid")
    done = cli("run", "-d", *files, busybox, "sleep", "100")
    container = engine.containers.get((tmp_path / "id").read_text())
    assert done.out.strip() == container.id
    assert int((tmp_path / "pid").read_text()) == container.status.pid
    again = cli("run", *files[:2], busybox, "true")
    assert (again.status, "is there already" in again.err) == (125, True)
    failed = cli("run", "--cidfile", f"{tmp_path}/other", "-v", "/not/there:/x", busybox, "true")
    assert failed.status == 125
    assert not (tmp_path / "other").exists()


def test_the_caller_has_the_last_word(cli: Cli, busybox: str, tmp_path: Path, engine: pyctrd.Engine) -> None:
    (tmp_path / "patch.json").write_text(json.dumps({"hostname": "patched", "linux": {"maskedPaths": None}}))
    script = "hostname; grep -c kcore /proc/mounts || true"
    assert look(cli, busybox, "--spec-patch", f"{tmp_path}/patch.json", script=script) == "patched\n0\n"
    hooks = {"createRuntime": [{"path": shutil.which("touch"), "args": ["touch", f"{tmp_path}/hooked"]}]}
    container = engine.containers.run(busybox, ["true"], hooks=hooks)
    container.wait(60)
    assert (tmp_path / "hooked").exists()
    whole = spec_of(container) | {"hostname": "whole", "hooks": {}}
    del whole["root"], whole["linux"]["cgroupsPath"]
    whole["root"] = {"path": "rootfs"}
    other = engine.containers.run(busybox, ["ignored"], spec_patch=whole)
    assert other.wait(60).exit_code == 0
    assert spec_of(other)["root"]["path"] != spec_of(container)["root"]["path"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-v", "/etc:/x:rx"], "unknown option 'rx'"),
        (["-v", "/etc:/x", "--tmpfs", "/x"], "two mounts at one place"),
        (["-v", "/etc:/"], "other than"),
        (["-v", "/etc:/a/../.."], "in the container"),
        (["-v", "/proc:/x:rshared"], "is private"),
        (["--mount", "type=bind,source=/etc"], "absolute path"),
        (["--mount", "type=bind,source=/etc,target=/x,sauce=1"], "unknown key 'sauce'"),
        (["--mount", "type=nfs,source=/etc,target=/x"], "type nfs"),
        (["--tmpfs", "/x:siz=1"], "did you mean size="),
        (["--read-only-tmpfs"], "can be written to anyway"),
        (["--cap-add", "NET_ADMN"], "did you mean NET_ADMIN"),
        (["--cap-add", "ALL", "--cap-drop", "ALL"], "added and dropped"),
        (["--security-opt", "secomp=unconfined"], "did you mean seccomp?"),
        (["--security-opt", "seccomp=/not/there"], "/not/there"),
        (["--device", "/etc/passwd"], "no device"),
        (["--device", "/dev/not-there"], "/dev/not-there"),
        (["--device", "vendor.com/none=0"], "vendor.com/none=0"),
        (["--device-cgroup-rule", "c 1 rwm"], "MAJOR:MINOR"),
        (["-m", "64m", "--memory-swap", "32m"], "memory and swap together"),
        (["--memory-swap", "1g"], "limit of memory too"),
        (["-m", "64m", "--memory-reservation", "1g"], "memory_reservation_bytes"),
        (["--memory-swappiness", "101"], "0 to 100"),
        (["--oom-kill-disable"], "limit of memory too"),
        (["--cpus", "1", "--cpu-quota", "5000"], "say the same"),
        (["--cpu-shares", "1"], "2 to 262144"),
        (["--cpu-quota", "10"], "at least 1000"),
        (["--cpuset-cpus", "9999"], "no 9999"),
        (["--cpuset-cpus", "one"], "ranges"),
        (["--pids-limit", "-2"], "at least -1"),
        (["--blkio-weight", "5"], "10 to 1000"),
        (["--device-read-bps", "/etc/passwd:1m"], "block device"),
        (["--device-read-bps", "/dev/x"], "PATH:RATE"),
        (["--shm-size", "0"], "at least 1"),
        (["--cgroup-parent", "relative"], "absolute path"),
        (["--pid", "other"], "container:NAME"),
        (["--pid", "host", "--init"], "first process"),
        (["--uts", "host", "--hostname", "x"], "has a name already"),
        (["--cgroupns", "container:x"], "private, host or a path"),
        (["--userns", "other"], "userns"),
        (["--sysctl", "vm.swappiness=1"], "whole host"),
        (["--sysctl", "net.core.somaxconn=1", "--network", "host"], "network namespace of its own"),
        (["--sysctl", "kernel.msgmax"], "NAME=VALUE"),
        (["--add-host", "db:nowhere"], "IP address"),
        (["--add-host", "db:host-gateway"], "host-gateway"),
        (["--dns", "example.test"], "IP address"),
        (["--group-add", "nobody-knows"], "nobody-knows"),
        (["--env-file", "/not/there"], "/not/there"),
        (["--pidfile", "/tmp/x"], "needs -d"),
        (["--spec-patch", "/etc/passwd"], "no JSON"),
        (["--init-path", "/etc/passwd"], "/etc/passwd"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(cli: Cli, busybox: str, words: list[str], told: str) -> None:
    done = cli("run", "--rm", *words, busybox, "true")
    assert done.status == 125
    assert told in done.err
    assert all(line.startswith(("pyctrd: ", "hint: ")) for line in done.err.splitlines())
    assert cli("ps", "-aq").out == ""


def test_what_this_host_lacks_is_named(engine: pyctrd.Engine, busybox: str) -> None:
    if not Path("/sys/module/apparmor").exists():
        with pytest.raises(UnsupportedError, match="AppArmor"):
            engine.containers.run(busybox, ["true"], security_opt=["apparmor=mine"])
    if not Path("/sys/fs/selinux/enforce").exists():
        with pytest.raises(UnsupportedError, match="SELinux"):
            engine.containers.run(busybox, ["true"], security_opt=["label=type:mine"])
        assert engine.containers.run(busybox, ["true"], security_opt=["label=disable"]).wait(60).exit_code == 0
    if missing := {"SYS_RESOURCE", "SYS_BOOT"} - {name.removeprefix("CAP_") for name in host_capabilities()}:
        with pytest.raises(UnsupportedError, match=min(missing)):
            engine.containers.run(busybox, ["true"], cap_add=[min(missing)])
    if cgroup_form() is CgroupForm.HYBRID and not Path("/sys/fs/cgroup/hugetlb").exists():
        with pytest.raises(UnsupportedError, match="hugetlb"):
            engine.containers.run(busybox, ["true"], hugetlb={"2MB": 1 << 21})
    with pytest.raises(InvalidError, match=r"process\.terminal"):
        engine.containers.run(busybox, ["true"], spec_patch={"process": {"terminal": True}})


def test_the_table_names_options_that_there_are(cli: Cli) -> None:
    text = (Path(__file__).parents[2] / "docs" / "docker-flags.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| `", "| |"))]
    assert len(rows) > 30
    for name in ("run", "create"):
        told = cli(name, "--help").out
        assert all(f"\n{heading}:\n" in told for heading in ("Files", "Security", "Limits", "Records"))
        flags = {flag for row in rows for flag in re.findall(r"`(--[a-z-]+)", " ".join(row[:2]))}
        known = set(re.findall(r"--[a-z-]+", told))
        assert flags - known == set()
    keywords = {word for row in rows for word in re.findall(r"`(\w+)`", row[-1])}
    assert keywords - set(pyctrd.ContainerOptions.__annotations__) == set()


def test_unusual_options_are_made_only_when_they_are_asked_for(cli: Cli, busybox: str) -> None:
    usual = run_command.make_context("run", ["--rm", "-v", "/a:/b", busybox, "true"])
    assert "privileged" not in usual.params
    assert run_command.make_context("run", ["--privileged", busybox]).params["privileged"] is True
    assert run_command.make_context("run", ["--mount=x", busybox]).params["mount"] == ("x",)
    wrong = cli("run", "--privilged", busybox, "true")
    assert (wrong.status, "--privileged" in wrong.err) == (2, True)
    environment = os.environ | {"PYCTRD_RUN_TMPFS": "/t"}
    words = command("run", "--rm", busybox, "sh", "-c", "grep -c ' /t ' /proc/mounts")
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1\n"
