"""Devices by their vendors' descriptions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyctrd.errors import ConflictError, InvalidError, NotFoundError, UnsupportedError
from pyctrd.runtime.cdi import apply_devices, is_cdi

NAME = "vendor.com/gpu=0"


def describe(path: Path, edits: Any, *, version: str = "0.7.0", name: str = "0", common: Any = None) -> None:
    """Write a description."""
    document = {"cdiVersion": version, "kind": "vendor.com/gpu", "devices": [{"name": name, "containerEdits": edits}]}
    if common is not None:
        document["containerEdits"] = common
    path.write_text(json.dumps(document))


def make_spec() -> dict[str, Any]:
    """A spec with what edits change."""
    return {
        "process": {"env": ["A=1"], "user": {"uid": 0}},
        "mounts": [],
        "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
    }


def test_names_are_told_from_paths() -> None:
    assert is_cdi(NAME)
    assert is_cdi("a.b/c-d=all")
    assert not any(
        is_cdi(text) for text in ("/dev/x", "/dev/x:/dev/y=z", "vendor/gpu", "vendor=0", "/a=b", "v/g=", "v/g=-x")
    )


def test_all_edits_are_made(tmp_path: Path) -> None:
    edits = {
        "env": ["A=2", "B=3"],
        "deviceNodes": [
            {"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw", "uid": 5},
            {"path": "/dev/gpu1", "type": "c", "major": 195, "minor": 1},
        ],
        "mounts": [{"hostPath": "/etc", "containerPath": "/driver"}],
        "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true"], "timeout": 5}],
        "additionalGids": [44, 0],
        "intelRdt": {"closID": "x"},
    }
    describe(tmp_path / "v.json", edits, common={"env": ["COMMON=1"]})
    spec = make_spec()
    apply_devices(spec, [NAME, NAME], [str(tmp_path)])
    assert spec["process"]["env"] == ["COMMON=1", "A=2", "B=3"]
    null = Path("/dev/null").stat().st_rdev
    first, second = spec["linux"]["devices"]
    assert first == {"path": "/dev/gpu0", "type": "c", "major": os.major(null), "minor": os.minor(null), "uid": 5}
    assert (second["major"], second["minor"]) == (195, 1)
    assert [rule.get("access") for rule in spec["linux"]["resources"]["devices"]] == ["rwm", "rw", "rwm"]
    assert spec["mounts"] == [
        {"destination": "/driver", "type": "bind", "source": "/etc", "options": ["rbind", "ro", "nosuid", "nodev"]}
    ]
    assert spec["hooks"] == {"createContainer": [{"path": "/bin/true", "args": ["true"], "timeout": 5}]}
    assert spec["process"]["user"]["additionalGids"] == [44]
    assert spec["linux"]["intelRdt"] == {"closID": "x"}


def test_the_later_directory_counts_and_twice_in_one_is_a_conflict(tmp_path: Path) -> None:
    first, second = tmp_path / "etc", tmp_path / "run"
    first.mkdir()
    second.mkdir()
    describe(first / "a.json", {"env": ["WHICH=etc"]})
    describe(second / "a.json", {"env": ["WHICH=run"]})
    spec = make_spec()
    apply_devices(spec, [NAME], [str(first), str(second)])
    assert "WHICH=run" in spec["process"]["env"]
    describe(second / "b.json", {})
    with pytest.raises(ConflictError, match=r"a\.json and .*b\.json"):
        apply_devices(make_spec(), [NAME], [str(first), str(second)])


@pytest.mark.parametrize(
    ("edits", "version", "error", "told"),
    [
        ({}, "9.9.9", UnsupportedError, "9.9.9"),
        ({"netDevices": []}, "1.0.0", UnsupportedError, "netDevices"),
        ({"deviceNodes": [{"path": "/dev/not-there"}]}, "0.6.0", NotFoundError, "/dev/not-there"),
        ({"deviceNodes": [{"path": "/etc/passwd"}]}, "0.6.0", InvalidError, "/etc/passwd"),
        ({"deviceNodes": [7]}, "0.6.0", InvalidError, NAME),
        ({"mounts": [{"hostPath": "/not/there", "containerPath": "/x"}]}, "0.6.0", NotFoundError, "/not/there"),
        ({"mounts": [{"hostPath": "/etc", "containerPath": "x"}]}, "0.6.0", InvalidError, "absolute"),
        ({"hooks": [{"hookName": "never", "path": "/x"}]}, "0.6.0", InvalidError, "never"),
    ],
)
def test_what_cannot_be_applied_is_refused(
    tmp_path: Path, edits: Any, version: str, error: type[Exception], told: str
) -> None:
    describe(tmp_path / "v.json", edits, version=version)
    with pytest.raises(error, match=told):
        apply_devices(make_spec(), [NAME], [str(tmp_path)])


def test_a_device_that_is_nowhere_is_not_found_and_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=NAME):
        apply_devices(make_spec(), [NAME], [str(tmp_path), str(tmp_path / "missing")])
    (tmp_path / "v.yaml").write_text("cdiVersion: 0.6.0\n")
    with pytest.raises(UnsupportedError, match=r"v\.yaml"):
        apply_devices(make_spec(), [NAME], [str(tmp_path)])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InvalidError, match="broken"):
        apply_devices(make_spec(), [NAME], [str(tmp_path)])
