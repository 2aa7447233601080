"""Prometheus metrics `outrank:*` of every engine, in vLLM's own /metrics.

Engines are processes of their own. With several API servers vLLM has prometheus_client share values through files
(PROMETHEUS_MULTIPROC_DIR), which serves engines too. With one API server engines write text files, and the API server's
registry reads them at each scrape; both are processes of one machine.
"""

import atexit
import functools
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


def publish(figures, engine):
    """Publishes what `figures()`, see Core.publish, says of this engine, for as long as the process lives."""
    from prometheus_client import CollectorRegistry, Counter, Gauge, write_to_textfile

    registry, folder = CollectorRegistry(), os.environ.get(FOLDER)
    newest = functools.partial(Gauge, multiprocess_mode="mostrecent")

    @functools.cache
    def metric(kind, name, text):
        return kind(f"outrank:{name}", text, ["engine"], registry=registry).labels(engine)

    def run():
        while True:
            now, told = figures()
            for counts, name, text, value in now:
                if counts:
                    metric(Counter, name, text).inc(value)
                else:
                    metric(newest, name, text).set(value)
            if folder and os.path.isdir(folder):
                write_to_textfile(os.path.join(folder, f"{engine}.prom"), registry)
            if told:
                log.warning("outrank: %s", told)
            time.sleep(PUBLISH_S)

    threading.Thread(target=run, name="outrank-metrics", daemon=True).start()


class Published:
    """Collects what engines wrote to FOLDER."""

    def collect(self):
        """Metric families, each with the samples of all engines."""
        from prometheus_client import Metric
        from prometheus_client.parser import text_string_to_metric_families

        families = {}
        for path in sorted(Path(os.environ[FOLDER]).glob("*.prom")):
            for it in text_string_to_metric_families(path.read_text()):
                families.setdefault(it.name, Metric(it.name, it.documentation, it.type)).samples += it.samples
        return families.values()


def expose():
    """vLLM calls this in every process when it loads plug-ins. The first process shows what its engines publish."""
    if multiprocessing.parent_process() is None:
        from prometheus_client import REGISTRY

        os.environ[FOLDER] = tempfile.mkdtemp(prefix="outrank-")
        atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
        REGISTRY.register(Published())
