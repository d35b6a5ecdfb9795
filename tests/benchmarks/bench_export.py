"""Time to make both formats, against the peers' two flows; then latency of what each made, on the same runtimes.

    python tests/benchmarks/bench_export.py [--peer-python PATH] [--samples 16] [--net NAME]...

--peer-python: Python of an environment with torch 2.13.0, litert-torch 0.10.0 and ai-edge-quantizer 0.10.0
(python -m venv peers && peers/bin/pip install torch==2.13.0 litert-torch==0.10.0 ai-edge-quantizer==0.10.0).
Without it the LiteRT flow is left out, and said so. Each flow runs in a process of its own, one thread, same samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import note, percentiles, show
from models import calibration_of

from qwtv2_edge.runners.host import Session

HERE = Path(__file__).resolve().parent
#: invocations of each round that are not counted
WARMUP = 10
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def flow(python: str, script: str, *args: str) -> dict[str, Any]:
    """Run one flow in a fresh process; its JSON line, or {"error"}."""
    done = subprocess.run(
        [python, str(HERE / "peers" / script), *args], capture_output=True, text=True, check=False, env={**os.environ, **ONE_THREAD}
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def latency(files: dict[str, tuple[str, Path]], rounds: int, runs: int) -> dict[str, Any]:
    """Interleaved rounds over all files, so that drift hits them alike; per file p10/p50/p90 over every run.

    Inputs are random at each file's own input type: the peers' files differ in where they quantize.
    """
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {k: [] for k in files}
    sessions = {}
    try:
        for key, (kind, path) in files.items():
            sessions[key] = Session(kind, path.read_bytes())
        for _ in range(rounds):
            for key, session in sessions.items():
                port = session.inputs[0]
                values = rng.normal(size=port.shape) if port.dtype == "float32" else rng.integers(-128, 128, port.shape)
                timing = session.time([values.astype(port.dtype)], runs=WARMUP + runs)
                times[key] += [ns / 1e6 for ns in timing.ns[WARMUP:]]
    finally:
        for session in sessions.values():
            session.close()
    return {k: percentiles(v) for k, v in times.items()}


def one(net: str, samples: int, peer_python: str | None, rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"net": net, "calibration_samples": samples}
    with tempfile.TemporaryDirectory() as folder:
        stem = str(Path(folder) / "m")
        data = calibration_of(net, samples)
        np.save(stem + ".npy", data)
        row["qwtv2_edge"] = flow(sys.executable, "qwtv2_flow.py", net, stem + ".npy", stem + ".ours")
        note(f"{net} qwtv2_edge {row['qwtv2_edge']}")
        row["executorch_pt2e"] = flow(sys.executable, "executorch_pt2e.py", net, stem + ".npy", stem + ".peer.pte")
        note(f"{net} executorch {row['executorch_pt2e']}")
        if peer_python:
            row["litert"] = flow(peer_python, "litert_flow.py", net, stem + ".npy", stem + ".peer.tflite")
            note(f"{net} litert {row['litert']}")
        else:
            row["litert"] = {"error": "left out: no --peer-python"}
        peers = [row[k]["seconds"] for k in ("executorch_pt2e", "litert") if "seconds" in row[k]]
        if len(peers) == 2 and "seconds" in row["qwtv2_edge"]:
            row["times_faster_than_their_sum"] = round(sum(peers) / row["qwtv2_edge"]["seconds"], 2)
        files = {
            "ours .tflite": ("litert-xnnpack", Path(stem + ".ours.tflite")),
            "peer .tflite": ("litert-xnnpack", Path(stem + ".peer.tflite")),
            "ours .tflite, int8 io": ("litert-xnnpack", Path(stem + ".ours.int8.tflite")),
            "ours .pte": ("executorch", Path(stem + ".ours.executorch-xnnpack.pte")),
            "peer .pte": ("executorch", Path(stem + ".peer.pte")),
        }
        row["latency"] = latency({k: v for k, v in files.items() if v[1].exists()}, rounds, 200 if data[0].size < 50_000 else 20)
        note(f"{net} latency {row['latency']}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--net", action="append")
    args = parser.parse_args()
    nets = args.net or ["mobilenet_v2", "resnet8", "ds_cnn", "mobilenet_v1"]
    show("export and latency", [one(n, args.samples, args.peer_python, args.rounds) for n in nets])


if __name__ == "__main__":
    main()
