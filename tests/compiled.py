"""Generated C as a program of its own, with any compiler and flags: codes in on standard input, codes out."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwtv2_edge.backends import Artifact
from qwtv2_edge.runners.worker import CFile

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MAIN = """
#include <stdio.h>
#include "model.h"
int main(void)
{{
    for (;;) {{
{read}
        {symbol}_run();
{write}
    }}
}}
"""


def compiled(artifact: Artifact, folder: Path, *flags: str | Path) -> Path:
    """A program that reads the inputs of one sample after another and writes the outputs. Fails on warnings that ``flags`` make errors."""
    facts, size = CFile(artifact.data).facts, "sizeof *{0}() * {1}"
    parts: dict[str, list[str]] = {"read": [], "write": []}
    for kind, ports, call in (("read", "inputs", "fread"), ("write", "outputs", "fwrite")):
        for d in facts[ports]:
            count = int(np.prod(d["shape"]))
            stream, end = ("stdin", "return 0;") if kind == "read" else ("stdout", "return 1;")
            parts[kind].append(f"        if ({call}({d['function']}(), {size.format(d['function'], count)}, 1, {stream}) != 1) {{ {end} }}")
    artifact.save(folder)
    (folder / "main.c").write_text(MAIN.format(symbol=facts["symbol"], **{k: "\n".join(v) for k, v in parts.items()}))
    program = folder / "program"
    done = subprocess.run(
        ["gcc", folder / "model.c", folder / "main.c", *flags, "-o", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return program


def execute(program: Path, artifact: Artifact, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of every sample. inputs: as the graph takes them, first axis = samples."""
    file = CFile(artifact.data)
    codes = [np.ascontiguousarray(a) for a in file.codes(inputs)]
    samples = len(codes[0]) // file.taken[0]["shape"][0]
    rows = [a.reshape(samples, -1).view(np.uint8) for a in codes]
    done = subprocess.run([program], input=np.concatenate(rows, 1).tobytes(), capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    dtypes = [np.dtype((np.dtype(d["dtype"]), tuple(d["shape"]))) for d in file.given]
    table = np.frombuffer(done.stdout, np.dtype([(f"o{i}", d) for i, d in enumerate(dtypes)]))
    found = [np.ascontiguousarray(table[f"o{i}"]) for i in range(len(dtypes))]
    return file.results([a.reshape(-1, *a.shape[2:]) if a.ndim > 1 else a for a in found])
