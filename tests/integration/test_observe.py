"""What running containers use and how they are changed: statistics, processes, limits, names, filters, inspection."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd import aio
from pyctrd.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, PyctrdError
from pyctrd.runtime.cgroups import Groups
from pyctrd.runtime.runc import Runc
from tests.children import until
from tests.images import Images
from tests.integration.conftest import Cli, command

pytestmark = pytest.mark.root

MIB = 1 << 20
DEADLINE_SECONDS = 60.0
# Keys of ``Container.inspect`` that were once given: none may go.
INSPECTED = {
    *("id", "name", "namespace", "image", "image_digest", "command", "labels", "created", "created_ns", "state", "pid"),
    *("started", "started_ns", "exited", "exited_ns", "exit_code", "signal", "oom", "reason", "error", "env"),
    *("working_dir", "user", "terminal", "capabilities", "no_new_privileges", "hostname", "user_namespace"),
    *("network", "mounts"),
    *("read_only", "limits", "stop_signal", "auto_remove", "cgroup_path", "bundle_path", "rootfs_path", "log_path"),
    *("runtime", "snapshotter", "size_bytes", "restart_policy", "restart_count", "stop_timeout"),
    *("health", "health_check"),
}


@pytest.fixture
def busybox(engine: pyctrd.Engine, images: Images) -> pyctrd.Image:
    """An image that is in the store already."""
    return engine.images.pull(images.busybox.reference)


@pytest.fixture
def sleeper(engine: pyctrd.Engine, busybox: pyctrd.Image) -> pyctrd.Container:
    """A container that sleeps, with some limits."""
    container = engine.containers.run(
        busybox, ["sleep", "1000"], name="sleeper", memory_bytes=64 * MIB, pids=50, labels={"role": "test"}
    )
    until(lambda: [one.command for one in container.top()] == ["sleep 1000"])  # until then it is the runtime's own
    return container


def group_files(container: pyctrd.Container, v1: str, v2: str) -> str:
    """A file of its control group."""
    path = container.inspect()["cgroup_path"]
    places = (Path("/sys/fs/cgroup") / v1.partition(".")[0] / path.strip("/") / v1, Path(f"/sys/fs/cgroup{path}/{v2}"))
    return next(place.read_text() for place in places if place.exists()).strip()


def test_stats_tell_what_a_running_container_uses(engine: pyctrd.Engine, sleeper: pyctrd.Container) -> None:
    found = sleeper.stats()
    assert (found.id, found.name) == (sleeper.id, "sleeper")
    assert found.cpu.usage_ns
    assert found.memory.limit_bytes == 64 * MIB
    assert found.memory.usage_bytes is not None
    assert 0 < found.memory.usage_bytes <= 64 * MIB
    assert (found.pids, found.pids_limit) == (1, 50)
    assert [interface.name for interface in found.network] == ["lo"]
    assert [one.id for one in engine.containers.stats()] == [sleeper.id]
    assert found.cpu_percent(found) == 0.0


def test_stats_of_a_paused_one_can_be_read_and_of_one_that_does_not_run_not(sleeper: pyctrd.Container) -> None:
    sleeper.pause()
    assert sleeper.stats().pids == 1
    sleeper.resume()
    sleeper.stop(0)
    for call in (sleeper.stats, sleeper.stats_stream, sleeper.top):
        with pytest.raises(ConflictError, match="is stopped, must be running"):
            call()


def test_a_stream_of_stats_counts_on_and_ends_with_the_container(sleeper: pyctrd.Container) -> None:
    with pytest.raises(InvalidError, match="interval"):
        sleeper.stats_stream(0)
    stream = sleeper.stats_stream(0.02)
    first, second = next(stream), next(stream)
    assert first.time_ns < second.time_ns
    sleeper.kill()
    assert all(sample.id == sleeper.id for sample in stream)
    # Long before the interval is over.
    sleeper.wait()
    sleeper.start()
    stream = sleeper.stats_stream(3600)
    next(stream)
    sleeper.kill()
    assert list(stream) == []


def test_the_share_of_processors_is_seen(engine: pyctrd.Engine, busybox: pyctrd.Image) -> None:
    busy = engine.containers.run(busybox, ["sh", "-c", "while :; do :; done"])
    stream = busy.stats_stream(0.3)
    first, second = next(stream), next(stream)
    assert 0 < second.cpu_percent(first) <= 100.0 * (os.cpu_count() or 1)


def test_top_tells_processes_by_host_and_container(engine: pyctrd.Engine, busybox: pyctrd.Image) -> None:
    script = "sleep 1000 & exec sleep 2000"
    container = engine.containers.run(busybox, ["sh", "-c", script], user="65534")
    until(lambda: [one.command for one in container.top()] == ["sleep 2000", "sleep 1000"])
    init, child = container.top()
    assert (init.pid, init.container_pid) == (container.status.pid, 1)
    assert child.ppid == init.pid
    assert child.container_pid > 1
    assert {one.state for one in (init, child)} <= {"S", "R"}
    assert init.user == child.user
    assert init.user in ("nobody", "65534")
    assert init.rss_bytes > 0
    assert init.threads == 1


def test_whatever_a_process_calls_itself_is_shown_as_text(
    cli: Cli, engine: pyctrd.Engine, busybox: pyctrd.Image
) -> None:
    script = 'printf \'#!/bin/sh\\nsleep 1000; :\\n\' > "$F"; chmod +x "$F"; exec "$F"'
    name = "/tmp/a) R 1 (\x1b[2J\n"
    strange = engine.containers.run(busybox, ["sh", "-c", script], env={"F": name}, name="strange")
    until(lambda: [one.command for one in strange.top()] == [f"/bin/sh {name}", "sleep 1000"])
    assert strange.top()[0].state == "S"
    done = cli("top", "strange")
    assert (done.status, done.out.count("\n")) == (0, 3)
    assert "\x1b" not in done.out


def test_update_changes_limits_at_once_and_for_the_next_start(sleeper: pyctrd.Container) -> None:
    sleeper.update(memory_bytes=128 * MIB, pids=70, cpu_shares=512, cpus=0.5)

    def is_new() -> bool:
        stats = sleeper.stats()
        return (stats.memory.limit_bytes, stats.pids_limit) == (128 * MIB, 70)

    assert is_new()
    assert group_files(sleeper, "memory.limit_in_bytes", "memory.max") == str(128 * MIB)
    assert group_files(sleeper, "pids.max", "pids.max") == "70"
    limits = sleeper.inspect()["limits"]
    assert (limits["memory_bytes"], limits["pids"], limits["cpu_shares"], limits["cpus"]) == (128 * MIB, 70, 512, 0.5)
    sleeper.restart(0)
    assert is_new()
    sleeper.update(memory_bytes=-1, pids=0, cpus=0)
    stats = sleeper.stats()
    assert (stats.memory.limit_bytes, stats.pids_limit) == (None, None)
    limits = sleeper.inspect()["limits"]
    assert (limits["memory_bytes"], limits["pids"], limits["cpus"], limits["cpu_shares"]) == (None, None, None, 512)
    sleeper.pause()
    sleeper.update(pids=44)
    assert sleeper.status.state == "paused"
    assert sleeper.stats().pids_limit == 44
    sleeper.resume()
    sleeper.stop(0)
    sleeper.update(memory_bytes=32 * MIB)
    sleeper.start()
    assert sleeper.stats().memory.limit_bytes == 32 * MIB
    assert "updated" in [event.action for event in _events(sleeper)]


def _events(container: pyctrd.Container) -> list[pyctrd.Event]:
    with pyctrd.Engine() as engine:
        return list(engine.events(containers=[container.id]))


def test_what_is_refused_changes_nothing(engine: pyctrd.Engine, busybox: pyctrd.Image) -> None:
    script = (
        "x=$(dd if=/dev/zero bs=1M count=30 2>/dev/null | tr '\\0' x); echo full; sleep 1000; echo $x"  # which holds it
    )
    container = engine.containers.run(busybox, ["sh", "-c", script], memory_bytes=200 * MIB, pids=50)
    until(lambda: "full" in container.logs())
    config = Path(container.inspect()["bundle_path"]) / "config.json"
    before = config.read_bytes()
    refused = [
        {"memory_bytes": 1},
        {"memory_bytes": 64 * MIB, "memory_swap_bytes": 32 * MIB},
        {"cpus": 1000.0},
        {"cpu_shares": 1},
        {"cpuset_cpus": "first"},
        {"cpuset_cpus": "4000"},
        {"pids": -7},
        {"memory_bytes": 8 * MIB, "pids": 60},
    ]
    for limits in refused:
        with pytest.raises(PyctrdError) as raised:
            container.update(**limits)  # type: ignore[arg-type]  # each is of its own type
        assert "\n" not in str(raised.value)
        assert config.read_bytes() == before
        assert sorted(path.name for path in config.parent.glob("config.json*")) == ["config.json"]
        stats = container.stats()
        assert (stats.memory.limit_bytes, stats.pids_limit) == (200 * MIB, 50)


def test_one_that_ends_meanwhile_is_updated_for_its_next_start(
    sleeper: pyctrd.Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Runc.update

    def late(runc: Runc, container_id: str, resources: bytes) -> None:
        sleeper.kill()
        sleeper.wait()
        update(runc, container_id, resources)

    monkeypatch.setattr(Runc, "update", late)
    sleeper.update(pids=77)
    assert sleeper.inspect()["limits"]["pids"] == 77
    sleeper.start()
    assert sleeper.stats().pids_limit == 77


def test_rename_is_told_and_refuses_a_taken_name(
    engine: pyctrd.Engine, busybox: pyctrd.Image, sleeper: pyctrd.Container
) -> None:
    other = engine.containers.create(busybox, ["true"], name="other")
    with pytest.raises(AlreadyExistsError, match="container name taken: sleeper"):
        other.rename("sleeper")
    for wrong in ("", "-x", "a b", "a/b", "x" * 129, "a\n", sleeper.id):
        with pytest.raises(InvalidError, match="invalid container name"):
            other.rename(wrong)
    assert other.name == "other"
    other.rename("another")
    assert other.name == engine.containers.get("another").name
    assert engine.containers.find("other") is None
    (event,) = engine.events(actions=["renamed"])
    assert (event.name, event.attributes["old_name"], event.attributes["id"]) == ("another", "other", other.id)
    assert [one.action for one in engine.events(containers=["another"])] == ["created", "renamed"]
    other.delete()
    with pytest.raises(NotFoundError):
        other.rename("gone")


def test_restart_gives_a_new_run_and_keeps_its_files(engine: pyctrd.Engine, busybox: pyctrd.Image) -> None:
    container = engine.containers.run(busybox, ["sh", "-c", "echo run >> /runs; cat /runs; exec sleep 1000"])
    until(lambda: container.logs() == "run\n")
    first = container.status
    container.pause()
    container.restart(0)
    until(lambda: container.logs() == "run\nrun\nrun\n")
    second = container.status
    assert second.state == "running"
    assert second.pid != first.pid
    assert second.started_ns > first.started_ns
    container.stop(0)
    container.restart()
    assert container.status.state == "running"
    removed = engine.containers.run(busybox, ["sleep", "1000"], auto_remove=True)
    with pytest.raises(ConflictError, match="is deleted when it ends"):
        removed.restart(0)
    assert removed.status.state == "running"


def test_filters_are_as_dockers(engine: pyctrd.Engine, busybox: pyctrd.Image, images: Images) -> None:
    web = engine.containers.run(busybox, ["sleep", "1000"], name="web-1", labels={"tier": "front", "app": "shop"})
    job = engine.containers.run(busybox, ["sh", "-c", "exit 3"], name="job-1", labels={"tier": "back", "app": "shop"})
    job.wait()
    made = engine.containers.create(busybox, ["true"], name="web-2")

    def names(**filters: str | list[str]) -> list[str]:
        return [one.name for one in engine.containers.list(filters=filters)]

    assert names() == ["web-2", "job-1", "web-1"]
    assert [one.name for one in engine.containers.list(all=False)] == ["web-1"]
    assert names(name="web") == ["web-2", "web-1"]
    assert names(name=["^web-1$", "job"]) == ["job-1", "web-1"]
    assert names(id=web.id[:12]) == ["web-1"]
    assert names(label="tier") == ["job-1", "web-1"]
    assert names(label=["app=shop", "tier=back"]) == ["job-1"]
    assert names(status="exited") == names(status="stopped") == names(exited="3") == ["job-1"]
    assert names(status=["running", "created"]) == ["web-2", "web-1"]
    assert names(since="job-1") == ["web-2"]
    assert names(before=made.id) == ["job-1", "web-1"]
    assert names(name="web", status="running") == ["web-1"]
    everyone = ["web-2", "job-1", "web-1"]
    digest = busybox.manifest_digest
    for ancestor in (images.busybox.reference, digest, digest.removeprefix("sha256:")[:12]):
        assert names(ancestor=ancestor) == everyone
        assert names(image=ancestor) == everyone
    assert names(ancestor="alpine") == []
    assert [one.name for one in engine.containers.list(all=False, filters={"exited": "3"})] == ["job-1"]
    for wrong in ({"colour": "red"}, {"status": "dead"}, {"exited": "x"}, {"name": "("}):
        with pytest.raises(InvalidError, match="invalid filter"):
            engine.containers.list(filters=wrong)
    with pytest.raises(NotFoundError):
        names(since="nobody")


def test_ps_filters_counts_and_formats(cli: Cli, engine: pyctrd.Engine, busybox: pyctrd.Image) -> None:
    for name in ("one", "two", "three"):
        engine.containers.create(busybox, ["echo", "x" * 50], name=name, labels={"n": name})
    assert cli("ps").out.count("\n") == 1
    assert cli("ps", "-a", "--filter", "name=t", "--format", "{name}\\t{labels}").out == "three\tn=three\ntwo\tn=two\n"
    assert [one["name"] for one in cli("ps", "-n", "2", "--format", "json").lines] == ["three", "two"]
    assert [one["name"] for one in cli("ps", "-l", "--size", "--json").lines] == ["three"]
    assert isinstance(cli("ps", "-l", "-s", "--json").lines[0]["size_bytes"], int)
    assert "SIZE" in cli("ps", "-as").out
    whole = cli("ps", "-a", "--no-trunc").out
    assert "x" * 50 in whole
    assert engine.containers.get("one").id in whole
    assert engine.containers.get("one").id not in cli("ps", "-a").out
    for wrong in (("--filter", "name"), ("--format", "{secret}"), ("--format", "{name.__class__}"), ("--format", "{")):
        done = cli("ps", "-a", *wrong)
        assert done.status == 1
        assert done.err.startswith("pyctrd: invalid --")


def test_inspect_keeps_its_keys_and_tells_what_was_asked_for(
    cli: Cli, engine: pyctrd.Engine, busybox: pyctrd.Image, tmp_path: Path
) -> None:
    container = engine.containers.create(
        busybox,
        ["sh", "-c", "exit 4"],
        name="looked-at",
        env={"A": "b"},
        working_dir="/tmp",
        user="12:34",
        hostname="here",
        binds=[f"{tmp_path}:/mnt:ro"],
        memory_bytes=64 * MIB,
        cpus=1.0,
        labels={"k": "v"},
    )
    found = container.inspect()
    assert set(found) == INSPECTED
    assert json.loads(json.dumps(found)) == found
    assert (found["state"], found["pid"], found["started"], found["exit_code"]) == ("created", 0, None, None)
    container.start()
    container.wait()
    found = container.inspect()
    assert (found["state"], found["exit_code"], found["signal"], found["reason"]) == ("stopped", 4, 0, "exit")
    assert found["oom"] is False
    assert "A=b" in found["env"]
    assert (found["working_dir"], found["hostname"], found["network"]) == ("/tmp", "here", "none")
    assert (found["user"]["uid"], found["user"]["gid"]) == (12, 34)
    assert found["limits"]["memory_bytes"] == 64 * MIB
    assert found["limits"]["cpus"] == 1.0
    (mount,) = found["mounts"]
    assert (mount["source"], mount["destination"], mount["read_only"]) == (str(tmp_path), "/mnt", True)
    for key in ("created", "started", "exited"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", found[key])
    assert Path(found["log_path"]).exists()
    assert re.match(r"\d+\.\d+", found["runtime"]["version"])
    assert found["snapshotter"]["key"] == f"container-{container.id}"
    assert found["image_digest"] == busybox.manifest_digest
    (printed,) = cli("inspect", "looked-at").lines
    assert set(printed) == {"kind", *INSPECTED}


def test_the_keys_are_in_the_document() -> None:
    document = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text()
    assert {key for key in INSPECTED if f"| `{key}` |" not in document} == set()


def test_an_end_for_want_of_memory_is_told_as_such(engine: pyctrd.Engine, busybox: pyctrd.Image) -> None:
    # It sleeps first, so that this is the control group that is looked at, and not how fast it is looked.
    script = "sleep 0.2; x=; while :; do x=$x$(dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' x); done"
    killed = engine.containers.run(busybox, ["sh", "-c", script], memory_bytes=16 * MIB, name="killed")
    ended = killed.wait()
    assert (ended.exit_code, ended.signal, ended.oom, ended.reason) == (137, 9, True, "oom")
    assert killed.status.exit == ended
    other = engine.containers.run(busybox, ["sleep", "1000"], memory_bytes=16 * MIB)
    other.kill()
    ended = other.wait()
    assert (ended.exit_code, ended.oom, ended.reason) == (137, False, "signal")
    (event,) = engine.events(reasons=["oom"])
    assert (event.action, event.name, event.attributes["oom"]) == ("exited", "killed", True)
    assert [one.action for one in engine.events(containers=[other.id[:12]])] == ["created", "started", "exited"]
    assert list(engine.events(containers=["nobody"])) == []


def test_commands_show_and_change(cli: Cli, sleeper: pyctrd.Container, engine: pyctrd.Engine) -> None:
    (row,) = cli("stats", "--no-stream", "--json").lines
    assert (row["name"], row["pids"], row["memory"]["limit_bytes"]) == ("sleeper", 1, 64 * MIB)
    assert row["cpu_percent"] is not None
    table = cli("stats", "--no-stream", "sleeper").out
    assert table.startswith("ID ")
    assert "sleeper" in table
    (process,) = cli("top", "--json", "sleeper").lines
    assert process["command"] == "sleep 1000"
    assert cli("top", "-o", "container_pid,command", "sleeper").out.split() == [
        *("CONTAINER_PID", "COMMAND", "1", "sleep", "1000")
    ]
    assert cli("update", "-m", "96m", "--pids-limit", "-1", "sleeper").out == "sleeper\n"
    assert sleeper.stats().memory.limit_bytes == 96 * MIB
    assert sleeper.stats().pids_limit is None
    assert cli("update", "sleeper").err.startswith("pyctrd: nothing to update")
    assert cli("rename", "sleeper", "renamed").status == 0
    assert cli("restart", "-t", "0", "renamed").out == "renamed\n"
    assert engine.containers.get("renamed").status.state == "running"
    assert cli("stop", "-t", "0", "renamed").status == 0
    done = cli("stats", "renamed")
    assert (done.status, done.err.count("\n")) == (1, 2)
    assert "is stopped, must be running" in done.err
    assert cli("stats", "--no-stream", "--json").out == ""
    assert cli("stats", "--interval", "0").status == 1
    actions = [one["action"] for one in cli("--json", "events", "--no-follow", "--filter", "container=renamed").lines]
    assert actions[-3:] == ["exited", "started", "exited"] or actions[-2:] == ["started", "exited"]


def test_stats_are_followed_until_the_container_ends(sleeper: pyctrd.Container) -> None:
    words = command("stats", "--interval", "0.05", "--json", "sleeper")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        rows = [json.loads(process.stdout.readline()) for _ in range(3)]
        sleeper.kill()
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, err) == (0, "")
    assert [rows[0]["cpu_percent"], rows[1]["cpu_percent"] is None] == [None, False]
    assert {json.loads(line)["id"] for line in out.splitlines()} <= {sleeper.id}


def test_on_a_terminal_the_table_is_drawn_over_the_last_one(sleeper: pyctrd.Container) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(command("stats", "--interval", "0.05"), stdout=theirs, stdin=theirs) as process:
        os.close(theirs)
        seen = b""
        while seen.count(b"\x1b[H\x1b[J") < 3:
            seen += os.read(ours, 4096)
        sleeper.kill()
        try:
            while os.read(ours, 4096):
                pass
        except OSError:
            pass  # EIO: nobody holds the other side any more
        assert process.wait(DEADLINE_SECONDS) == 0
    os.close(ours)
    assert b"sleeper" in seen


def test_updates_at_once_do_not_undo_each_other(sleeper: pyctrd.Container) -> None:
    changes: list[dict[str, Any]] = [{"pids": 91}, {"cpu_shares": 92}, {"memory_bytes": 93 * MIB}, {"cpus": 0.94}]
    with ThreadPoolExecutor(len(changes)) as pool:
        for done in [pool.submit(sleeper.update, **change) for change in changes]:
            done.result()
    limits = sleeper.inspect()["limits"]
    assert {key: limits[key] for change in changes for key in change} == {
        key: value for change in changes for key, value in change.items()
    }
    stats = sleeper.stats()
    assert (stats.pids_limit, stats.memory.limit_bytes) == (91, 93 * MIB)


def test_metrics_are_prometheus_text(cli: Cli, sleeper: pyctrd.Container, engine: pyctrd.Engine) -> None:
    text = engine.metrics()
    line = re.compile(r'# (HELP|TYPE) [a-z_]+ .+|[a-z_]+\{([a-z]+="[^"\n]*",?)+\} -?[0-9.e+-]+')
    assert all(line.fullmatch(one) for one in text.splitlines())
    labels = f'namespace="default",id="{sleeper.id}",name="sleeper",image="{sleeper.image_name}"'
    assert f"container_spec_memory_limit_bytes{{{labels}}} {64 * MIB}\n" in text
    assert f'pyctrd_container_state{{{labels},state="running"}} 1\n' in text
    assert f'container_network_receive_bytes_total{{{labels},interface="lo"}} 0\n' in text
    families = [one.split()[2] for one in text.splitlines() if one.startswith("# TYPE")]
    assert len(families) == len(set(families))
    document = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [name for name in families if f"`{name}`" not in document] == []
    with pyctrd.Engine(namespace="other") as other:
        assert other.metrics() == ""
        assert sleeper.id in other.metrics(all_namespaces=True)
    assert "container_cpu_usage_seconds_total" in cli("metrics").out


def test_nothing_of_a_label_breaks_the_text(engine: pyctrd.Engine, busybox: pyctrd.Image) -> None:
    container = engine.containers.create(busybox, ["true"])
    with engine._rooms.database.write() as tx:  # as a store of before may have it
        tx.containers._run("UPDATE containers SET name = ? WHERE id = ?", ('a"b\\c\nd', container.id))
    assert 'name="a\\"b\\\\c\\nd"' in engine.metrics()


def test_the_same_is_awaited(sleeper: pyctrd.Container) -> None:
    async def look() -> None:
        async with aio.Engine() as engine:
            container = await engine.containers.get("sleeper")
            assert (await container.stats()).pids == 1
            assert [one.container_pid for one in await container.top()] == [1]
            assert [one.id for one in await engine.containers.stats()] == [sleeper.id]
            async with container.stats_stream(3600) as stream:
                assert (await anext(stream)).id == sleeper.id
                task = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                task.cancel()  # it is not waited an hour for
                with pytest.raises(asyncio.CancelledError):
                    await task
            await container.rename("awaited")
            await container.update(pids=33)
            await container.restart(0)
            assert (await container.inspect())["limits"]["pids"] == 33
            assert "awaited" in await engine.metrics()

    asyncio.run(look())


def test_processes_of_others_are_never_shown(sleeper: pyctrd.Container, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: Callable[[Groups], list[int]] = Groups.processes
    monkeypatch.setattr(Groups, "processes", lambda groups: [*listed(groups), os.getpid()])
    assert [one.command for one in sleeper.top()] == ["sleep 1000"]
