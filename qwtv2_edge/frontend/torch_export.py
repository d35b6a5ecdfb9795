"""torch.export to the float IR. The only module that imports torch (inside its functions).

(1)  export, then functionalise with an empty decomposition table: composite ops (hardswish, silu, upsample) stay whole
(2)  evaluate everything that depends on parameters and buffers alone
(3)  plan which BatchNorms and per-channel constants fold into the weighted op before them
(4)  lower node by node by the rules of ``aten``; every problem is collected, then raised as one error
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from qwtv2_edge.errors import GraphError, ImportGraphError, MissingToolError, Problem, UsageError
from qwtv2_edge.frontend import aten, masks, sequence  # noqa: F401  sequence registers its rules
from qwtv2_edge.frontend.aten import Affine, Const, Context, Unsupported, batch_norm_affine
from qwtv2_edge.frontend.layout import NHWC, NHWC_OF_1D, Value, from_form
from qwtv2_edge.frontend.passes import tidy
from qwtv2_edge.frontend.source import line_of_exception, line_of_trace
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Location
from qwtv2_edge.ir.types import TensorType

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node as FxNode

#: ops that take in a per-channel affine map of their output
LINEAR = {"linear", "addmm", "mm", "matmul"}
WEIGHTED = {"conv1d", "conv2d", "convolution", "conv_transpose1d", "conv_transpose2d"} | LINEAR
BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm"}
#: ops that ask for channels-last images, and ops that keep whatever layout they are given
WANTS_NHWC = (WEIGHTED - LINEAR) | BATCH_NORMS | {
    "max_pool1d", "max_pool2d", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_bilinear2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "prelu", "_prelu_kernel",
}  # fmt: skip
KEEPS_LAYOUT = {
    "add", "sub", "rsub", "mul", "div", "neg", "relu", "relu6", "clamp", "hardtanh", "sigmoid", "tanh", "silu", "hardswish",
    "hardsigmoid", "leaky_relu", "elu", "clone", "dropout", "contiguous", "detach", "alias", "to", "_to_copy", "pad",
    "constant_pad_nd", "cat", "slice", "split", "split_with_sizes", "chunk", "getitem",
}  # fmt: skip
#: ops that give the same numbers under another shape or type
VIEWS = {
    "view", "reshape", "_unsafe_view", "view_copy", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as", "permute",
    "transpose", "slice", "select", "to", "_to_copy", "float", "clone", "contiguous", "detach", "alias",
}  # fmt: skip
#: ops that make integers of integers
COUNTS = {"add", "sub", "rsub", "mul", "clamp", "remainder", "cumsum", "where", "masked_fill", "cat"}
#: ops that take from their operand its shape and type alone
LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
#: nodes that compute nothing and are never read
IGNORED = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size"}
CONTROL_FLOW = {"cond", "while_loop", "map_impl", "scan", "associative_scan"}

#: torch's own modules that hold many ops
COMPOSITES = ("torch.nn.modules.activation.MultiheadAttention", "torch.nn.modules.transformer.")
#: ops that keep the order of entries along the axis that a softmax or maximum goes over
KEEPS_ORDER = VIEWS | {"add", "mul", "div", "masked_fill", "masked_fill_", "where", "cat", "dropout"}
ORDER_READERS = {"softmax", "_softmax", "_safe_softmax", "amax", "max.default", "max.dim", "argmax"}

EVAL_FIX = "call module.eval() before capture"


def capture(module: torch.nn.Module | ExportedProgram, example_inputs: Any = None) -> Graph:
    """Capture a trained network as a float graph, channels-last inside, the module's own shapes at the boundary.

    Args:
        module: an ``nn.Module`` in eval mode, or a ``torch.export.ExportedProgram``.
        example_inputs: one array or tensor, or a tuple of them: shapes as the module takes them (batch 1 in axis 0 gives
            a graph that runs any number of samples). NumPy arrays of int32, int64 and bool are indices and masks, all
            others are taken as float32. Not needed for an ExportedProgram.
    Returns: the graph; BatchNorm is folded, every node carries the module path and the user's source line. Indices of
        embeddings are int32 inputs, masks (whatever their type) float32 inputs that hold 0 or 1.
    Raises:
        ImportGraphError: the network can't be captured; ``problems`` lists every reason found in one pass.
        UsageError: ``module`` or ``example_inputs`` is not what is described above.
        MissingToolError: torch is not installed.
    """
    torch = _torch()
    if isinstance(module, torch.export.ExportedProgram):
        program, name = module, _program_name(module)
    elif isinstance(module, torch.nn.Module):
        if example_inputs is None:
            raise UsageError("capture needs example inputs", fix="pass one array per input of the network, batch size 1")
        _refuse_training(torch, module)
        program, name = _export(torch, module, _as_tensors(torch, example_inputs)), type(module).__name__
    else:
        raise UsageError(
            f"capture takes an nn.Module or a torch.export.ExportedProgram, got {type(module).__module__}.{type(module).__qualname__}"
        )
    program = _functionalise(program)
    return _lower(torch, program, name)


# ---------------------------------------------------------------------- exporting


def _torch() -> ModuleType:
    try:
        import torch
        import torch.export
    except ImportError as exc:
        raise MissingToolError("torch is needed to capture a network", fix="pip install 'qwtv2-edge[torch]'") from exc
    return torch


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about its own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _as_tensors(torch: ModuleType, example_inputs: Any) -> tuple[Any, ...]:
    items = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    out = []
    for i, x in enumerate(items):
        if isinstance(x, torch.Tensor):
            out.append(x)
            continue
        array = np.asarray(x)
        if array.dtype.kind not in "fiub":
            raise UsageError(f"example input {i} has dtype {array.dtype}", fix="pass torch tensors or numeric arrays")
        dtype = {"int32": np.int64, "int64": np.int64, "bool": np.bool_}.get(array.dtype.name, np.float32)
        out.append(torch.from_numpy(np.array(array, dtype)))  # a copy: read-only arrays are welcome
    return tuple(out)


def _refuse_training(torch: ModuleType, module: torch.nn.Module) -> None:
    kinds = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd)
    modes = [(path, m) for path, m in module.named_modules() if isinstance(m, kinds) and m.training]
    if not modes:
        return
    problems = tuple(Problem("training-mode", path, "", f"{type(m).__name__} is in training mode") for path, m in modes)
    raise ImportGraphError(f"the network is in training mode ({len(modes)} layers would behave otherwise)", problems, fix=EVAL_FIX)


def _export(torch: ModuleType, module: torch.nn.Module, inputs: tuple[Any, ...]) -> ExportedProgram:
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, inputs, strict=False)
    except Exception as exc:  # torch raises dozens of kinds here; all of them mean that this network can't be exported
        location = line_of_exception(exc)
        text = str(exc).strip().splitlines() or [type(exc).__name__]
        dynamic = type(exc).__name__ in ("GuardOnDataDependentSymNode", "DataDependentOutputException", "UserError") or any(
            s in str(exc) for s in ("data-dependent", "control flow", "Could not guard", "Dynamic control flow")
        )
        if dynamic:
            problem = Problem(
                "data-dependent-control-flow",
                type(module).__name__,
                str(location),
                "the path through the network depends on the values of a tensor",
                "compute both sides and mix them, or decide from shapes and constants only",
            )
            raise ImportGraphError("the network has data-dependent control flow", (problem,)) from exc
        shapes = ", ".join(str(tuple(getattr(x, "shape", ()))) for x in inputs)
        problem = Problem(
            "export-failed",
            type(module).__name__,
            str(location),
            f"{type(exc).__name__}: {text[0]}",
            f"check that module(*example_inputs) runs with inputs of shape {shapes}",
        )
        raise ImportGraphError("torch.export failed", (problem,)) from exc


def _functionalise(program: ExportedProgram) -> ExportedProgram:
    """Take out in-place ops, and break down ops without a rule; costs half a second, so only where it is needed."""
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    if all((aten.has_rule(_op_name(n)) or _op_name(n) == "getitem") and not _mutates(n) for n in calls):
        return program
    try:
        with _quiet():
            return program.run_decompositions({})
    except Exception as exc:
        text = str(exc).strip().splitlines() or [type(exc).__name__]
        problem = Problem("export-failed", "", str(line_of_exception(exc)), f"{type(exc).__name__}: {text[0]}")
        raise ImportGraphError("torch.export could not make the network functional", (problem,)) from exc


def _mutates(node: FxNode) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _program_name(program: ExportedProgram) -> str:
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            kind = next(iter(stack.values()))[1]
            return str(kind if isinstance(kind, str) else kind.__qualname__).rsplit(".", 1)[-1]
    return "network"


# ---------------------------------------------------------------------- places in the user's code


def _location(node: FxNode) -> Location:
    """Module path and the user's deepest own line of an exported node."""
    path, _ = _module_of(node)
    return replace(line_of_trace(str(node.meta.get("stack_trace") or "")), module_path=path)


def _module_of(node: FxNode) -> tuple[str, bool]:
    """(module path, whether that module is one of torch's own that stands for one op)."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", False
    path, kind = list(stack.values())[-1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return re.sub(r"@\d+", "", path), kind.startswith("torch.nn.") and not kind.startswith(COMPOSITES)


def _node_name(node: FxNode) -> str:
    """The IR name: the module path, and the op where the module is the user's own (and so may hold many)."""
    path, leaf = _module_of(node)
    op = _op_name(node).rstrip("_").lstrip("_").split(".")[0]
    if leaf and path:
        return path
    return f"{path}.{op}" if path else op


def _op_name(node: FxNode) -> str:
    """The op's name without namespace and overload; "op.overload" where the overloads mean different things."""
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__name__", str(target))
    name = str(schema.name).split("::")[-1]
    full = f"{name}.{schema.overload_name or 'default'}"
    return full if full in aten.RULES or full in aten.READABLE_OUTPUTS else name


# ---------------------------------------------------------------------- lowering


@dataclass(frozen=True, slots=True)
class _Fold:
    """What a weighted op takes in, and the nodes that thereby compute nothing more."""

    affine: Affine
    nodes: tuple[Any, ...]


class _Lowering:
    """State of one pass over an exported program."""

    def __init__(self, torch: ModuleType, program: ExportedProgram, name: str) -> None:
        self.torch = torch
        self.program = program
        self.nodes: list[FxNode] = list(program.graph.nodes)
        self.context = Context(GraphBuilder(name))
        self.values: dict[FxNode, Any] = {}
        self.problems: list[Problem] = []
        self.parameters: dict[str, str] = {}  # placeholder -> parameter or buffer path

    def problem(self, node: FxNode | None, code: str, message: str, fix: str = "", name: str = "") -> None:
        source = str(_location(node)) if node is not None else ""
        self.problems.append(Problem(code, name or (_node_name(node) if node is not None else ""), source, message, fix))


def _lower(torch: ModuleType, program: ExportedProgram, name: str) -> Graph:
    s = _Lowering(torch, program, name)
    _read_inputs(s)
    _evaluate_constants(s)
    folds = _plan_folds(s)
    absorbed = {n: head for head, fold in folds.items() for n in fold.nodes}
    for node in s.nodes:
        if node.op == "call_function" and node not in s.values:
            if node in absorbed:
                value = s.values[absorbed[node]]
                s.values[node] = (value,) if _op_name(node) in BATCH_NORMS and _is_tuple(node) else value
            else:
                s.values[node] = _lower_node(s, node, folds.get(node))
    _write_outputs(s)
    if s.problems:
        count = len(s.problems)
        raise ImportGraphError(f"{name} can't be captured: {count} problem{'s' if count > 1 else ''}", tuple(s.problems))
    return tidy(s.context.b.freeze())


def _shape_of(meta: Any) -> tuple[Any, ...]:
    return tuple(meta.shape)


def _static(shape: Sequence[Any]) -> bool:
    return all(isinstance(d, int) for d in shape)


def _read_inputs(s: _Lowering) -> None:
    """Declare user inputs and bind parameters, buffers and constants."""
    torch, program = s.torch, s.program
    kinds = torch.export.graph_signature.InputKind
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in s.nodes:
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        if spec.kind in (kinds.PARAMETER, kinds.BUFFER, kinds.CONSTANT_TENSOR):
            _bind_parameter(s, node, spec.target, may_mask=spec.kind != kinds.PARAMETER)
        elif spec.kind == kinds.USER_INPUT:
            _declare_input(s, node)
        else:
            s.problem(node, "unsupported-form", f"input '{node.name}' is a {spec.kind.name.lower()}", name=node.name)
            s.values[node] = None


def _bind_parameter(s: _Lowering, node: FxNode, target: str, may_mask: bool) -> None:
    """may_mask: negative infinity is taken, as masks hold it; what is left of it in a constant of the graph is refused later."""
    program = s.program
    table: Mapping[str, Any] = program.state_dict
    tensor = table[target] if target in table else program.constants[target]
    tensor = tensor.detach().cpu()
    s.parameters[node.name] = target
    s.values[node] = tensor
    if not node.users:
        return
    user = next(iter(node.users))
    if tensor.is_floating_point():
        if tensor.dtype != s.torch.float32:
            s.problem(user, "unsupported-dtype", f"'{target}' is {tensor.dtype}", "convert the module with .float()", name=target)
        bad = int((~s.torch.isfinite(tensor)).sum())
        if bad and not (may_mask and bool((s.torch.isfinite(tensor) | (tensor == -np.inf)).all())):
            s.context.reported.add(target)
            s.problem(
                user,
                "non-finite-weight",
                f"'{target}' holds {bad} NaN or infinite values of {tensor.numel()}",
                "retrain or repair the checkpoint",
                name=target,
            )


def _declare_input(s: _Lowering, node: FxNode) -> None:
    meta = node.meta.get("val")
    if not isinstance(meta, s.torch.Tensor):  # a number or None given to forward
        s.values[node] = meta
        return
    shape = _shape_of(meta)
    c = s.context
    c.name = node.name
    if not _static(shape):
        s.problem(node, "dynamic-shape", f"input '{node.name}' has shape {tuple(map(str, shape))}", "export with static shapes", node.name)
        shape = tuple(d if isinstance(d, int) else int(d.node.hint or 1) for d in shape)
    dtype, mask = _role(s.torch, node, meta.dtype)
    if dtype is None:
        fix = "networks take float32 inputs, int32 or int64 indices of embeddings, and masks"
        s.problem(node, "unsupported-dtype", f"input '{node.name}' is {meta.dtype}", fix, node.name)
    if 0 in shape:
        s.problem(node, "unsupported-form", f"input '{node.name}' of shape {shape} holds nothing", "give every axis an extent", node.name)
        shape = tuple(max(1, d) for d in shape)
    tensor = c.b.input(node.name, TensorType(shape, dtype or "float32"))
    value = from_form(tensor, shape, tuple(range(len(shape))))
    if mask:
        s.values[node] = masks.of_input(value, meta.dtype == s.torch.bool)
        return
    form = {4: NHWC, 3: NHWC_OF_1D}.get(len(shape))
    if form is not None and _reaches_image_op(node):  # the transpose goes where a channels-last input can drop it
        value = c.to_form(value, form)
    s.values[node] = value


def _role(torch: ModuleType, node: FxNode, dtype: Any) -> tuple[str | None, bool]:
    """(dtype of the graph input or None where there is none, whether it is a mask) of an input of the network."""
    if dtype == torch.bool:
        return "float32", True
    if dtype in (torch.int32, torch.int64):
        indexes = any(_op_name(user) == "embedding" for user, _ in _readers_through(node, VIEWS | COUNTS))
        return ("int32", False) if indexes else ("float32", True)
    return ("float32", _is_mask(node)) if dtype == torch.float32 else (None, False)


def _readers_through(start: FxNode, ops: set[str]) -> Iterator[tuple[FxNode, FxNode]]:
    """(reader, what it reads) of ``start`` and of everything that ``ops`` make of it."""
    todo, seen = [start], {start}
    while todo:
        node = todo.pop()
        for user in node.users:
            yield user, node
            if user not in seen and user.op == "call_function" and _op_name(user) in ops:
                seen.add(user)
                todo.append(user)


def _is_mask(start: FxNode) -> bool:
    """True where a float input can only mean a mask: all that reads it compares it, makes it a masking number, or averages over it."""
    steps = VIEWS | {"rsub", "sub", "clamp", "sum"}
    masking = weighting = counting = False
    for user, node in _readers_through(start, steps):
        op = _op_name(user)
        others = [a for a in user.args if a is not node and _is_fx(a)]
        if op in ("eq", "ne", "lt", "gt", "le", "ge"):
            masking = True
        elif op == "mul" and not others:
            masking = masking or any(isinstance(a, int | float) and -abs(a) <= masks.MASKING for a in user.args)
            if not masking:
                return False
        elif op == "mul" and others:
            weighting = True
        elif op == "div" and user.args[1] is node:
            counting = True
        elif op not in steps | IGNORED or (op in ("rsub", "sub") and others):
            return False
    return masking if not (weighting or counting) else weighting and counting


def _reaches_image_op(start: FxNode) -> bool:
    """True where an op that wants channels-last is reached through ops that keep the layout."""
    todo, seen = [start], {start}
    while todo:
        for user in todo.pop().users:
            if user in seen or user.op != "call_function":
                continue
            seen.add(user)
            op = _op_name(user)
            if op in WANTS_NHWC:
                return True
            if op in KEEPS_LAYOUT:
                todo.append(user)
    return False


def _is_tuple(node: FxNode) -> bool:
    return isinstance(node.meta.get("val"), tuple | list)


def _evaluate_constants(s: _Lowering) -> None:
    """Compute, with torch itself, every node that depends on parameters, buffers and numbers alone."""
    torch = s.torch
    known: dict[Any, Any] = {n: v for n, v in s.values.items() if not isinstance(v, Value | aten.Symbol)}
    for node in s.nodes:
        if node.op == "get_attr":
            attr: Any = s.program.graph_module
            for part in str(node.target).split("."):
                attr = getattr(attr, part)
            if isinstance(attr, torch.Tensor):
                known[node] = attr.detach()
                s.parameters.setdefault(node.name, str(node.target))
        elif node.op == "call_function" and (_op_name(node) in LIKE or all(n in known for n in node.all_input_nodes)):
            target: Any = node.target
            tags = getattr(target, "tags", ())
            if _op_name(node) in IGNORED or _op_name(node) in CONTROL_FLOW or torch.Tag.nondeterministic_seeded in tags:
                continue
            args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: known[n] if n in known else _blank(torch, n))
            with torch.no_grad():
                known[node] = target(*args, **kwargs)
    for node, value in known.items():
        s.values[node] = _constant(s, node, value)


def _blank(torch: ModuleType, node: FxNode) -> Any:
    """Zeros in place of a value of which only the shape and type matter."""
    meta = node.meta["val"]
    return torch.zeros([d if isinstance(d, int) else 1 for d in meta.shape], dtype=meta.dtype)


def _constant(s: _Lowering, node: FxNode, value: Any) -> Any:
    if isinstance(value, s.torch.Tensor):
        name = s.parameters.get(node.name)
        if name is None:  # computed: named after the parameter it comes from, where that is one
            sources = [v.name for n in node.all_input_nodes if isinstance(v := s.values.get(n), Const)]
            name = sources[0] if len(sources) == 1 else (_node_name(node) + ".constant")
        array = value.detach().cpu()
        if array.dtype in (s.torch.bfloat16,):
            array = array.float()
        return Const(array.numpy(), name)
    if isinstance(value, tuple | list):
        return tuple(_constant(s, node, v) for v in value)
    return value


# ---------------------------------------------------------------------- folding plan


def _plan_folds(s: _Lowering) -> dict[Any, _Fold]:
    """weighted op -> the BatchNorms and per-channel constants that directly follow it and nobody else reads."""
    plan = {}
    for node in s.nodes:
        if node.op == "call_function" and node not in s.values and _op_name(node) in WEIGHTED and _has_weights(s, node):
            fold = _chain(s, node)
            if fold.nodes:
                plan[node] = fold
    return plan


def _has_weights(s: _Lowering, node: FxNode) -> bool:
    """False for the products of two activations, and for addmm of an activation."""
    factors = {"mm": ("mat2",), "matmul": ("other",), "addmm": ("self", "mat2")}.get(_op_name(node), ())
    values = [s.values.get(_arguments(node)[name]) for name in factors]
    return all(isinstance(v, Const) and (v.array.ndim == 2 or name == "self") for name, v in zip(factors, values, strict=True))


def _chain(s: _Lowering, head: FxNode) -> _Fold:
    shape = _shape_of(head.meta["val"])
    axis = len(shape) - 1 if _op_name(head) in LINEAR else 1
    if len(shape) <= axis or not _static(shape):
        return _Fold(Affine(np.ones(1), np.zeros(1)), ())
    scale, offset = np.ones(shape[axis]), np.zeros(shape[axis])
    taken: list[Any] = []
    at = head
    while len(at.users) == 1:
        user = next(iter(at.users))
        step = _affine_of(s, at, user, shape, axis)
        if step is None:
            break
        scale, offset = scale * step.scale, offset * step.scale + step.offset
        taken.append(user)
        at = user
        if _is_tuple(user):  # BatchNorm's first output, read by getitem
            readers = [u for u in user.users if u.users]
            if len(readers) != 1 or readers[0].args[1] != 0:
                taken.pop()
                break
            at = readers[0]
    return _Fold(Affine(scale, offset), tuple(taken))


def _affine_of(s: _Lowering, at: FxNode, user: FxNode, shape: tuple[int, ...], axis: int) -> Affine | None:
    """What ``user`` does to its operand ``at``, where that is an affine map per channel of ``axis``."""
    if user.op != "call_function":
        return None
    op = _op_name(user)
    try:
        kwargs = _arguments(user)
    except Unsupported:
        return None
    channels = shape[axis]
    if op in BATCH_NORMS:
        if len(shape) > 2 and axis != 1:
            return None
        args = [s.values.get(kwargs[k]) if kwargs[k] is not None else None for k in ("weight", "bias", "running_mean", "running_var")]
        try:
            return batch_norm_affine(args[0], args[1], args[2], args[3], kwargs.get("training", False), kwargs["eps"])
        except Unsupported:
            return None  # reported where the node is lowered
    if op not in ("add", "sub", "mul", "div") or kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
        return None
    first, second = kwargs["self"], kwargs["other"]
    other = second if first is at else first
    if first is second or (first is not at and op in ("sub", "div")):
        return None
    if _is_fx(other):
        other = s.values.get(other)
        if not isinstance(other, Const):
            return None
        other = other.array
    k = np.asarray(other, np.float64)
    if k.size != 1:
        if k.ndim > len(shape):
            return None
        lifted = (1,) * (len(shape) - k.ndim) + k.shape
        if lifted != tuple(channels if i == axis else 1 for i in range(len(shape))):
            return None
    k = np.broadcast_to(k.reshape(-1), (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    if op in ("add", "sub"):
        return Affine(one, k if op == "add" else -k)
    if op == "div":
        return Affine(1.0 / k, zero) if np.all(k) else None
    return Affine(k, zero)


def _is_fx(x: Any) -> bool:
    return hasattr(x, "all_input_nodes")


# ---------------------------------------------------------------------- one node


def _arguments(node: FxNode) -> dict[str, Any]:
    """The node's arguments under their schema names, defaults filled in."""
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is None:
        raise Unsupported(f"{_op_name(node)} has no schema", code="unsupported-op")
    out = {}
    for i, arg in enumerate(schema.arguments):
        if i < len(node.args) and not arg.kwarg_only:
            out[arg.name] = node.args[i]
        elif arg.name in node.kwargs:
            out[arg.name] = node.kwargs[arg.name]
        elif arg.has_default_value():
            out[arg.name] = arg.default_value
    return out


def _lower_node(s: _Lowering, node: FxNode, fold: _Fold | None) -> Any:
    op = _op_name(node)
    c = s.context
    if op in IGNORED:
        return None
    if op == "getitem":
        return _get_item(s, node)
    meta = node.meta.get("val")
    metas = tuple(meta) if isinstance(meta, tuple | list) else (meta,)
    tensors = [m for m in metas if isinstance(m, s.torch.Tensor)]
    if not all(_static(_shape_of(m)) for m in tensors):
        if not any(p.code == "dynamic-shape" for p in s.problems):
            s.problem(node, "dynamic-shape", f"{op} has an output of shape {[tuple(map(str, m.shape)) for m in tensors]}")
        return _stand_in(s, node, metas)
    c.out_shapes = tuple(_shape_of(m) for m in tensors)
    c.name, c.is_module, c.location = _node_name(node), all(_module_of(node)), _location(node)
    c.op, c.affine = op, fold.affine if fold is not None else None
    c.is_score = lambda: any(_op_name(user) in ORDER_READERS for user, _ in _readers_through(node, KEEPS_ORDER))
    try:
        if op in CONTROL_FLOW:
            raise Unsupported(f"control flow ({op})", "compute both sides and mix them", "data-dependent-control-flow")
        if not aten.has_rule(op):
            raise Unsupported(f"op '{node.target}' has no form here", aten.HINTS.get(op.strip("_").split(".")[0], ""), "unsupported-op")
        empty = [shape for shape in c.out_shapes[: 1 if op in aten.READABLE_OUTPUTS else None] if 0 in shape]
        if empty:
            raise Unsupported(f"a tensor of shape {empty[0]} holds nothing")
        readable = aten.READABLE_OUTPUTS.get(op)
        if readable is not None:
            for user in node.users:
                if user.args[1] not in readable and user.users:
                    raise Unsupported(f"output {user.args[1]} of {op} (indices or statistics) is used", "use the values only")
        kwargs = s.torch.fx.node.map_arg(_arguments(node), lambda n: s.values[n])
        result = aten.apply(c, op, **{k: _plain(v) for k, v in kwargs.items()})
    except Unsupported as u:
        s.problem(node, u.code, u.message, u.fix)
        return _stand_in(s, node, metas)
    except GraphError as error:
        s.problem(node, "unsupported-form", error.message, error.fix)
        return _stand_in(s, node, metas)
    except TypeError as exc:  # a rule that does not know an argument of this overload
        s.problem(node, "unsupported-form", f"{node.target} with these arguments: {exc}")
        return _stand_in(s, node, metas)
    if isinstance(result, tuple) and not isinstance(meta, tuple | list):
        result = result[0]
    return result


def _plain(v: Any) -> Any:
    return list(v) if isinstance(v, tuple | list) else v


def _get_item(s: _Lowering, node: FxNode) -> Any:
    source, index = node.args
    values = s.values[source]
    if isinstance(values, tuple) and index < len(values):
        return values[index]
    return None  # an output that READABLE_OUTPUTS keeps from being read


def _stand_in(s: _Lowering, node: FxNode, metas: tuple[Any, ...]) -> Any:
    """Placeholders for the outputs of a refused node: what follows is still checked."""
    c = s.context
    c.name = _node_name(node)
    out = tuple(c.placeholder([d if isinstance(d, int) else 1 for d in m.shape]) if isinstance(m, s.torch.Tensor) else None for m in metas)
    return out if _is_tuple(node) else out[0]


def _write_outputs(s: _Lowering) -> None:
    kinds = s.torch.export.graph_signature.OutputKind
    output = next(n for n in s.nodes if n.op == "output")
    c = s.context
    for node, spec in zip(output.args[0], s.program.graph_signature.output_specs, strict=True):
        if spec.kind == kinds.BUFFER_MUTATION:
            s.problem(node, "unsupported-form", f"forward changes the buffer '{spec.target}'", "make the network stateless")
        if spec.kind != kinds.USER_OUTPUT:
            continue
        value = s.values.get(node) if _is_fx(node) else None
        name = getattr(spec.arg, "name", "output")
        if isinstance(value, aten.Symbol):
            s.problem(node, "unsupported-form", f"output '{name}' is {value.words}, not numbers", value.fix, name=str(name))
            continue
        if not isinstance(value, Value):
            s.problem(node if _is_fx(node) else None, "unsupported-form", f"output '{name}' does not depend on the inputs", name=str(name))
            continue
        c.name, c.location = _node_name(node), _location(node)
        tensor = c.to_logical(aten.whole(c, value))
        if tensor in c.b.inputs or tensor in c.b.outputs:  # an output is a tensor of its own
            tensor = c.copy(tensor)
        c.b.outputs.append(tensor)
    if not c.b.inputs:
        s.problem(None, "unsupported-form", "the network has no tensor input")
    if not c.b.outputs and not s.problems:
        s.problem(None, "unsupported-form", "the network has no tensor output")
