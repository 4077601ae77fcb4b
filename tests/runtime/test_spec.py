"""Specs, users, seccomp, limits and control groups, with no container."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from pyctrd.errors import CommandNotFoundError, ConflictError, InvalidError, NotFoundError, UnsupportedError
from pyctrd.runtime.cgroup import CgroupForm, cgroup_form, check_runtime
from pyctrd.runtime.limits import Rlimit, clamp_oom_score_adj, clamp_rlimit
from pyctrd.runtime.runc import _refusal, clean, start_error
from pyctrd.runtime.seccomp import default_profile
from pyctrd.runtime.spec import DEFAULT_CAPABILITIES, Bind, build_spec
from pyctrd.runtime.users import FILE_MAX_BYTES, User, find_user
from tests.runtime.conftest import IMAGE, run_options


def build(image: Any = IMAGE, **options: Any) -> dict[str, Any]:
    return build_spec(
        image,
        run_options(options.pop("command", ("true",)), **options),
        container_id="0123456789abcdef",
        rootfs=Path("/rootfs"),
        user=User(5, 6, (7,), "/h"),
    )


def test_command_follows_entrypoint_and_replaces_the_images() -> None:
    image = dataclasses.replace(IMAGE, entrypoint=("/entry",), cmd=("a", "b"))
    assert build(image, command=())["process"]["args"] == ["/entry", "a", "b"]
    assert build(image, command=("c",))["process"]["args"] == ["/entry", "c"]
    assert build(image, command=(), entrypoint=("sh",))["process"]["args"] == ["sh"]
    assert build(image, command=("c",), entrypoint=())["process"]["args"] == ["c"]
    with pytest.raises(InvalidError, match="command"):
        build(image, command=(), entrypoint=())


def test_environment_has_defaults_that_the_image_and_then_the_user_replace() -> None:
    image = dataclasses.replace(IMAGE, env=("A=1", "B=2", "EMPTY="))
    assert build(image, env=("B=3=4",), terminal=True)["process"]["env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=0123456789ab",
        "TERM=xterm",
        "A=1",
        "B=3=4",
        "EMPTY=",
        "HOME=/h",
    ]
    for wrong in ("NAME", "=x", "A=\0"):
        with pytest.raises(InvalidError):
            build(env=(wrong,))


def test_defaults_confine_the_container() -> None:
    spec = build()
    assert spec["process"]["noNewPrivileges"] is True
    assert spec["process"]["user"] == {"uid": 5, "gid": 6, "additionalGids": [7]}
    assert "inheritable" not in spec["process"]["capabilities"]
    assert "CAP_SYS_ADMIN" not in spec["process"]["capabilities"]["bounding"]
    kinds = {namespace["type"] for namespace in spec["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "cgroup", "network"}
    assert "/proc/kcore" in spec["linux"]["maskedPaths"]
    assert "/proc/sys" in spec["linux"]["readonlyPaths"]
    assert spec["linux"]["cgroupsPath"] == "/pyctrd/0123456789abcdef"


@pytest.mark.parametrize(
    "options",
    [
        {"working_dir": "relative"},
        {"network": "bridge"},
        {"hostname": "x" * 65},
        {"memory_bytes": 1},
        {"cpus": 0},
        {"rlimits": (Rlimit("nonsense", 1, 1),)},
        {"rlimits": (Rlimit("nofile", 2, 1),)},
        {"oom_score_adj": 1001},
        {"command": ("a\0b",)},
        {"command": ("\udcff",)},
        {"env": ("A=\udcff",)},
        {"hostname": "\udcff"},
        {"network": "/\udcff"},
        {"mounts": (Bind("/\udcff", "/x"),)},
    ],
)
def test_option_that_cannot_be_used_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidError) as raised:
        build(**options)
    assert raised.value.field


def test_bind_reads_dockers_form(tmp_path: Path) -> None:
    assert Bind.parse("/a:/b") == Bind("/a", "/b")
    assert Bind.parse("/a:/b:ro").read_only
    assert Path(Bind.parse(".:/b").source) == Path.cwd()
    for wrong in ("", "name", "/a:b", "/a:/b:rx", "/a:/b:ro,rw"):
        with pytest.raises(InvalidError):
            Bind.parse(wrong)
    with pytest.raises(NotFoundError):
        build(mounts=(Bind(str(tmp_path / "missing"), "/b"),))


def make_etc(root: Path, passwd: str, group: str) -> Path:
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text(passwd)
    (root / "etc" / "group").write_text(group)
    return root


ACCOUNTS = "root:x:0:0::/root:\n# comment\nbroken\nweb:x:1000:1001::/srv:/bin/sh\nbig:x:99999999999:1::/:\n"
GROUP = "root:x:0:\nweb:x:1001:\nlogs:x:2000:other,web\nadmin:x:3000:web\n"


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (), "/root")),
        ("web", User(1000, 1001, (2000, 3000), "/srv")),
        ("1000", User(1000, 1001, (2000, 3000), "/srv")),
        ("web:logs", User(1000, 2000, (), "/srv")),
        ("web:77", User(1000, 77, (), "/srv")),
        ("4321", User(4321, 0, (), "/")),
        ("4321:8765", User(4321, 8765, (), "/")),
    ],
)
def test_user_is_found_by_name_and_by_number(tmp_path: Path, text: str, user: User) -> None:
    assert find_user(make_etc(tmp_path, ACCOUNTS, GROUP), text) == user


def test_user_that_is_nowhere_is_not_found(tmp_path: Path) -> None:
    root = make_etc(tmp_path, ACCOUNTS, GROUP)
    with pytest.raises(NotFoundError, match="user not found: nobody"):
        find_user(root, "nobody")
    with pytest.raises(NotFoundError, match="group not found: nobody"):
        find_user(root, "web:nobody")
    for wrong in ("2147483648", "web:9999999999999", "web:", "big"):
        with pytest.raises((InvalidError, NotFoundError)):
            find_user(root, wrong)


def test_numbers_need_no_files(tmp_path: Path) -> None:
    assert find_user(tmp_path, "12:34") == User(12, 34, (), "/")
    assert find_user(tmp_path, "") == User()


def test_users_of_the_host_are_never_read(tmp_path: Path) -> None:
    outside = make_etc(tmp_path / "outside", "spy:x:7:7::/:\n", "")
    root = make_etc(tmp_path / "root", ACCOUNTS, GROUP)
    (root / "etc" / "passwd").unlink()
    (root / "etc" / "passwd").symlink_to(outside / "etc" / "passwd")
    with pytest.raises(NotFoundError):
        find_user(root, "spy")
    (root / "real").write_text(ACCOUNTS)
    (root / "etc" / "passwd").unlink()
    (root / "etc" / "passwd").symlink_to("/real")
    assert find_user(root, "web").uid == 1000


def test_user_files_that_are_traps_are_refused(tmp_path: Path) -> None:
    root = make_etc(tmp_path, "", "")
    (root / "etc" / "passwd").unlink()
    os.mkfifo(root / "etc" / "passwd")
    with pytest.raises(InvalidError, match="regular file"):
        find_user(root, "web")
    (root / "etc" / "passwd").unlink()
    with (root / "etc" / "passwd").open("wb") as file:
        file.truncate(FILE_MAX_BYTES + 1)
    with pytest.raises(InvalidError, match="at most"):
        find_user(root, "web")


def allowed(profile: dict[str, Any]) -> set[str]:
    rules = profile["syscalls"]
    return {
        name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule for name in rule["names"]
    }


def test_seccomp_profile_opens_with_capabilities() -> None:
    default = allowed(default_profile(DEFAULT_CAPABILITIES, machine="x86_64"))
    assert {"read", "openat", "chroot", "arch_prctl"} <= default
    assert not {"mount", "clone", "clone3", "socket", "bpf", "io_uring_setup", "reboot"} & default
    admin = allowed(default_profile({"CAP_SYS_ADMIN"}, machine="x86_64"))
    assert {"mount", "clone", "clone3"} <= admin
    assert "chroot" not in admin
    assert "set_tls" in allowed(default_profile((), machine="aarch64"))
    with pytest.raises(UnsupportedError):
        default_profile((), machine="vax")


def test_seccomp_answers_clone3_with_enosys() -> None:
    rules = default_profile((), machine="x86_64")["syscalls"]
    assert {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38} in rules


def test_oom_score_is_clamped_to_what_the_host_allows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pyctrd.runtime")
    assert clamp_oom_score_adj(-500, current=100, may_raise=True) == -500
    assert clamp_oom_score_adj(500, current=100, may_raise=False) == 500
    assert not caplog.records
    assert clamp_oom_score_adj(-500, current=100, may_raise=False) == 100
    assert "clamped" in caplog.text


def test_rlimit_is_clamped_to_what_the_host_allows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pyctrd.runtime")
    asked = Rlimit("nofile", 500, 5000)
    assert clamp_rlimit(asked, host_hard=100, may_raise=True)["hard"] == 5000
    assert clamp_rlimit(asked, host_hard=-1, may_raise=False)["hard"] == 5000
    assert not caplog.records
    assert clamp_rlimit(asked, host_hard=100, may_raise=False) == {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100}
    assert "clamped" in caplog.text
    assert clamp_rlimit(Rlimit("core", -1, -1), host_hard=-1)["hard"] == 2**64 - 1


V1 = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "form"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", CgroupForm.V2),
        (V1, CgroupForm.V1),
        (V1 + "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n", CgroupForm.HYBRID),
        ("proc /proc proc rw 0 0\n", CgroupForm.NONE),
    ],
)
def test_cgroup_form_is_read_from_the_mounts(mounts: str, form: CgroupForm) -> None:
    assert cgroup_form(mounts) is form


def test_crun_on_hybrid_cgroups_is_refused_before_it_is_run() -> None:
    check_runtime("/usr/bin/crun", CgroupForm.V2)
    check_runtime("runc", CgroupForm.HYBRID)
    with pytest.raises(UnsupportedError, match="hybrid") as raised:
        check_runtime("/usr/bin/crun", CgroupForm.HYBRID)
    assert "runc" in raised.value.hint


def test_runtimes_words_become_one_line() -> None:
    text = (
        'time="2026-01-01T00:00:00Z" level=warning msg="careful"\n'
        'runc run failed: unable to start container process: exec: "x": no such file or directory: unknown\n'
    )
    assert clean(text) == 'exec: "x": no such file or directory'
    assert clean('time="2026-01-01T00:00:00Z" level=error msg="bad \\"x\\""') == 'bad "x"'
    assert clean("") == "the runtime gave no reason"
    line = {
        "level": "ERROR",
        "message": "failed to create container: executable 'x' not found in $PATH\n\nStack backtrace:\n  0: y",
    }
    assert clean(json.dumps(line)) == "executable 'x' not found in $PATH"
    assert isinstance(start_error([], 1, json.dumps(line), container_id="c"), CommandNotFoundError)
    assert (
        clean("Error: outer\n\nCaused by:\n    0: middle\n    1: inner\n\nStack backtrace:\n   0: <unknown>\n")
        == "inner"
    )
    assert clean('{"not": "a message"}') == '{"not": "a message"}'
    assert clean('{"level": "error", "msg": "cut \\"off\\"') == 'cut "off"'
    assert "container one: cannot start" in str(start_error(["runc"], 1, text, container_id="one"))
    refusal = _refusal(["runc"], 1, "container not running\n", verb="kill", container_id="one")
    assert isinstance(refusal, ConflictError)
