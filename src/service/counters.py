"""What the service counts, in Prometheus' text form (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Histogram:
    """How many readings were at most each of some bounds, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.sum = bounds, 0.0
        self.counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        total = 0
        comma = "," if labels else ""
        for bound, count in zip([*map("{:g}".format, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        around = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{around} {self.sum:g}"
        yield f"{name}_count{around} {total}"


class Counters:
    """Of one process, since it began."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """By method, route and status; 499: the client had gone."""
        self.seconds: dict[str, Histogram] = {}
        """A request takes, by route."""
        self.batches = Histogram(SIZES)

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        self.requests[method, route, status] += 1
        self.seconds.setdefault(route, Histogram(SECONDS)).add(seconds)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it, and what is measured now."""
        lines = ["# TYPE captionary_requests_total counter"]
        for (method, route, status), count in sorted(self.requests.items()):
            labels = f'method="{method}",route="{route}",status="{status}"'
            lines.append(f"captionary_requests_total{{{labels}}} {count}")
        lines.append("# TYPE captionary_request_seconds histogram")
        for route, histogram in sorted(self.seconds.items()):
            lines += histogram.lines("captionary_request_seconds", f'route="{route}"')
        lines.append("# TYPE captionary_batch_size histogram")
        lines += self.batches.lines("captionary_batch_size")
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value:.17g}"]
        return "\n".join([*lines, ""])


def resident_bytes() -> float | None:
    """What this process holds in memory; None where the system cannot say."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return None
    import resource

    return int(status.read_text().split()[1]) * resource.getpagesize()
