"""Metrics: what a registry did, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter, defaultdict

from pyctrd.oci.value import NamedTuple

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds: an answer from the database, from the disk, of a large blob.
BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)


class Gauges(NamedTuple):
    """What is so now.

    Attributes:
        connections: Open.
        requests: Being answered.
        receiving: Bodies that come.
        refused: Connections that were too many, in all.
    """

    connections: int
    requests: int
    receiving: int
    refused: int


class Metrics:
    """Counts of one registry; for the loop's thread alone."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._count: Counter[str] = Counter()
        self.sent_bytes = 0
        self.received_bytes = 0
        self.running = 0
        self.receiving = 0

    def note(self, kind: str, method: str, status: int, seconds: float) -> None:
        """Count an answer. Kinds, methods and statuses are few, whatever clients send."""
        self._answers[kind, method, status] += 1
        self._count[kind] += 1
        self._seconds[kind] += seconds
        for bucket in BUCKETS:
            if seconds <= bucket:
                self._buckets[kind, bucket] += 1

    def text(self, gauges: Gauges) -> str:
        """All of it.

        Spec:
            Prometheus, "Exposition formats", text format 0.0.4.
        """
        lines = [
            *_head("pyctrd_registry_requests_total", "counter", "Requests that were answered."),
            *(
                f'pyctrd_registry_requests_total{{kind="{kind}",method="{method}",status="{status}"}} {count}'
                for (kind, method, status), count in sorted(self._answers.items())
            ),
            *_head("pyctrd_registry_request_seconds", "histogram", "How long answers took."),
        ]
        for kind in sorted(self._count):
            name = "pyctrd_registry_request_seconds"
            lines += [f'{name}_bucket{{kind="{kind}",le="{b}"}} {self._buckets[kind, b]}' for b in BUCKETS]
            lines += [
                f'{name}_bucket{{kind="{kind}",le="+Inf"}} {self._count[kind]}',
                f'{name}_sum{{kind="{kind}"}} {self._seconds[kind]:.6f}',
                f'{name}_count{{kind="{kind}"}} {self._count[kind]}',
            ]
        for name, kind, text, value in (
            ("sent_bytes_total", "counter", "Bytes of blobs and manifests that were sent.", self.sent_bytes),
            ("received_bytes_total", "counter", "Bytes of blobs and manifests that came.", self.received_bytes),
            ("connections", "gauge", "Connections that are open.", gauges.connections),
            ("connections_refused_total", "counter", "Connections that were too many.", gauges.refused),
            ("requests_running", "gauge", "Requests that are being answered.", gauges.requests),
            ("uploads_receiving", "gauge", "Bodies that come.", gauges.receiving),
        ):
            lines += [*_head(f"pyctrd_registry_{name}", kind, text), f"pyctrd_registry_{name} {value}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
