"""The core imports nothing heavy, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = (
    "torch",
    "executorch",
    "ai_edge_litert",
    "tensorflow",
    "tflite_micro",
    "tflite_runtime",
    "flatbuffers",
    "typer",
    "rich",
    "matplotlib",
    "scipy",
)

#: makes every third-party package but NumPy look absent
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("numpy", "qwtv2_edge", "qwtv2_edge_tflite", "qwtv2_edge_executorch", "qwtv2_edge_c"):
            return None
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)
sys.meta_path.insert(0, Absent())
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    loaded = json.loads(python("import json, sys, qwtv2_edge; print(json.dumps(sorted(sys.modules)))"))
    tops = {name.partition(".")[0] for name in loaded}
    assert "qwtv2_edge" in tops
    assert not tops.intersection(HEAVY)


def test_names_are_loaded_when_they_are_used():
    """Until then the command has no ear for Ctrl-C."""
    python(
        "import sys, qwtv2_edge.__main__; assert 'numpy' not in sys.modules;"
        "import qwtv2_edge as qe; assert all(hasattr(qe, name) for name in qe.__all__);"
        "assert qe.errors.UsageError.exit_code == 2; assert set(qe.__all__) <= set(dir(qe)); assert not hasattr(qe, 'nothing')"
    )


def test_numpy_is_enough_to_import():
    python(BLOCK + "import qwtv2_edge")


def test_numpy_is_enough_for_graphs_files_and_simulation(tmp_path):
    """Build, check, save, load, print and simulate an integer graph with NumPy alone."""
    code = f"""
import numpy as np, qwtv2_edge as qe
from qwtv2_edge.ir import GraphBuilder, Quantization, TensorType
from qwtv2_edge.ir.text import to_text
from qwtv2_edge.ops.spec import NoAttrs
b = GraphBuilder("g")
x = b.input("x", TensorType((1, 3)))
kind = TensorType((1, 3), "int8", Quantization.per_tensor(0.5, 1))
(q,) = b.add("quantize", (x,), NoAttrs(), name="q", out_types=(kind,))
b.outputs = list(b.add("dequantize", (q,), NoAttrs(), name="d"))
graph = qe.load(qe.save(b.freeze(), {str(tmp_path / "g.qir")!r}))
(y,) = qe.simulate(graph, np.array([[0.2, 0.3, 99.0]], np.float32), numerics="litert-reference")
print(to_text(graph), y.tolist())
"""
    assert "[[0.0, 0.5, 63.0]]" in python(BLOCK + code)


def test_what_is_absent_is_named():
    """A call that needs a missing package says which one, and how to get it."""
    code = """
import qwtv2_edge as qe
try:
    qe.capture(None, None)
except qe.errors.MissingToolError as error:
    print(error)
"""
    out = python(BLOCK + code)
    assert "torch" in out
    assert "pip install" in out
