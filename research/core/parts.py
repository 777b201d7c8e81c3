"""The law of parts: frozen dataclasses of numbers that compare, hash, travel as JSON and vary."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import operator
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")
_STATIC = (bool, int, str, bytes, type(None), PurePath, frozenset)


def _is_static(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_static(item) for item in value)
    return isinstance(value, _STATIC)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def part(cls: type[T]) -> type[T]:
    """Make `cls` a part: a frozen keyword-only dataclass that is also a pytree of its scalars.

    Integers, strings, booleans and tuples of them are structure: they are static under `jax.jit`.
    Floats and nested parts are leaves: they are traced, so two parts that differ only in floats
    share one compilation. Rebuilding from leaves skips `__post_init__`: tracers are not validated.
    """
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    names = tuple(made.__dataclass_fields__)  # type: ignore[attr-defined]

    def flatten_with_keys(value: Any):
        held = {name: getattr(value, name) for name in names}
        static = tuple((k, v) for k, v in held.items() if _is_static(v))
        traced = tuple(k for k, v in held.items() if not _is_static(v))
        return [(jax.tree_util.GetAttrKey(k), held[k]) for k in traced], (traced, static)

    def unflatten(aux: Any, children: Iterable[Any]) -> Any:
        traced, static = aux
        value = object.__new__(made)
        for name, item in (*zip(traced, children, strict=True), *static):
            object.__setattr__(value, name, item)
        return value

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten)
    return made


def require(owner: Any, *checks: tuple[bool, str]) -> None:
    """Raise one ValueError that lists every failed check of `owner`.

    Each check is (holds, message); a message says the value, what was expected and what to do.
    """
    failed = [message for holds, message in checks if not holds]
    if failed:
        raise ValueError(f"{type(owner).__name__}: " + "; ".join(failed))


def describe(value: Any) -> Any:
    """Turn a tree of parts into JSON: a part becomes an object that carries its type's name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{cls.__module__}.{cls.__qualname__}", **fields}
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def rebuild(value: Any) -> Any:
    """Undo `describe`; only dataclasses are made, of this project or of modules that are loaded.

    Raises:
      ValueError: the type is not one of ours, or no longer has the fields that were written.
    """
    if isinstance(value, list):
        return tuple(rebuild(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    if "type" not in value:
        return {key: rebuild(item) for key, item in value.items()}
    module, _, name = value["type"].rpartition(".")
    if module.split(".")[0] not in ("research", "configs") and module not in sys.modules:
        raise ValueError(
            f"cannot rebuild {value['type']!r}: a part that is not maktab's own is not imported "
            "because a JSON file says so; load the experiment file that defines it first"
        )
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        cls = None
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"{value['type']} is unknown to this version, or is no part")
    held = {key: rebuild(item) for key, item in value.items() if key != "type"}
    fields = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(cls)}
    unknown = held.keys() - fields.keys()
    missing = {name for name, needed in fields.items() if needed} - held.keys()
    if unknown or missing:
        raise ValueError(
            f"{value['type']}: fields {sorted(unknown | missing)} are unknown to this version, or "
            "were to the one that wrote them; use that version of maktab"
        )
    return cls(**held)


def _children(node: Any) -> dict[str, Any]:
    if isinstance(node, tuple):
        return {str(index): item for index, item in enumerate(node)}
    if dataclasses.is_dataclass(node):
        return {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    return {}


def _step(node: Any, step: str, path: str) -> Any:
    """Give one child of a node; an unknown one is an error that lists what there is."""
    children = _children(node)
    if step not in children:
        near = difflib.get_close_matches(step, children, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{path!r}: {type(node).__name__} has no field {step!r}.{hint} "
            f"It has: {', '.join(children) or 'none'}."
        )
    return children[step]


def _walk(node: Any, path: str) -> Any:
    """Follow a dotted path from `node`."""
    for step in path.split("."):
        node = _step(node, step, path)
    return node


def vary(root: T, changes: Mapping[str, Any]) -> T:
    """Derive a part with some fields changed: `vary(experiment, {"tuning.rank": 64})`.

    A path walks fields by name and tuples by index. Each part is rebuilt once with all of its
    changes, so fields that are only right together can be changed together.

    Raises:
      ValueError: a path names no field; the error lists the fields there are.
    """
    return _varied(root, [(path.split("."), value, path) for path, value in changes.items()])


def _varied(node: Any, changes: Sequence[tuple[list[str], Any, str]]) -> Any:
    """Rebuild `node` once with all changes below it, so that fields that need one another pass."""
    new: dict[str, Any] = {}
    for steps, value, path in changes:
        if len(steps) == 1:
            _step(node, steps[0], path)
            new[steps[0]] = value
    for head in dict.fromkeys(steps[0] for steps, _, _ in changes if len(steps) > 1):
        below = [(steps[1:], v, path) for steps, v, path in changes if steps[0] == head]
        deeper = [change for change in below if change[0]]
        child = new[head] if head in new else _step(node, head, deeper[0][2])
        new[head] = _varied(child, deeper)
    if isinstance(node, tuple):
        return tuple(new.get(str(index), item) for index, item in enumerate(node))
    return dataclasses.replace(node, **new)


def parse_setting(root: Any, setting: str) -> tuple[str, Any]:
    """Read `path=value` from a command line by the declared type of the field it replaces.

    The value is a Python literal where the field takes one, else the text as it stands: a field
    that is a string needs no quotes, and `name=7` names it "7".

    Raises:
      ValueError: there is no '=', the path is unknown, or the value has another type.
    """
    path, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"--set {setting!r}: expected path=value, for example tuning.rank=64")
    current, declared = _walk(root, path), _declared(root, path)
    literal = _literal(text)
    for value in (literal, float(literal) if type(literal) is int else text, text):
        if _fits(value, declared):
            return path, value
    names = ", ".join(_children(current)) if dataclasses.is_dataclass(current) else ""
    raise ValueError(
        f"--set {setting!r}: {path} is {current!r} and takes {_named(declared)}, not {text!r}"
        + (f"; change its fields one by one ({names}), or the experiment file" if names else "")
    )


def parse_part(text: str, known: Mapping[str, Callable[..., Any]]) -> Any:
    """Read a part as Python would write it: `TopFraction(fraction=0.25)`.

    Only names in `known` are called, with literals and with one another; where the parts have
    operators, so do expressions of them. A name alone is called without arguments. Nothing else
    is evaluated: no attribute, no index, no import.

    Raises:
      ValueError: what is wrong, with the names or the fields that there are.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"{text!r} is no expression ({error}); {_example(known)}") from error
    return _made(tree, text, known)


_OPERATORS: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
    ast.USub: operator.neg,
}


def _made(node: ast.expr, text: str, known: Mapping[str, Callable[..., Any]]) -> Any:
    """Make what one node of an expression says."""
    below = functools.partial(_made, text=text, known=known)
    try:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(map(below, items))
            case ast.Name(id=name):
                return _called(name, text, known, [], {})
            case ast.Call(func=ast.Name(id=name), args=given, keywords=named):
                fields = {word.arg or "**": below(word.value) for word in named}
                return _called(name, text, known, list(map(below, given)), fields)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](below(operand))
            case (
                ast.BinOp(left=left, op=op, right=right)
                | ast.Compare(left=left, ops=[op], comparators=[right])
            ) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](below(left), below(right))
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{text!r}: {error}") from error
    raise ValueError(f"{text!r}: {ast.unparse(node)!r} is not allowed here; {_example(known)}")


def _called(
    name: str, text: str, known: Mapping[str, Callable[..., Any]], given: list, fields: dict
) -> Any:
    """Call a known name; literals have to be of the fields' declared types."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{text!r}: {name!r} is unknown.{hint} There are: {', '.join(known)}")
    make = known[name]
    if not (isinstance(make, type) and dataclasses.is_dataclass(make)):
        return make(*given, **fields)
    names = [field.name for field in dataclasses.fields(make)]
    if given or not fields.keys() <= set(names):
        raise ValueError(
            f"{text!r}: {name} takes its fields by name; it has: {', '.join(names) or 'none'}"
        )
    types = typing.get_type_hints(make)
    for field, value in fields.items():
        if not _is_static(value) and not isinstance(value, float):
            continue  # a part, which the owner itself checks
        kinds = (value, float(value)) if type(value) is int else (value,)
        fitting = [kind for kind in kinds if types[field] is Any or _fits(kind, types[field])]
        if not fitting:
            raise ValueError(
                f"{text!r}: {name}.{field} takes {_named(types[field])}, not {value!r}"
            )
        fields[field] = fitting[0]
    return make(**fields)


def _example(known: Mapping[str, Any]) -> str:
    return f"expected such as {next(iter(known))}(...), of: {', '.join(known)}"


def _declared(root: Any, path: str) -> Any:
    """Give the type that a field is declared with; an item of a tuple keeps the type it has."""
    parent, _, name = path.rpartition(".")
    owner = _walk(root, parent) if parent else root
    if isinstance(owner, tuple):
        return type(owner[int(name)])
    return typing.get_type_hints(type(owner))[name]


def _literal(text: str) -> Any:
    try:
        return _as_tuples(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value


def _fits(value: Any, declared: Any) -> bool:
    """Whether a literal is of a declared type; that of a part it never is."""
    origin, choices = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in choices)
    if origin is typing.Literal:
        return value in choices
    if origin is tuple and isinstance(value, tuple):
        kinds = choices[:1] * len(value) if choices[1:] == (...,) else choices
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    return type(value) is (origin or declared)


def _named(declared: Any) -> str:
    return declared.__name__ if isinstance(declared, type) else str(declared).replace("typing.", "")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """List, a line each, where two described trees differ: `path: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for index, (a, b) in enumerate(zip(old, new, strict=True))
            for line in differences(a, b, f"{path}.{index}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
