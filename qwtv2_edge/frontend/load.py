"""Finds the user's network: ``package.module:factory``, ``path/to/file.py:factory`` or a ``.pt2`` file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from qwtv2_edge.errors import MissingToolError, UsageError
from qwtv2_edge.frontend.source import line_of_exception

FORMS = "give package.module:factory, path/to/file.py:factory, or a .pt2 file"


def load_module(spec: str) -> tuple[Any, Any]:
    """Load the network that ``spec`` names.

    Args:
        spec: ``package.module:factory``, ``path/to/file.py:factory`` (the file may lie anywhere) or ``file.pt2``.
            ``factory()`` returns an ``nn.Module``, a ``torch.export.ExportedProgram``, or ``(module, example_inputs)``.
    Returns: (module or ExportedProgram, example inputs or None).
    Raises:
        UsageError: nothing there, a wrong return value, or an exception inside the user's code (with their own line).
        MissingToolError: torch is not installed.
    """
    if spec.endswith(".pt2"):
        return _load_pt2(Path(spec)), None
    place, colon, attribute = spec.rpartition(":")
    if not colon or not place or not attribute:
        raise UsageError(f"'{spec}' does not name a network", fix=FORMS)
    if place.endswith(".py") or os.sep in place:
        with _on_path(str(Path(place).resolve().parent)):
            return _call(_import_file(Path(place)), attribute, spec)
    with _on_path(os.getcwd()):
        return _call(_import_module(place), attribute, spec)


def _torch() -> ModuleType:
    try:
        return importlib.import_module("torch")
    except ImportError as exc:
        raise MissingToolError("torch is needed to load a network", fix="pip install 'qwtv2-edge[torch]'") from exc


def _load_pt2(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"no file '{path}'", fix=FORMS)
    torch = _torch()
    try:
        return torch.export.load(str(path))
    except Exception as exc:  # zip, JSON and pickle errors of every kind
        raise UsageError(
            f"'{path}' is not a program that this torch ({torch.__version__}) can load: {_first_line(exc)}",
            fix="write it with torch.export.save and the same version of torch",
        ) from exc


@contextmanager
def _on_path(folder: str) -> Iterator[None]:
    """``folder`` first in the import path; the user's file may import its neighbours."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no file '{path}'", fix=FORMS)
    resolved = path.resolve()
    # a name of its own: two files called model.py, or one called like a package, do not meet
    name = f"_user_model_{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}_{resolved.stem}"
    found = importlib.util.spec_from_file_location(name, resolved)
    assert found is not None
    loader = found.loader
    assert loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickling look the module up
    try:
        _guarded(lambda: loader.exec_module(module), f"loading '{path}'")
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import_module(name: str) -> ModuleType:
    try:
        present = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        present = False
    except Exception:  # a parent package that fails to import: said below, with the user's line
        present = True
    if not present:
        raise UsageError(f"no module '{name}'", fix=f"{FORMS}; modules are looked up in the current folder and the installed packages")
    module: ModuleType = _guarded(lambda: importlib.import_module(name), f"importing '{name}'")
    return module


def _call(module: ModuleType, attribute: str, spec: str) -> tuple[Any, Any]:
    torch = _torch()
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            names = [n for n, v in vars(target).items() if callable(v) and not n.startswith("_")]
            near = get_close_matches(part, names, 1)
            fix = f"did you mean '{near[0]}'?" if near else f"callables there: {', '.join(names[:12]) or 'none'}"
            raise UsageError(f"'{spec}': there is no '{part}'", fix=fix)
        target = getattr(target, part)
    kinds = (torch.nn.Module, torch.export.ExportedProgram)
    result = target
    if not isinstance(target, kinds):
        if not callable(target):
            raise UsageError(f"'{spec}' is a {type(target).__name__}, not a function that returns a network")
        result = _guarded(target, f"calling {attribute}()")
    example = None
    if isinstance(result, tuple) and len(result) == 2:
        result, example = result
    if isinstance(result, type) and issubclass(result, torch.nn.Module):
        raise UsageError(f"'{spec}' returned the class {result.__name__}", fix="return an instance of it")
    if not isinstance(result, kinds):
        raise UsageError(
            f"'{spec}' returned a {type(result).__name__}",
            fix="return an nn.Module, a torch.export.ExportedProgram, or (module, example_inputs)",
        )
    return result, example


def _guarded(action: Callable[[], Any], doing: str) -> Any:
    """Run the user's code; an exception in it becomes one UsageError that shows their own line."""
    try:
        return action()
    except (Exception, SystemExit) as exc:
        raise UsageError(f"{doing} failed: {type(exc).__name__}: {_first_line(exc)}", source=str(line_of_exception(exc))) from exc


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__
