"""What the scripts of bench/gateway share: they start servers, wait for them, load them, and write results.

All load goes to 127.0.0.1, and every loop has an end.
"""
import contextlib
import http.client
import json
import os
import platform
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = ROOT / "target" / "release"
HOST = "127.0.0.1"
START_S = 120.0
STOP_S = 20.0


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def ask(port, path, body=None, key=None, method=None, headers=None, timeout_s=10.0):
    """Status, headers and body (as text) of one request."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    headers = {"content-type": "application/json", **(headers or {})}
    if key:
        headers["authorization"] = f"Bearer {key}"
    data = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
    try:
        connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def chat(text="hello", tokens=2, **more):
    return {"model": "mock", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, **more}


class Server:
    """A process that serves a port of this machine."""

    def __init__(self, name, command, port, log, ready="/health", env=None, body=None):
        self.name, self.port, self.ready, self.body = name, port, ready, body
        self.command = [str(part) for part in command]
        self.log = Path(log)
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=subprocess.STDOUT,
                                            env={**os.environ, **(env or {})}, start_new_session=True)
        self.pid = self.process.pid

    @property
    def url(self):
        return f"http://{HOST}:{self.port}"

    def wait(self):
        """Waits until it answers (a chat, if `body` is given)."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                path = "/v1/chat/completions" if self.body else self.ready
                if ask(self.port, path, self.body, timeout_s=5.0)[0] == 200:
                    return self
            time.sleep(0.1)
        tail = self.log.read_text(errors="replace")[-2000:]
        self.stop()
        raise SystemExit(f"{self.name} did not become ready: {' '.join(self.command)}\n{tail}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def usage(self):
        """CPU seconds, resident KiB, open files, threads."""
        stat = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":" in line)
        files = len(os.listdir(f"/proc/{self.pid}/fd"))
        return {"cpu_s": (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"), "rss_kib": int(status["VmRSS"].split()[0]),
                "peak_kib": int(status["VmHWM"].split()[0]), "open_files": files, "threads": int(status["Threads"])}


@contextlib.contextmanager
def servers():
    """A list to add servers to; all are stopped at the end, the last started first."""
    started = []
    # A terminated script ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        yield started
    finally:
        for server in reversed(started):
            server.stop()


def mock(started, logs, port=None, **flags):
    """A mock upstream. Flags as keywords: ttft_ms=5."""
    port = port or free_port()
    command = [BIN / "gwmock", "--port", port]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    server = Server("mock", command, port, Path(logs) / f"mock-{port}.log").wait()
    started.append(server)
    return server


def vllm_router(started, logs, upstreams):
    port = free_port()
    command = [ROOT / ".venv/vllm-router/bin/vllm-router", "--host", HOST, "--port", port, "--worker-urls", *[u.url for u in upstreams],
               "--policy", "round_robin", "--prometheus-port", free_port(), "--worker-startup-check-interval", 1,
               "--log-level", "warning", "--max-concurrent-requests", 20000, "--queue-size", 20000]
    server = Server("vllm-router", command, port, Path(logs) / "vllm-router.log", body=chat())
    started.append(server)
    return server.wait()


def sglang_router(started, logs, upstreams):
    port = free_port()
    command = [ROOT / ".venv/sglang-router/bin/sglang-router", "launch", "--host", HOST, "--port", port,
               "--worker-urls", *[u.url for u in upstreams], "--policy", "round_robin", "--prometheus-host", HOST,
               "--prometheus-port", free_port(), "--worker-startup-check-interval", 1, "--log-level", "warn"]
    server = Server("sglang-router", command, port, Path(logs) / "sglang-router.log", body=chat())
    started.append(server)
    return server.wait()


def outrank(started, logs, binary, upstreams, mode="hold", name=None, flags=(), env=None, port=None, body=None, ready="/health"):
    """The gateway. `flags` go to `outrank serve` as they are."""
    port = port or free_port()
    command = [binary, "serve", "--host", HOST, "--port", port]
    for upstream in upstreams:
        command += ["--upstream", upstream if isinstance(upstream, str) else upstream.url]
    command += ["--mode", mode, *flags]
    server = Server(name or f"outrank-{mode}", command, port, Path(logs) / f"{name or 'outrank-' + mode}-{port}.log", ready=ready, env=env, body=body)
    started.append(server)
    return server.wait()


def load(kind, url, wait_s=900, **flags):
    """One run of gwload; its JSON."""
    command = load_command(kind, url, **flags)
    done = subprocess.run(command, capture_output=True, text=True, timeout=wait_s)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def load_command(kind, url, **flags):
    command = [str(BIN / "gwload"), kind, "--url", url]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            command.append(flag)
        elif isinstance(value, (list, tuple)):
            for one in value:
                command += [flag, str(one)]
        elif value is not None and value is not False:
            command += [flag, str(value)]
    return command


def spread(values):
    """min, median, max."""
    values = [value for value in values if value is not None]
    return [min(values), statistics.median(values), max(values)] if values else None


def show(values, digits=2):
    """`min **median** max`"""
    if not values:
        return "-"
    low, middle, high = (f"{value:,.{digits}f}" for value in values)
    return f"{low} **{middle}** {high}"


def machine():
    """What ran, where, in words; nothing that names the machine."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "unknown")
    return {"cores": os.cpu_count(), "cpu": model, "kernel": platform.release().split("-")[0], "python": platform.python_version()}


def commit(of=ROOT):
    """Commit of a checkout, with + if it has changes."""
    def git(*arguments):
        return subprocess.run(["git", "-C", str(of), *arguments], capture_output=True, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "crates", "bench", "Cargo.toml", "Cargo.lock")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def binary_facts(binary):
    """Version and checkout of a binary of outrank."""
    version = subprocess.run([str(binary), "--version"], capture_output=True, text=True).stdout.strip()
    # A binary that was moved away from its checkout: whoever moved it says what it is.
    if "OUTRANK_COMMIT" in os.environ:
        return {"version": version, "commit": os.environ["OUTRANK_COMMIT"]}
    checkout = Path(binary).resolve().parent.parent.parent
    return {"version": version, "commit": commit(checkout) if (checkout / ".git").exists() else "unknown"}


def command_line(script, binary):
    """The command that was given, without the folders of this machine."""
    shown, words = [], iter(sys.argv[1:])
    for word in words:
        if word in ("--shared", "--out"):
            next(words, None)
        else:
            shown.append("target/release/outrank" if binary and word == str(binary) else word)
    return " ".join([script, *map(shlex.quote, shown)])


def load_average():
    return os.getloadavg()[0]


class Others:
    """CPU time, in cores, that processes other than this one, its children and these servers take from here on."""

    def __init__(self, servers):
        self.servers, self.began = servers, time.monotonic()
        self.before = self._seconds()

    def cores(self):
        return max(self._seconds() - self.before, 0.0) / max(time.monotonic() - self.began, 1e-9)

    def _seconds(self):
        # User, nice and system time: what interrupts take for the network is nobody's.
        user, nice, system = Path("/proc/stat").read_text().split(maxsplit=4)[1:4]
        everybody = (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return everybody - sum(own[:4]) - sum(server.usage()["cpu_s"] for server in self.servers)


def wait_for_quiet(servers, cores, wait_s):
    """Waits, for a while at most, until others have taken no more than so many cores for two seconds."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        others = Others(servers)
        time.sleep(2.0)
        if others.cores() <= cores:
            return


def write(folder, name, result, text):
    """NAME.json and NAME.md in a folder of results."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    (folder / f"{name}.md").write_text(text)
    say(f"wrote {name}.md and {name}.json")
