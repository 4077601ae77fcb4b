"""What users' words become in ``config.json``, with no container."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyctrd.container_options import resource_limits, run_options
from pyctrd.errors import InvalidError, NotFoundError, UnsupportedError
from pyctrd.runtime.cgroup import CgroupForm
from pyctrd.runtime.features import check_recursive_read_only, read_features
from pyctrd.runtime.init import find_init, is_static
from pyctrd.runtime.mount_options import parse_mount, parse_tmpfs, parse_volume
from pyctrd.runtime.mounts import Bind, Tmpfs, Volume
from pyctrd.runtime.names import hosts_text, resolv_text
from pyctrd.runtime.patch import merge_patch, patch_spec
from pyctrd.runtime.resources import ResourceLimits, check_controllers, resources
from pyctrd.runtime.seccomp_profile import load_profile
from pyctrd.runtime.security import DEFAULT_CAPABILITIES, Security
from pyctrd.runtime.security_options import CAPABILITIES, choose_capabilities, host_capabilities, read_security
from pyctrd.runtime.spec import build_spec
from pyctrd.runtime.users import User
from tests.runtime.conftest import IMAGE


def build(**options: Any) -> dict[str, Any]:
    """The spec that a caller's keywords give."""
    wanted = run_options(["true"], options)  # type: ignore[arg-type]  # the tests' own keywords
    return build_spec(IMAGE, wanted, container_id="0123456789abcdef", rootfs=Path("/rootfs"), user=User())


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/a:/b", Bind("/a", "/b")),
        ("/a:/b:ro,z", Bind("/a", "/b", read_only=True)),
        ("/a:/b:rro", Bind("/a", "/b", read_only=True, recursive_read_only=True)),
        ("/a:/b:rshared,nosuid", Bind("/a", "/b", propagation="rshared", flags=("nosuid",))),
        ("/a:/b:bind", Bind("/a", "/b", recursive=False)),
        ("data:/b:nocopy,ro", Volume("data", "/b", read_only=True, copy=False)),
        ("/b", Volume("", "/b")),
    ],
)
def test_volumes_are_read(text: str, mount: Any) -> None:
    assert parse_volume(text) == mount


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("type=bind,src=/a,dst=/b,ro", Bind("/a", "/b", read_only=True)),
        ("type=bind,source=/a,target=/b,bind-propagation=rslave", Bind("/a", "/b", propagation="rslave")),
        ("type=bind,source=/a,target=/b,readonly=false,bind-recursive=disabled", Bind("/a", "/b", recursive=False)),
        ("source=data,target=/b,volume-nocopy", Volume("data", "/b", copy=False)),
        ("type=tmpfs,target=/b", Tmpfs("/b")),
        ("type=tmpfs,dst=/b,tmpfs-size=1m", Tmpfs("/b", ("noexec", "nosuid", "nodev", "size=1m"))),
    ],
)
def test_mounts_are_read(text: str, mount: Any) -> None:
    assert parse_mount(text) == mount


@pytest.mark.parametrize(
    "text", ["", ":", "a:b:c:d", "/a:/b:", "/a:b", "/a:/b:ro,wx", "../x:y", "-x:/b", "d:/b:rro", "/a:/"]
)
def test_volumes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_volume(text)


@pytest.mark.parametrize(
    "text",
    [
        "type=bind,target=/b",
        "type=bind,source=/a,source=/c,target=/b",
        "type=bind,source=/a,target=/b,bind-recursive=readonly",
        "type=bind,source=/a,target=/b,bind-propagation=up",
        "type=tmpfs,target=/b,tmpfs-size=many",
        "type=tmpfs,target=/b,source=/a",
        "type=volume,source=/a,target=/b",
        "type=bind,source=/a,target=/b,ro=perhaps",
    ],
)
def test_mounts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_mount(text)


def test_memory_has_flags_unless_they_are_given() -> None:
    assert parse_tmpfs("/t:exec,size=5%") == Tmpfs("/t", ("nosuid", "nodev", "exec", "size=5%"))


def test_a_mount_of_the_users_stands_in_place_of_a_usual_one(tmp_path: Path) -> None:
    spec = build(binds=[f"{tmp_path}:/dev"], tmpfs=["/sys"])
    places = [mount["destination"] for mount in spec["mounts"]]
    assert places == ["/proc", "/sys/fs/cgroup", "/dev", "/sys"]
    assert {mount["type"] for mount in spec["mounts"] if mount["destination"] in ("/dev", "/sys")} == {"bind", "tmpfs"}
    assert "/dev/shm" not in [mount["destination"] for mount in build(ipc="none")["mounts"]]


def test_capabilities_count_for_privileged_and_all() -> None:
    host = ("CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN")
    assert choose_capabilities((), (), host=host) == DEFAULT_CAPABILITIES
    assert choose_capabilities(["ALL"], ["kill"], host=host) == ("CAP_CHOWN", "CAP_SYS_ADMIN")
    assert choose_capabilities((), ["cap_kill"], privileged=True, host=host) == ("CAP_CHOWN", "CAP_SYS_ADMIN")
    with pytest.raises(UnsupportedError, match="CAP_BPF"):
        choose_capabilities(["BPF"], (), host=host)
    with pytest.raises(InvalidError):
        choose_capabilities((), ["NOTHING"], host=host)
    assert host_capabilities("CapBnd:\t0000000000000003\n") == ("CAP_CHOWN", "CAP_DAC_OVERRIDE")
    assert len(CAPABILITIES) == 41


def test_security_options_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_security(["no-new-privileges"]) == (Security(), True)
    assert read_security(["no-new-privileges:false", "mask=/a:/b", "unmask=/proc/*"]) == (
        Security(masked=("/a", "/b"), unmasked=("/proc/*",)),
        False,
    )
    (tmp_path / "on").write_text("Y\n")
    monkeypatch.setattr("pyctrd.runtime.security_options.APPARMOR", tmp_path / "on")
    monkeypatch.setattr("pyctrd.runtime.security_options.SELINUX", tmp_path / "on")
    found, _ = read_security(["apparmor=mine", "label=type:spc_t", "label=level:s0:c1,c2"])
    assert found == Security(apparmor="mine", selinux="system_u:system_r:spc_t:s0:c1,c2")
    process = build(security_opt=["apparmor=mine", "label=type:spc_t"])["process"]
    assert process["apparmorProfile"] == "mine"
    assert process["selinuxLabel"] == "system_u:system_r:spc_t:s0"
    for wrong in ("mask=relative", "label=user", "seccomp=", "no-new-privileges=maybe", "systempaths=all"):
        with pytest.raises(InvalidError):
            read_security([wrong])


def profile(tmp_path: Path, document: Any, *capabilities: str, kernel: str = "5.10.0") -> dict[str, Any]:
    """A profile, loaded for amd64."""
    path = tmp_path / "profile.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return load_profile(str(path), capabilities, machine="x86_64", kernel=kernel)


def test_rules_of_a_profile_count_by_their_conditions(tmp_path: Path) -> None:
    rule = {"action": "SCMP_ACT_ALLOW"}
    argument = {"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        ],
        "syscalls": [
            {**rule, "name": "always", "args": [argument], "comment": "x"},
            {**rule, "names": ["new"], "includes": {"minKernel": "4.8"}},
            {**rule, "names": ["newer"], "includes": {"minKernel": "5.11"}},
            {**rule, "names": ["old"], "excludes": {"minKernel": "5.10"}},
            {**rule, "names": ["admin"], "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {**rule, "names": ["no-admin"], "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {**rule, "names": ["arm"], "includes": {"arches": ["arm64"]}},
            {**rule, "names": ["no-x86"], "excludes": {"arches": ["amd64"]}},
        ],
    }
    found = profile(tmp_path, document)
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert found["defaultErrnoRet"] == 1
    assert [rule["names"] for rule in found["syscalls"]] == [["always"], ["new"], ["no-admin"]]
    assert found["syscalls"][0]["args"] == [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]
    admin = profile(tmp_path, document, "CAP_SYS_ADMIN", kernel="6.1")
    assert [rule["names"] for rule in admin["syscalls"]] == [["always"], ["new"], ["newer"], ["admin"]]


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        {"defaultAction": "ALLOW"},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_NO"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [7]},
        {"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "x"}], "architectures": ["y"]},
    ],
)
def test_profiles_that_are_none_are_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(InvalidError, match=r"profile\.json"):
        profile(tmp_path, document)


def test_limits_have_the_specs_form() -> None:
    assert resources(ResourceLimits(memory_bytes=1 << 26, memory_swap_bytes=-1, pids=-1, cpus=0.5)) == {
        "memory": {"limit": 1 << 26, "swap": -1},
        "pids": {"limit": -1},
        "cpu": {"period": 100_000, "quota": 50_000},
    }
    assert resources(resource_limits({"hugetlb": {"2MB": 1 << 21}, "name": "x", "blkio_weight": 10})) == {
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 21}],
        "blockIO": {"weight": 10},
    }


def test_controllers_that_a_host_lacks_are_named(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    limit = ResourceLimits(memory_bytes=1 << 26)
    check_controllers(limit, CgroupForm.V1, root=str(tmp_path))
    with pytest.raises(UnsupportedError, match="swap"):
        check_controllers(ResourceLimits(memory_bytes=1 << 26, memory_swap_bytes=-1), CgroupForm.V1, root=str(tmp_path))
    with pytest.raises(UnsupportedError, match="pids"):
        check_controllers(ResourceLimits(pids=5), CgroupForm.V1, root=str(tmp_path))
    with pytest.raises(UnsupportedError, match="memory"):
        check_controllers(limit, CgroupForm.NONE, root=str(tmp_path))
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    check_controllers(
        ResourceLimits(memory_bytes=1 << 26, cpus=0.5, blkio_weight=20), CgroupForm.V2, root=str(tmp_path)
    )
    for lacking in ({"hugetlb": {"2MB": 1}}, {"memory_swappiness": 1}, {"cpuset_mems": "0"}):
        with pytest.raises(UnsupportedError):
            check_controllers(resource_limits(lacking), CgroupForm.V2, root=str(tmp_path))


def test_a_namespace_is_its_own_the_hosts_or_a_paths() -> None:
    spec = build(pid="host", ipc="ns:/proc/1/ns/ipc", uts="host", network="/run/netns/x", cgroupns="host")
    assert spec["linux"]["namespaces"] == [
        {"type": "mount"},
        {"type": "ipc", "path": "/proc/1/ns/ipc"},
        {"type": "network", "path": "/run/netns/x"},
    ]
    assert "hostname" not in spec
    with pytest.raises(InvalidError, match="container:one"):
        build(pid="container:one")  # a flow has to find it first


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_patches_merge_as_rfc_7396_shows(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@pytest.mark.parametrize(
    "patch",
    [
        {"process": {"args": []}},
        {"process": {"args": ["a", 1]}},
        {"process": {"cwd": "relative"}},
        {"process": None},
        {"mounts": [{"source": "/x"}]},
        {"hooks": {"sometime": []}},
        {"root": {"path": "/"}},
        {"linux": {"cgroupsPath": "/"}},
        {"linux": {"sysctl": {"a": 1}}},
    ],
)
def test_a_patch_that_makes_no_spec_is_refused(patch: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="spec_patch"):
        patch_spec(build(), patch)
    with pytest.raises(InvalidError, match="hooks"):
        build(hooks={"poststop": [{"path": "relative"}]})


def test_name_files_say_what_the_user_says() -> None:
    assert hosts_text(["a=::1"], hostname="own", base="127.0.0.1 localhost").endswith("localhost\n::1\ta\n")
    base = "# x\nnameserver 10.0.0.1\nsearch old.test\noptions edns0\n"
    assert resolv_text(servers=["10.0.0.2"], search=["."], options=[], base=base) == (
        "nameserver 10.0.0.2\noptions edns0\n"
    )
    assert "search old.test\n" in resolv_text(servers=[], search=[], options=["ndots:1"], base=base)
    for wrong in ("a", ":1.2.3.4", "a b:1.2.3.4", "a:1.2.3", "a\n:1.2.3.4"):
        with pytest.raises(InvalidError):
            hosts_text([wrong], hostname="")


def test_features_are_asked_for_again_when_the_program_changes(tmp_path: Path) -> None:
    program = tmp_path / "runtime"
    program.write_text("#!/bin/sh\necho 'unknown command' >&2\nexit 1\n")
    program.chmod(0o755)
    assert read_features(str(program)) == {}
    with pytest.raises(UnsupportedError, match="rro"):
        check_recursive_read_only(str(program))
    program.write_text('#!/bin/sh\necho x >> "$0.asked"\necho \'{"mountOptions": ["ro", "rro"]}\'\n')
    for _ in range(2):
        check_recursive_read_only(str(program))
    assert (tmp_path / "runtime.asked").read_text() == "x\n"


def test_an_init_has_to_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    (tmp_path / "script").chmod(0o755)
    assert not is_static(str(tmp_path / "script"))
    with pytest.raises(InvalidError, match="static"):
        find_init(str(tmp_path / "script"))
    with pytest.raises(NotFoundError):
        find_init(str(tmp_path / "missing"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("pyctrd.runtime.init.DIRECTORIES", ())
    monkeypatch.setattr("pyctrd.runtime.init.SHIM", tmp_path / "script")
    with pytest.raises(UnsupportedError, match="init"):
        find_init()
    if os.access("/bin/busybox", os.X_OK) and is_static("/bin/busybox"):
        assert find_init("/bin/busybox").read_only


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"memmory_bytes": 1}, "memmory_bytes"),
        ({"binds": "/a:/b"}, "sequence"),
        ({"devices": "/dev/null"}, "sequence"),
        ({"cgroup_parent": "/a/../b"}, "absolute path"),
    ],
)
def test_keywords_that_would_be_passed_over_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidError, match=told):
        build(**options)


def test_all_devices_are_the_hosts() -> None:
    spec = build(privileged=True)
    paths = {entry["path"] for entry in spec["linux"]["devices"]}
    assert "/dev/null" in paths
    assert not paths & {"/dev/ptmx", "/dev/console"}
    assert spec["linux"]["resources"]["devices"][-1] == {"allow": True, "access": "rwm"}
    assert spec["linux"]["maskedPaths"] == spec["linux"]["readonlyPaths"] == []
    assert "seccomp" not in spec["linux"]
