"""Plays the demo app's benchmark activity: ``app.py JOB FOLDER`` runs a job in the ordinary worker and writes what the app would.

``PHONE`` is the folder that plays the phone's storage, ``PLACE`` where the worker runs; app-fails.json in that folder says how to fail:
{"crash_after": chunks, "hang_after": chunks, "schema_version": n, "error": {code, message}, "error_after": chunks}. "at_once": runs
of a chunk, for a slow network.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from qwtv2_edge.errors import QwtEdgeError
from qwtv2_edge.runners.device import open_place
from qwtv2_edge.runners.host import Session

PACKAGE = "org.qwtv2.edge.demo"
RUNNERS = {"litert": "litert-xnnpack", "executorch": "executorch"}
CHUNK_S = 0.2  # the app writes every second; tests are in a hurry


class Failure(Exception):
    """A job that can't be run: the app's code for the reason, and a message."""


def main(job: str, folder: Path) -> None:
    phone = Path(os.environ["PHONE"])
    failing = phone / "app-fails.json"
    faults = json.loads(failing.read_text()) if failing.exists() else {}
    out = phone / "sdcard/Android/data" / PACKAGE / "files/jobs" / job
    out.mkdir(parents=True)
    result = {
        "schema_version": faults.get("schema_version", 1),
        "job": job,
        "app_version": "0.1.0",
        "complete": False,
        "error": None,
        "runtime": "",
        "versions": {},
        "abi": "arm64-v8a",
        "model": "Pixel 6",
        "threads": 0,
        "load_ns": 0,
        "first_ns": 0,
        "ns": [],
        "outputs": [],
        "peak_rss_bytes": 0,
        "thermal_status": [0, 0],
        "pid": os.getpid(),
    }
    try:
        run(json.loads((folder / "job.json").read_text()), folder, out, phone, result, faults)
    except Failure as failure:
        result["error"] = {"code": failure.args[0], "message": failure.args[1]}
        result["complete"] = True
        write(out, result)


def run(job, folder: Path, out: Path, phone: Path, result, faults) -> None:
    if "error" in faults and "error_after" not in faults:
        raise Failure(faults["error"]["code"], faults["error"]["message"])
    data = (folder / job["artifact"]["file"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != job["artifact"]["sha256"]:
        raise Failure("hash_mismatch", f"{job['artifact']['file']} has another hash")
    inputs = [np.frombuffer((folder / i["file"]).read_bytes(), i["dtype"]).reshape(i["shape"]) for i in job["inputs"]]
    first = [a[: len(a) // job["samples"]] for a in inputs]
    session = Session(RUNNERS[job["runtime"]], threads=job["threads"], place=open_place(os.environ.get("PLACE", "host")))
    with session:
        try:
            session.load(data)
        except QwtEdgeError as error:
            raise Failure("load_failed", error.message) from error
        result |= {"runtime": job["runtime"], "versions": session.versions, "threads": job["threads"], "load_ns": session.load_ns}
        try:
            result["first_ns"] = session.time(first, 1).ns[0]
            outputs = session.run(inputs)
        except QwtEdgeError as error:
            raise Failure("run_failed", error.message) from error
        end = time.monotonic() + job["seconds"]
        for chunk in range(1_000_000):
            if chunk == faults.get("crash_after"):
                crash(phone)
            if chunk == faults.get("hang_after"):
                time.sleep(3600)
            if chunk == faults.get("error_after"):
                raise Failure(faults["error"]["code"], faults["error"]["message"])
            timing = session.time(first, min(job["runs"] - len(result["ns"]), faults.get("at_once", job["runs"])), CHUNK_S)
            result["ns"] += timing.ns
            result["peak_rss_bytes"] = timing.peak_rss_bytes
            if len(result["ns"]) >= job["runs"] or time.monotonic() >= end:
                break
            write(out, result)
            if "at_once" in faults:
                time.sleep(CHUNK_S)
    for i, array in enumerate(outputs):
        array.tofile(out / f"output_{i}.bin")
        result["outputs"].append({"file": f"output_{i}.bin", "dtype": array.dtype.name, "shape": list(array.shape)})
    write(out, {**result, "complete": True})


def write(out: Path, result) -> None:
    """result.json, whole at every moment."""
    (out / "result.json.tmp").write_text(json.dumps(result))
    (out / "result.json.tmp").rename(out / "result.json")


def crash(phone: Path) -> None:
    """As a native crash leaves it: no word to the SDK, some lines in the log."""
    pid = os.getpid()
    lines = ("Fatal signal 11 (SIGSEGV), code 1 (SEGV_MAPERR), fault addr 0x10", "#00 pc 00000000001f4a10  libtensorflowlite_jni.so")
    with (phone / "logcat.txt").open("a") as log:
        log.writelines(f"11-21 16:40:00.123  {pid}  {pid} F libc    : {line}\n" for line in lines)
    os._exit(139)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
