"""Faults seen from outside: nothing lost, nothing doubled.

usage: python3 bench/gateway/faults.py --outrank BIN [--mode hold]

Two mock upstreams behind one gateway, under load, while one of them misbehaves; then the gateway itself is told to reload and
to stop. Every request carries a name: each that the client saw answered in full must have been finished by exactly one
upstream, and each that was answered must be counted.
"""
import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import gateway_flags
import harness
import soak

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Site:
    def __init__(self, args, folder, started, flags=(), **mock):
        self.started, self.folder = started, folder
        self.flags = {"ttft_ms": 5, "itl_ms": 2, **mock}
        self.mocks = [harness.mock(started, folder, **self.flags) for _ in range(2)]
        self.gateway = harness.outrank(started, folder, args.outrank, self.mocks, args.mode, flags=[*gateway_flags.bounded(64, 4096), *flags], body=harness.chat())

    def load(self, seconds, rate=150, **more):
        """Starts an open loop; its result is had by `result`."""
        command = harness.load_command("open", self.gateway.url, rate=rate, poisson=3, duration_s=seconds, warm_up_s=0, max_tokens="4,8,16", stream=True,
                                       tag="job", timeout_s=60, **more)
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def result(self, process):
        return json.loads(process.communicate(timeout=180)[0])

    def fault(self, number, fault, count=None):
        status = harness.ask(self.mocks[number].port, "/mock/fault", {"fault": fault, "count": count})[0]
        assert status == 200, fault

    def log(self):
        return [entry for mock in self.mocks if mock.process.poll() is None for entry in json.loads(harness.ask(mock.port, "/mock/log")[2])]

    def idle(self):
        """Waits until nothing is left anywhere; what was left, if something stays."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            left = [json.loads(harness.ask(mock.port, "/mock/stats")[2]) for mock in self.mocks if mock.process.poll() is None]
            if not any(stats["running"] or stats["waiting"] for stats in left):
                return None
            time.sleep(0.1)
        return left

    def none_doubled(self, allow=0):
        finished = Counter(entry["user"] for entry in self.log() if entry["outcome"] == "finished")
        doubled = {user: count for user, count in finished.items() if count > 1}
        assert len(doubled) <= allow, f"finished more than once: {dict(list(doubled.items())[:5])}, {len(doubled)} in all"
        return finished


def whole(run, expected_failures=0):
    failed = run["sent"] - run["ok"]
    assert failed <= expected_failures, f"{failed} of {run['sent']} not answered in full: statuses {run['statuses']}, errors {run['errors']}, unanswered {run['unanswered']}"
    assert run["unanswered"] == 0, f"{run['unanswered']} never answered"


def before_the_first_byte(fault):
    def run(site):
        process = site.load(6)
        time.sleep(1)
        site.fault(0, fault)
        time.sleep(2)
        site.fault(0, None)
        found = site.result(process)
        whole(found)
        finished = site.none_doubled()
        assert sum(finished.values()) == found["ok"], (sum(finished.values()), found["ok"])
        assert site.idle() is None
    run.__name__ = f"one_upstream_{fault.replace(':', '_')}_for_two_seconds_loses_nothing"
    return run


for kind in ("reset", "status:500", "status:503", "garbage"):
    check(before_the_first_byte(kind))


@check
def an_upstream_killed_and_back_loses_only_the_streams_that_had_begun_on_it(site):
    process = site.load(9)
    time.sleep(2)
    victim = site.mocks[0]
    running = json.loads(harness.ask(victim.port, "/mock/stats")[2])["running"]
    victim.process.kill()
    victim.process.wait()
    time.sleep(3)
    site.mocks[0] = harness.mock(site.started, site.folder, port=victim.port, **site.flags)
    found = site.result(process)
    whole(found, expected_failures=running + 8)
    site.none_doubled()
    assert json.loads(harness.ask(victim.port, "/mock/stats")[2])["received"] > 10, "the upstream that came back got nothing"
    assert site.idle() is None


@check
def streams_cut_off_are_told_as_errors_and_not_sent_again(site):
    process = site.load(4)
    time.sleep(0.5)
    site.fault(0, "cut:2", 20)
    found = site.result(process)
    assert found["ok"] + sum(found["errors"].values()) == found["sent"] and sum(found["errors"].values()) <= 20, (found["statuses"], found["errors"])
    assert sum(found["errors"].values()) > 0, "a cut stream looked whole"
    again = Counter(entry["user"] for entry in site.log())
    assert max(again.values()) == 1, "a stream that had begun was sent again"
    assert site.idle() is None


@check
def an_end_without_done_is_not_made_whole(site):
    site.fault(0, "eof:2", 5)
    site.fault(1, "eof:2", 5)
    found = site.result(site.load(2))
    assert 1 <= sum(found["errors"].values()) <= 10, (found["ok"], found["errors"])


@check
def malformed_events_pass_or_are_refused_but_stop_nobody_else(site):
    site.fault(0, "malformed:2", 10)
    found = site.result(site.load(3))
    assert found["ok"] >= found["sent"] - 10 and found["unanswered"] == 0, (found["ok"], found["sent"], found["errors"])


@check
def a_hanging_upstream_holds_up_nobody_else(site):
    site.fault(0, "hang", 4)
    found = site.result(site.load(6, drain_s=3))
    assert found["ok"] >= found["sent"] - 4, (found["ok"], found["sent"], found["statuses"], found["errors"])
    assert found["e2e_ms"]["p99"] < 1500, found["e2e_ms"]


@check
def clients_that_vanish_free_the_upstream(site):
    process = site.load(4, rate=100)
    time.sleep(1.5)
    process.kill()
    process.communicate()
    left = site.idle()
    assert left is None, f"still running after their clients left: {left}"
    gauge = sum(value for name, value in soak.gauges(site.gateway).items() if "window" not in name and "connections" not in name)
    assert gauge == 0, f"gauges say {gauge} requests are left"


@check
def sighup_under_load_drops_nothing(site):
    process = site.load(5)
    for _ in range(8):
        time.sleep(0.5)
        site.gateway.process.send_signal(signal.SIGHUP)
    found = site.result(process)
    whole(found)
    assert site.gateway.process.poll() is None, "SIGHUP ended it"
    site.none_doubled()


@check
def sigterm_under_load_finishes_what_was_accepted(site):
    found = {}
    process = site.load(4)
    time.sleep(2)
    site.gateway.process.send_signal(signal.SIGTERM)
    found = site.result(process)
    code = site.gateway.process.wait(40)
    # After the signal: 503, or a connection that is refused; before it: whole answers. Nothing in between.
    torn = {error: count for error, count in found["errors"].items() if "refused" not in error and "reset" not in error}
    accepted = Counter(entry["outcome"] for entry in site.log())
    assert accepted.get("left", 0) == 0, f"the upstream saw {accepted['left']} of its requests given up"
    assert accepted["finished"] == found["ok"], (accepted, found["ok"], found["statuses"], found["errors"])
    assert not torn or set(torn) <= {"unexpected end of file"}, torn
    assert code == 0, f"exit code {code}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outrank", type=Path, required=True)
    parser.add_argument("--mode", default="hold")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    failed = 0
    chosen = [function for function in CHECKS if args.only in function.__name__]
    for function in chosen:
        with tempfile.TemporaryDirectory() as folder, harness.servers() as started:
            name = function.__name__.replace("_", " ")
            try:
                site = Site(args, folder, started)
                function(site)
                print(f"ok      {name}", flush=True)
            except (Exception, SystemExit) as error:  # every check is reported
                failed += 1
                print(f"FAILED  {name}: {type(error).__name__}: {str(error)[:700]}", flush=True)
    print(f"faults, mode {args.mode}: {len(chosen) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
