"""What opencontainers/runtime-tools says of the bundles that are written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import pyctrd
from tests.runtime.conftest import Host

TOOL = "oci-runtime-tool"
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which(TOOL) is None, reason=f"{TOOL} is not installed: make oci-runtime-tool"),
]


def validate(bundle: Path) -> list[str]:
    """What the tool finds in a bundle.

    It fetches the specification's JSON schema from the web, and says where it cannot: that is no fault of a bundle.
    """
    words = [TOOL, "--log-level", "error", "validate", "--path", str(bundle)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    found = done.stderr.replace("\\n", "\n").replace("\\t", "\t").splitlines()
    told = [line.strip().removeprefix("* ") for line in found if line.strip().startswith("* ")] or [done.stderr]
    return [line for line in told if "config-schema.json" not in line]


def test_bundles_are_valid(host: Host, state: Path, tmp_path: Path) -> None:
    del state
    (tmp_path / "shown").mkdir()
    with pyctrd.Engine() as engine:
        plain = engine.containers.create(None, ["true"], rootfs=host.rootfs, overlay=True)
        full = engine.containers.create(
            None,
            ["/bin/sh", "-c", "true"],
            rootfs=host.rootfs,
            overlay=True,
            env={"A": "b"},
            user="1000:1001",
            group_add=["logs"],
            working_dir="/tmp",
            hostname="here",
            domainname="example.org",
            terminal=True,
            init=True,
            read_only=True,
            read_only_tmpfs=True,
            binds=[f"{tmp_path}/shown:/shown:ro,nosuid", "data:/data"],
            tmpfs=["/t:size=1m,mode=1777"],
            memory_bytes=64 << 20,
            memory_swap_bytes=128 << 20,
            cpus=0.5,
            cpu_shares=512,
            cpuset_cpus="0",
            pids=100,
            rlimits=["nofile=100:200"],
            oom_score_adj=100,
            cap_add=["NET_ADMIN"],
            cap_drop=["MKNOD"],
            devices=["/dev/null:/dev/nothing:rw"],
            device_cgroup_rules=["c 10:229 rwm"],
            sysctls={"net.ipv4.ip_forward": "1"},
            security_opt=["mask=/proc/cpuinfo"],
            add_hosts=["other:192.0.2.1"],
            dns=["192.0.2.2"],
            annotations={"org.example.key": "value"},
            hooks={"poststop": [{"path": "/bin/true", "args": ["true"], "timeout": 5}]},
            ipc="private",
            cgroupns="private",
        )
        try:
            for container in (plain, full):
                bundle = Path(container.inspect()["bundle_path"])
                assert validate(bundle) == []
            # That the tool does look: what no runtime would take is found.
            spec = json.loads((bundle / "config.json").read_text())
            spec["process"]["cwd"] = "relative"
            (bundle / "config.json").write_text(json.dumps(spec))
            assert any("cwd" in line for line in validate(bundle))
        finally:
            for container in (plain, full):
                container.delete(force=True, volumes=True)
            engine.volumes.prune(named=True)
