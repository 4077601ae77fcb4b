"""A real docker-registry on loopback, for the length of a ``with`` block."""

from __future__ import annotations

import http.client
import os
import queue
import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

STOP_SECONDS = 10.0
REQUEST_SECONDS = 60.0
_LISTENING = re.compile(rb"listening on (127\.0\.0\.1:\d+)")
_CONFIG = """version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {directory}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:0"}}
"""


class Registry:
    """docker-registry over a directory, on a port that the kernel chose.

    Args:
        directory: Its storage, configuration and log.

    Attributes:
        host: ``127.0.0.1:port``.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "config.yml"
        config.write_text(_CONFIG.format(directory=directory / "storage"))
        self._log = directory / "log"
        self._found: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # It takes REGISTRY_… for its own settings, and Podman's REGISTRY_AUTH_FILE for one of them.
            env={name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")},
        )
        # A pipe that nobody empties would stop it after a few hundred requests.
        self._reader = threading.Thread(target=self._keep_log, name="docker-registry log")
        self._reader.start()
        self.host = self._found.get()
        if not self.host:
            self.close()
            raise RuntimeError(f"docker-registry ended: see {self._log}")

    @staticmethod
    def is_installed() -> bool:
        """Whether there is one to start."""
        return shutil.which("docker-registry") is not None

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def put_blob(self, repository: str, digest: str, content: bytes) -> None:
        """Upload a blob, whole (distribution-spec v1.1, "POST then PUT")."""
        if self._request("HEAD", f"/v2/{repository}/blobs/{digest}")[0] == http.client.OK:
            return
        status, headers = self._request("POST", f"/v2/{repository}/blobs/uploads/")
        location = urlsplit(headers["location"])
        path = f"{location.path}?{location.query}&digest={digest}"
        self._check("blob", status, http.client.ACCEPTED)
        status, _ = self._request("PUT", path, content, {"Content-Type": "application/octet-stream"})
        self._check(digest, status, http.client.CREATED)

    def put_manifest(self, repository: str, target: str, media_type: str, content: bytes) -> None:
        """Upload a manifest under a tag or its digest."""
        status, _ = self._request("PUT", f"/v2/{repository}/manifests/{target}", content, {"Content-Type": media_type})
        self._check(f"{repository}:{target}", status, http.client.CREATED)

    def close(self) -> None:
        """End it; idempotent."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _keep_log(self) -> None:
        """Write its log to a file until it ends; on the way, tell which port it got."""
        assert self._process.stderr is not None
        with self._log.open("wb") as log:
            for line in self._process.stderr:
                log.write(line)
                if (found := _LISTENING.search(line)) is not None:
                    self._found.put(found.group(1).decode())
        self._found.put("")

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection(self.host, timeout=REQUEST_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            answer.read()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    @staticmethod
    def _check(what: str, status: int, expected: int) -> None:
        if status != expected:
            raise RuntimeError(f"docker-registry answered {status} to {what}, expected {expected}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
