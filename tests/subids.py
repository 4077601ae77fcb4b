"""Subordinate ids that tests and their children see: other files over the host's, in a mount namespace."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self


class Ranges:
    """/etc/subuid and /etc/subgid, as this process and its children see them."""

    def __init__(self, directory: Path, *lines: str) -> None:
        self._files = {name: directory / name for name in ("subuid", "subgid")}
        for name, file in self._files.items():
            file.touch()
            subprocess.run(["mount", "--bind", str(file), f"/etc/{name}"], check=True)
        self.set(*lines)

    def set(self, *lines: str, only: str = "") -> None:
        """Give them other lines; ``only`` names one of the two."""
        for name, file in self._files.items():
            file.write_text("".join(f"{line}\n" for line in lines if only in ("", name)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Show the host's again."""
        for name in self._files:
            subprocess.run(["umount", f"/etc/{name}"], check=True)
