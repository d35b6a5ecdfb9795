"""Plays the runtimes' command-line tools: ``tools.py benchmark_model|executor_runner --flag=value ...``, in the ordinary worker.

What it prints has the tools' own form; ``TOOL`` says how it should fail: "silent", "status", "hang" or "old".
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from qwtv2_edge.runners.host import Session


def benchmark_model(flags: dict[str, str]) -> None:
    names = flags["input_layer"].split(",")
    files = dict(item.split(":") for item in flags["input_layer_value_files"].split(","))
    shapes = [[int(n) for n in shape.split(",")] for shape in flags["input_layer_shape"].split(":")]
    runner = "litert-xnnpack" if flags["use_xnnpack"] == "true" else "litert-builtin"
    warmup, runs = int(flags["warmup_runs"]), int(flags["num_runs"])
    with Session(runner, Path(flags["graph"]).read_bytes(), threads=int(flags["num_threads"])) as session:
        inputs = [
            np.fromfile(files[name], port.dtype).reshape(shape) for name, port, shape in zip(names, session.inputs, shapes, strict=True)
        ]
        us = [v / 1000 for v in session.time(inputs, warmup + runs).ns]
        if path := flags.get("output_filepath"):
            Path(path).write_bytes(b"".join(o.tobytes() for o in session.run(inputs)))
        init = session.load_ns // 1000
    say("STARTING!")
    say(f"INFO: Loaded model {flags['graph']}")
    say("INFO: Initialized TensorFlow Lite runtime.")
    say(f"INFO: Initialized session in {init / 1000}ms.")
    for part in (us[:warmup], us[warmup:]):
        say(f"INFO: count={len(part)} curr={part[-1] if part else 0:.0f}")
    timings = us[:warmup] or [0.0]
    say(
        f"INFO: Inference timings in us: Init: {init}, First inference: {timings[0]:.0f}, "
        f"Warmup (avg): {sum(timings) / len(timings):.6g}, Inference (avg): {sum(us[warmup:]) / runs:.6g}"
    )
    if "report_peak_memory_footprint" in flags:
        say("INFO: Overall peak memory footprint (MB) via periodic monitoring: 13.1797")


def executor_runner(flags: dict[str, str]) -> None:
    """Logs to logcat, as on Android."""
    count = int(flags["num_executions"])
    with Session("executorch", Path(flags["model_path"]).read_bytes(), threads=int(flags["cpu_threads"])) as session:
        inputs = [np.fromfile(f, p.dtype).reshape(p.shape) for f, p in zip(flags["inputs"].split(","), session.inputs, strict=True)]
        ns = session.time(inputs, count).ns
        if base := flags.get("output_file"):
            for i, output in enumerate(session.run(inputs)):
                output.tofile(f"{base}-{i}.bin")
        lines = [f"Model loaded in {session.load_ns / 1e6:f} ms."]
    if os.environ.get("TOOL") != "old":
        lines += [f"Iteration {i} of {count}: {v / 1e6:f} ms" for i, v in enumerate(ns, 1)]
    lines.append(f"Model executed successfully {count} time(s) in {sum(ns) / 1e6:f} ms.")
    with (Path(os.environ["PHONE"]) / "logcat.txt").open("a") as log:
        log.writelines(f"11-21 16:40:00.123  {os.getpid()}  {os.getpid()} I ExecuTorch: {line}\n" for line in lines)
    say("OutputX 0: tensor(sizes=[1, 3], [0.33, 0.33, 0.33])")


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    how = os.environ.get("TOOL")
    if how == "silent":
        return
    if how == "status":
        sys.exit("ERROR: Failed to load model")
    if how == "hang":
        time.sleep(3600)
    flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[2:])
    {"benchmark_model": benchmark_model, "executor_runner": executor_runner}[sys.argv[1]](flags)


if __name__ == "__main__":
    main()
