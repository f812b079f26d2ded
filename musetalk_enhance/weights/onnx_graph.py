"""What an ONNX file says of itself, read before any runtime opens it, and what is refused there.

The few fields that matter are read from the protobuf wire format (onnx.proto), so that neither the
package onnx nor a session is needed, and nothing in the file is believed before it was checked. The
numbers in `_fields` loops are the field numbers of the message that is read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, CorruptWeightError

MAX_TENSOR_BYTES = 8 * 2**30
"""Bytes of all tensors together that a graph may declare; GPEN-2048 has 0.3 GB."""
TYPES = {1: "float32", 7: "int64", 10: "float16", 11: "float64"}
"""NumPy's names of ``TensorProto.DataType``, of those that a restorer's inputs have."""
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
"""Operator sets that are part of onnxruntime and run no code of a file's author."""
_FILE_OPERATORS = ("EPContext", "PythonOp", "PythonOpGrad", "ATen")  # name a file or a function
_INT64, _STRING = 7, 8
_ELEMENT_BYTES = {
    **dict.fromkeys((4, 5, 10, 16), 2),
    **dict.fromkeys((1, 6, 12), 4),
    **dict.fromkeys((_INT64, 11, 13, 14), 8),
    15: 16,
}
"""Bytes by ``TensorProto.DataType``; the others have one or less."""
_MAX_DEPTH = 16  # graphs within graphs
_SHAPE_OPERATORS = {"ConstantOfShape": 0, "Expand": 1}  # which input is the shape


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: its name.
        type: a value of `TYPES`; ``"type N"`` for another one.
        shape: sizes, None for an open one; None as a whole if the file does not state it.
    """

    name: str
    type: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sides = "?" if self.shape is None else ", ".join(str(side or "?") for side in self.shape)
        return f"{self.name} {self.type} ({sides})"


@dataclass(frozen=True)
class OnnxGraph:
    """The interface of a graph.

    Attributes:
        path: its file.
        inputs: without those that have a value in the file.
        outputs: in the file's order.
        facts: the metadata in the file.
    """

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    facts: dict[str, str]


@dataclass
class _Contents:
    """What was met on the way through a file."""

    path: Path
    domains: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    shapes: dict[bytes, tuple[int, ...]] = field(default_factory=dict)
    shaped: set[bytes] = field(default_factory=set)
    tensor_bytes: int = 0


class _MalformedError(ValueError):
    """The bytes are no protobuf message."""


def read_graph(path: Path) -> OnnxGraph:
    """Read and check a graph.

    Raises:
        CorruptWeightError: not an ONNX graph, or a truncated one.
        CheckpointError: its tensors are in a file outside its folder, larger than the file allows,
            or it needs operators that are not part of onnxruntime.
    """
    size = path.stat().st_size
    contents = _Contents(path)
    facts: dict[str, str] = {}
    ports: tuple[tuple[Port, ...], tuple[Port, ...]] | None = None
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for number, value in _fields(data):
            if number == 7:
                ports = _read_graph(_message(value), contents, 0)
            elif number == 14:
                key, text = _pair(value)
                facts[key] = text
            elif number == 25:  # an operator that is defined in the file, from other operators
                for inner, part in _fields(_message(value)):
                    if inner == 7:
                        _read_node(_message(part), contents, 0)
                    elif inner == 10:
                        contents.functions.add(_text(part))
    except (ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        what = f"cannot be read as an ONNX graph ({error}); it has {size} bytes and is truncated"
        hint = " Copy or download it again."
        raise CorruptWeightError(path, f"{what} or another kind of file", hint) from error
    if ports is None or not ports[1]:
        what = f"is not an ONNX graph, or has no output; it has {size} bytes"
        raise CorruptWeightError(path, what, " Copy or download it again.")
    _refuse_operators(contents)
    _refuse_size(contents, max(map(prod, _expanded(contents)), default=0) * 4)
    return OnnxGraph(path, ports[0], ports[1], facts)


def _expanded(contents: _Contents) -> Iterator[tuple[int, ...]]:
    """Constant shapes that a runtime would fill while it loads the graph."""
    return (contents.shapes[name] for name in contents.shaped & contents.shapes.keys())


def _refuse_operators(contents: _Contents) -> None:
    foreign = sorted(contents.domains - {*DOMAINS} - contents.functions)
    if foreign:
        actual = f"a graph with the custom operators {', '.join(foreign)[:200]}"
        expected = "a graph of standard operators; libraries of operators are not loaded"
        raise CheckpointError(contents.path, actual, expected)


def _refuse_size(contents: _Contents, size: int, stored: int | None = None) -> None:
    """Refuse tensors of `size` bytes if that is too much, or more than `stored` bytes can hold."""
    has = "" if stored is None else f", of which it has {stored}"
    if size > MAX_TENSOR_BYTES or (stored is not None and size > 8 * stored):
        actual = f"a graph with tensors of {size} bytes{has}"
        expected = f"at most {MAX_TENSOR_BYTES} bytes, all of them there"
        raise CheckpointError(contents.path, actual, expected)


def _read_graph(
    graph: memoryview, contents: _Contents, depth: int
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and outputs of a ``GraphProto``."""
    if depth > _MAX_DEPTH:
        raise _MalformedError("graphs within graphs")
    inputs: list[Port] = []
    outputs: list[Port] = []
    constants: set[bytes] = set()
    for number, value in _fields(graph):
        if number == 1:
            _read_node(_message(value), contents, depth)
        elif number == 5:
            constants.add(_read_tensor(_message(value), contents))
        elif number == 11:
            inputs.append(_port(_message(value)))
        elif number == 12:
            outputs.append(_port(_message(value)))
        elif number == 15:  # sparse: values, indices
            for inner, part in _fields(_message(value)):
                if inner in (1, 2):
                    constants.add(_read_tensor(_message(part), contents))
    names = {name.decode("utf-8", "replace") for name in constants}
    return tuple(port for port in inputs if port.name not in names), tuple(outputs)


def _read_node(node: memoryview, contents: _Contents, depth: int) -> None:
    operator, domain = "", ""
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    tensors: list[memoryview] = []
    for number, value in _fields(node):
        if number == 1:
            inputs.append(bytes(_message(value)))
        elif number == 2:
            outputs.append(bytes(_message(value)))
        elif number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            for inner, part in _fields(_message(value)):
                if inner in (5, 10):  # a tensor, or several
                    tensors.append(_message(part))
                elif inner in (22, 23):  # sparse ones: values, indices
                    sparse = _fields(_message(part))
                    tensors += [_message(tensor) for kind, tensor in sparse if kind in (1, 2)]
                elif inner in (6, 11):  # a graph, or several
                    _read_graph(_message(part), contents, depth + 1)
    for tensor in tensors:
        _read_tensor(tensor, contents, outputs)
    is_file = domain == "com.microsoft" and operator in _FILE_OPERATORS
    contents.domains.add(f"{domain}:{operator}" if is_file else domain)
    at = _SHAPE_OPERATORS.get(operator)
    if at is not None and len(inputs) > at:
        contents.shaped.add(inputs[at])


def _read_tensor(tensor: memoryview, contents: _Contents, outputs: Sequence[bytes] = ()) -> bytes:
    """Check a ``TensorProto``; its name.

    Short lists of integers are kept under that and `outputs`: a shape may come from them.
    """
    sides: list[int] = []
    kind, stored, name, raw = 0, 0, b"", b""
    external: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == 1:
            sides += [value] if isinstance(value, int) else _varints(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = bytes(_message(value))
        elif number == 13:
            key, text = _pair(value)
            external[key] = text
        elif number in (4, 5, 6, 7, 9, 10, 11):
            stored += 8 if isinstance(value, int) else len(value)
            if number == 9 and len(_message(value)) <= 64:
                raw = bytes(_message(value))
    if external:
        stored += _external_bytes(contents.path, external.get("location", ""))
    size = prod(sides) * _ELEMENT_BYTES.get(kind, 1)
    if sides and kind != _STRING:
        _refuse_size(contents, size, stored)
    contents.tensor_bytes += size
    _refuse_size(contents, contents.tensor_bytes)
    if kind == _INT64 and raw and len(sides) == 1:
        starts = range(0, len(raw), 8)
        values = [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in starts]
        for each in (name, *outputs):
            contents.shapes[each] = tuple(max(1, value) for value in values)
    return name


def _external_bytes(path: Path, name: str) -> int:
    """Size of the file of external data, if it is beside the graph, links resolved."""
    folder = path.parent.resolve()
    try:
        file = (folder / name.replace("\0", "")).resolve()
        is_beside = "\0" not in name and file.is_relative_to(folder)
    except (OSError, RuntimeError):  # too long; links that lead to one another
        is_beside = False
    if not is_beside:
        actual = f"a graph whose tensors are in {name!r}, outside its own folder"
        raise CheckpointError(path, actual, "a graph with its tensors, or beside them")
    if not file.is_file():
        actual = f"a graph whose tensors are in {name!r}, which is not there"
        raise CheckpointError(path, actual, "a graph with its tensors, or beside them")
    return file.stat().st_size


def _port(info: memoryview) -> Port:
    """A ``ValueInfoProto``: TypeProto.Tensor has the element type and the shape."""
    name, kind, shape = "", 0, None
    for number, value in _fields(info):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for inner, tensor in _fields(_message(value)):
                if inner != 1:
                    continue
                for part, content in _fields(_message(tensor)):
                    if part == 1 and isinstance(content, int):
                        kind = content
                    elif part == 2:
                        dims = (d for at, d in _fields(_message(content)) if at == 1)
                        shape = tuple(_side(_message(dim)) for dim in dims)
    return Port(name, TYPES.get(kind, f"type {kind}"), shape)


def _side(dimension: memoryview) -> int | None:
    sides = [value for number, value in _fields(dimension) if number == 1]
    side = sides[0] if sides else None
    return side if isinstance(side, int) and 0 < side < 2**31 else None


def _pair(entry: Any) -> tuple[str, str]:
    """Key and value of a ``StringStringEntryProto``."""
    parts = {number: _text(value) for number, value in _fields(_message(entry))}
    return parts.get(1, ""), parts.get(2, "")


def _text(value: Any) -> str:
    return bytes(_message(value)).decode("utf-8", "replace")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _MalformedError("a number in the place of a message")
    return value


def _varints(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: their numbers and values.

    Raises:
        _MalformedError: the bytes are no message.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise _MalformedError(f"wire type {kind}")
        if size > end - at:
            raise _MalformedError("the file ends within a field")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _MalformedError("the file ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _MalformedError("a number of more than 70 bits")
