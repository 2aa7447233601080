"""Prometheus metrics `outrank:*` of every engine, in vLLM's own /metrics.

Engines are processes of their own. With several API servers vLLM has prometheus_client share values through files
(PROMETHEUS_MULTIPROC_DIR), which serves engines too. With one API server engines write text files, and the API server's
registry reads them at each scrape; both are processes of one machine.
"""

import atexit
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from outrank_vllm import log

FOLDER = "OUTRANK_METRICS_DIR"
PUBLISH_S = 1.0
COUNTERS = {
    "scored": "Prompts scored",
    "learned": "Rankers learned from served answers",
    "finished": "Requests that ended with their answer",
    "seat_preemptions": "Times a running request lost its seat to a waiting one",
    "promotions": "Promotions by starvation prevention (policy ltr)",
}
GAUGES = {
    "waiting": "Requests that wait",
    "running": "Requests with a seat",
    "trusted": "Whether scores order the queue: 1, or 0 while the monitor has fallen back to arrival",
    "concordance": "Concordance of scores and lengths of requests that ended, 0 for chance",
    "learned_tau_b": "Kendall tau-b on unseen answers of the ranker learned last",
    "backlog_s": "Seconds until all who wait have been served",
    "decode_s": "Measured seconds of a step without prefill",
    "prefill_s": "Measured seconds that a prefill token adds to a step",
}


def publish(status, engine):
    """Publishes the figures of `status()`, a JSON object, of this engine for as long as the process lives."""
    from prometheus_client import CollectorRegistry, Counter, Gauge, write_to_textfile

    registry, label, folder = CollectorRegistry(), str(engine), os.environ.get(FOLDER)
    counters = {key: Counter(f"outrank:{key}", text, ["engine"], registry=registry) for key, text in COUNTERS.items()}
    gauges = {
        key: Gauge(f"outrank:{key}", text, ["engine"], registry=registry, multiprocess_mode="mostrecent")
        for key, text in GAUGES.items()
    }

    def run():
        before, trusted = dict.fromkeys(COUNTERS, 0), True
        while True:
            figures = json.loads(status())
            for key, counter in counters.items():
                counter.labels(label).inc(max(0, figures[key] - before[key]))
            for key, gauge in gauges.items():
                gauge.labels(label).set("nan" if figures[key] is None else figures[key])
            if folder and os.path.isdir(folder):
                write_to_textfile(os.path.join(folder, f"{label}.prom"), registry)
            if figures["trusted"] != trusted:
                log.warning("outrank: scores %s followed: %s", "are again" if not trusted else "are no longer", figures)
            before, trusted = figures, figures["trusted"]
            time.sleep(PUBLISH_S)

    threading.Thread(target=run, name="outrank-metrics", daemon=True).start()


class Published:
    """Collects what engines wrote to a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def collect(self):
        """Metric families, each with the samples of all engines."""
        from prometheus_client.parser import text_string_to_metric_families

        families = {}
        for path in sorted(self.folder.glob("*.prom")):
            for family in text_string_to_metric_families(path.read_text()):
                families.setdefault(family.name, family)
                if families[family.name] is not family:
                    families[family.name].samples += family.samples
        return families.values()


def expose():
    """vLLM calls this in every process when it loads plug-ins. The first process shows what its engines publish."""
    if multiprocessing.parent_process() is not None:
        return
    from prometheus_client import REGISTRY

    os.environ[FOLDER] = tempfile.mkdtemp(prefix="outrank-")
    atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
    REGISTRY.register(Published(os.environ[FOLDER]))
