"""The studio's figures in Prometheus' text format."""

from collections import Counter

import psutil

from clipgraft.studio.service import Service


def metrics_text(service: Service, statuses: Counter[int]) -> str:
    """Write all figures.

    Args:
        service: Counts jobs, pictures and seconds.
        statuses: HTTP answers by status code.
    """
    # Copies: other threads count on meanwhile.
    totals, statuses = Counter(service.totals), Counter(statuses)
    lines: list[str] = []

    def add(name: str, kind: str, text: str, values: dict[str, float]) -> None:
        lines.extend([f"# HELP clipgraft_{name} {text}", f"# TYPE clipgraft_{name} {kind}"])
        lines.extend(f"clipgraft_{name}{labels} {value:g}" for labels, value in values.items())

    jobs, pictures = service.queue.counts("jobs"), service.queue.counts("pictures")
    add("jobs", "gauge", "Jobs by state.", _labelled("state", jobs))
    add("pictures", "gauge", "Pictures by state.", _labelled("state", pictures))
    ended = {key.removeprefix("jobs_"): n for key, n in totals.items() if key.startswith("jobs_")}
    add("jobs_ended_total", "counter", "Jobs ended since the start, by state.", _labelled("state", ended))
    drawn = {key.removeprefix("pictures_"): n for key, n in totals.items() if key.startswith("pictures_")}
    add("pictures_drawn_total", "counter", "Pictures since the start, by status.", _labelled("status", drawn))
    add("batches_total", "counter", "Batches drawn since the start.", {"": totals["batches"]})
    add("draw_seconds_total", "counter", "Seconds spent drawing.", {"": totals["draw_milliseconds"] / 1000})
    codes = {str(code): count for code, count in statuses.items()}
    add("http_answers_total", "counter", "HTTP answers by status code.", _labelled("code", codes))
    add("loaded_bytes", "gauge", "Bytes of loaded weights.", {"": service.loaded.num_bytes})
    resident = psutil.Process().memory_info().rss
    add("resident_bytes", "gauge", "Bytes of this process in memory.", {"": resident})
    return "\n".join(lines) + "\n"


def _labelled(label: str, values: dict[str, int]) -> dict[str, float]:
    return {f'{{{label}="{key}"}}': count for key, count in sorted(values.items())}
