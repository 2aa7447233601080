"""Joins what reality.py wrote into the two files of results: steps.jsonl.gz and reality.jsonl.gz.

usage: python3 collect.py RESULTS OUT
"""

import gzip
import io
import json
import statistics
import sys

import steplog

PLANS = ("main", "small-kv", "tight-kv")


def open_gzip(path):
    """A gzip'd text file that is the same for the same content."""
    return io.TextIOWrapper(gzip.GzipFile(path, "wb", 9, mtime=0))


def lines(path):
    with open(path) as source:
        yield from map(json.loads, source)


def dump(record):
    return json.dumps(record, separators=(",", ":")) + "\n"


def main(results, out):
    launches = {}
    with open_gzip(f"{out}/steps.jsonl.gz") as steps:
        for plan in PLANS:
            phases = list(lines(f"{results}/phases-{plan}.jsonl"))
            for phase in phases:
                if plan != "main" and not phase["phase"].startswith(plan):
                    phase["phase"] = f"{plan}-{phase['phase']}"
            for step in steplog.timed_steps(steplog.read_log(f"{results}/raw-{plan}.jsonl")[1], phases):
                steps.write(dump(step))
                if step["prefills"]:
                    launch = step["launched_s"] - step["t_s"] - step["schedule_s"]
                    launches.setdefault(step["phase"], []).append(launch)
    with open_gzip(f"{out}/reality.jsonl.gz") as reality:
        for plan in PLANS:
            for record in lines(f"{results}/reality-{plan}.jsonl"):
                if "policy" in record:
                    record["prefill_launch_s"] = round(statistics.mean(launches[record["run"]]), 5)
                reality.write(dump(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
