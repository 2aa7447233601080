"""Faults seen from outside: nothing lost, nothing doubled.

usage: python3 bench/gateway/faults.py --outrank BIN [--mode hold]

Two mock upstreams behind one gateway, under load, while one of them misbehaves; then the gateway itself is told to reload and
to stop, its disk is full, the wall clock jumps, and clients come over TLS. Every request carries a name: each that the client saw answered in full must have been finished by exactly one
upstream, and each that was answered must be counted.
"""
import argparse
import json
import os
import re
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


def metric(site, name):
    text = harness.ask(site.gateway.port, "/metrics")[2]
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


def restart(site, args, flags=(), env=None, binary=None):
    """Another gateway in the place of the site's."""
    site.gateway.stop()
    site.gateway = harness.outrank(site.started, site.folder, binary or args.outrank, site.mocks, args.mode, name="outrank-again",
                                   flags=[*gateway_flags.bounded(64, 4096), *flags], env=env, body=harness.chat())


@check
def a_disk_that_takes_nothing_costs_the_journal_its_lines_and_nobody_an_answer(site, args):
    restart(site, args, gateway_flags.journal("/dev/full"))
    found = site.result(site.load(3))
    whole(found)
    finished = site.none_doubled()
    assert sum(finished.values()) == found["ok"], (sum(finished.values()), found["ok"])
    assert metric(site, "outrank_journal_errors_total") > 0 and metric(site, "outrank_journal_lines_total") == 0
    site.gateway.process.send_signal(signal.SIGTERM)
    assert site.gateway.process.wait(20) == 0


@check
def a_journal_that_may_grow_no_further_keeps_what_it_has_and_nobody_loses_an_answer(site, args):
    journal = Path(site.folder) / "journal.jsonl"
    limited = Path(site.folder) / "limited.sh"
    limited.write_text(f"#!/bin/bash\nulimit -f 16\nexec {Path(args.outrank).resolve()} \"$@\"\n")
    limited.chmod(0o755)
    restart(site, args, gateway_flags.journal(journal), binary=limited)
    found = site.result(site.load(3))
    whole(found)
    finished = site.none_doubled()
    assert sum(finished.values()) == found["ok"], (sum(finished.values()), found["ok"])
    lines, errors = metric(site, "outrank_journal_lines_total"), metric(site, "outrank_journal_errors_total")
    assert lines > 0 and errors > 0, (lines, errors)
    site.gateway.process.send_signal(signal.SIGTERM)
    assert site.gateway.process.wait(20) == 0, "it ended otherwise than by being told to"
    kept = journal.read_text().splitlines()
    # The line that the limit cut is the only torn one.
    torn = [line for line in kept if not line.endswith("}")]
    assert len(kept) - len(torn) == lines and len(torn) <= 1, (len(kept), len(torn), lines)


JUMPING_CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The wall clock, ahead by the number of seconds in the first eight bytes of a file. */
int clock_gettime(clockid_t clock, struct timespec *now) {
    static volatile long *ahead;
    long result = syscall(SYS_clock_gettime, clock, now);
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) return result;
    if (!ahead) {
        int file = open(getenv("WALL_AHEAD"), O_RDONLY);
        ahead = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    }
    now->tv_sec += *ahead;
    return result;
}
"""


@check
def a_wall_clock_that_jumps_moves_neither_order_nor_time_limits(site, args):
    folder = Path(site.folder)
    source, shim, ahead, journal = folder / "clock.c", folder / "clock.so", folder / "ahead", folder / "journal.jsonl"
    source.write_text(JUMPING_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source], check=True)
    jump = lambda seconds: os.pwrite(file, seconds.to_bytes(8, "little", signed=True), 0)
    file = os.open(ahead, os.O_CREAT | os.O_RDWR)
    env = {"LD_PRELOAD": str(shim), "WALL_AHEAD": str(ahead)}
    try:
        jump(5000)
        seen = subprocess.run(["date", "+%s"], env={**os.environ, **env}, capture_output=True, text=True, check=True)
        assert int(seen.stdout) > time.time() + 4000, "the clock cannot be made to jump here"
        jump(0)
        began = time.time()
        restart(site, args, ["--request-timeout-s", "30", *gateway_flags.journal(journal)], env=env)
        process = site.load(6, rate=250)
        for seconds in (-3600, 7200, -86400, 0):
            time.sleep(1)
            jump(seconds)
        found = site.result(process)
    finally:
        os.close(file)
    whole(found)
    finished = site.none_doubled()
    assert sum(finished.values()) == found["ok"], (sum(finished.values()), found["ok"])
    assert found["e2e_ms"]["p99"] < 5000, found["e2e_ms"]
    assert site.idle() is None
    site.gateway.process.send_signal(signal.SIGTERM)
    assert site.gateway.process.wait(20) == 0
    arrivals = [json.loads(line)["arrival_s"] for line in journal.read_text().splitlines()]
    assert len(arrivals) >= found["ok"] and began - 1 < min(arrivals) and max(arrivals) < time.time() + 1, (min(arrivals), max(arrivals), began)
    if args.mode == "stamp":
        stamps = [entry["priority"] / 1e3 - began for entry in site.log() if entry["priority"] is not None]
        assert len(stamps) >= found["ok"] and -1 < min(stamps) and max(stamps) < 600, (len(stamps), min(stamps), max(stamps))


def certificate(folder, name):
    """A certificate for this machine that trusts itself, and its key."""
    cert, key = Path(folder) / f"{name}.pem", Path(folder) / f"{name}.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def curl(url, trusted, tokens, user):
    body = json.dumps(harness.chat(tokens=tokens, stream=True, user=user))
    return subprocess.Popen(["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "60", "--noproxy", "*", "--cacert", str(trusted), "-H",
                             "content-type: application/json", "-d", body, f"{url}/v1/chat/completions"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@check
def clients_over_tls_are_answered_and_a_new_certificate_cuts_no_stream(site, args):
    cert, key = certificate(site.folder, "serving")
    other, other_key = certificate(site.folder, "other")
    old = Path(site.folder) / "old.pem"
    old.write_bytes(cert.read_bytes())
    port = harness.free_port()
    command = [args.outrank, "serve", "--host", harness.HOST, "--port", port, "--mode", args.mode, "--tls-cert", cert, "--tls-key", key]
    for mock in site.mocks:
        command += ["--upstream", mock.url]
    gateway = harness.Server("outrank-tls", command, port, Path(site.folder) / "tls.log")
    site.started.append(gateway)
    url = f"https://localhost:{port}"

    def until(trusted):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            asked = curl(url, trusted, 4, None)
            text, why = asked.communicate()
            if asked.returncode == 0 and text.rstrip().endswith("data: [DONE]"):
                return
            time.sleep(0.1)
        raise AssertionError(f"no answer over TLS: {why}")

    until(cert)
    refused = curl(url, other, 4, "stranger")
    assert refused.wait() == 60, "curl took a certificate that it does not trust"
    plain = subprocess.run(["curl", "--silent", "--noproxy", "*", "--max-time", "10", f"http://localhost:{port}/health/live"], capture_output=True)
    assert plain.returncode != 0, "plain text was answered"
    streams = [curl(url, old, 1000, f"tls{number}") for number in range(8)]
    for stream in streams:
        assert stream.stdout.readline().startswith("data: ")
    cert.write_bytes(other.read_bytes())
    key.write_bytes(other_key.read_bytes())
    gateway.process.send_signal(signal.SIGHUP)
    until(other)
    assert any(stream.poll() is None for stream in streams), "the streams ended before the certificate was new"
    for stream in streams:
        text, why = stream.communicate()
        assert stream.returncode == 0 and text.rstrip().endswith("data: [DONE]"), (stream.returncode, why)
    finished = site.none_doubled()
    assert sum(count for user, count in finished.items() if user.startswith("tls")) == 8, finished


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
                function(site, args) if function.__code__.co_argcount == 2 else function(site)
                print(f"ok      {name}", flush=True)
            except (Exception, SystemExit) as error:  # every check is reported
                failed += 1
                print(f"FAILED  {name}: {type(error).__name__}: {str(error)[:700]}", flush=True)
    print(f"faults, mode {args.mode}: {len(chosen) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
