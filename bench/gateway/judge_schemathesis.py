"""schemathesis as a judge of the gateway's OpenAPI document; started by schemathesis.sh."""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gateway_flags
import harness


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outrank", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=100, help="for each operation")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    failed = 0
    tool = harness.ROOT / ".venv/judges/bin/schemathesis"
    for case in ("open", "keys"):
        with tempfile.TemporaryDirectory() as folder, harness.servers() as started:
            upstream = harness.mock(started, folder)
            flags, key = [], None
            if case == "keys":
                flags, keys = gateway_flags.tenants(folder, ["a", "b"], 64, 256)
                key = keys["a"]
            gateway = harness.outrank(started, folder, args.outrank, [upstream], "hold", flags=flags)
            document = Path(folder) / "openapi.json"
            document.write_text(harness.ask(gateway.port, "/openapi.json", key=key)[2])
            paths = list(json.loads(document.read_text())["paths"])
            command = [tool, "run", document, "--url", gateway.url, "--max-examples", args.examples, "--seed", args.seed, "--workers", 1,
                       "--request-timeout", 30, "--suppress-health-check", "all", "--no-color", "--continue-on-failure"]
            if key:
                command += ["--header", f"Authorization: Bearer {key}"]
            harness.say(f"{case}: {len(paths)} paths: {' '.join(paths)}")
            done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=1500)
            print(done.stdout[-20000:], done.stderr[-1500:])
            alive = harness.ask(gateway.port, "/v1/chat/completions", harness.chat(), key=key)[0] == 200
            panics = gateway.log.read_text(errors="replace").count("panicked")
            bad = done.returncode != 0 or not alive or panics > 0
            failed += bad
            print(f"{'FAILED' if bad else 'ok'}  {case}: schemathesis exit {done.returncode}, still serves: {alive}, panics in the log: {panics}")
    print(f"schemathesis: {2 - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
