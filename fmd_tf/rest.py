"""TF Serving's REST API without a server: paths, JSON to tensors, tensors to JSON, errors.

Follows tensorflow/serving (`json_tensor.cc`, `http_rest_api_util.cc`, as of 2.20), with NumPy and
the standard library only. A tensor is a NumPy array; strings are `object` arrays of `bytes`.

Known deviations: values and names in error messages are cut at 200 characters; of two equal keys in
one JSON object the last counts; `Inf` must be spelled `Infinity`; numbers beyond a double are
infinite instead of refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

ROW, COLUMNAR = "row", "columnar"
MAX_DEPTH = 64
_SHOWN = 200
_INDENT = "    "

# The error names of TensorFlow, and what the server makes of them in HTTP.
HTTP_STATUS = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class RestError(ValueError):
    """A request cannot be answered.

    Attributes:
        code: TensorFlow's name of the error, a key of `HTTP_STATUS`; any other gives 500.
        message: What the client reads.
        http_status: The status where it is not the one that belongs to `code`.
    """

    def __init__(self, code: str, message: str, http_status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = http_status or HTTP_STATUS.get(code, 500)


def _invalid(message: str) -> RestError:
    return RestError("INVALID_ARGUMENT", message)


@dataclass(frozen=True)
class ModelPath:
    """What a path names: `method` for POST, `subresource` ("metadata" or none) for GET."""

    model: str
    version: int | None = None
    label: str | None = None
    method: str | None = None
    subresource: str | None = None


_NAMED = r"(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_POST_PATH = re.compile(
    rf"/v1/models/([^/:]+){_NAMED}:(classify|regress|predict)", re.IGNORECASE | re.ASCII
)
_GET_PATH = re.compile(
    rf"/v1/models(?:/([^/:]+))?{_NAMED}(?:/(metadata))?", re.IGNORECASE | re.ASCII
)


def parse_path(method: str, path: str) -> ModelPath:
    """Take a path apart.

    Args:
        method: HTTP method.
        path: The path as it was sent, still quoted, with its query string.

    Returns:
        What it names. The verb keeps its case: only the lower case ones are served.

    Raises:
        RestError: The path is none of the API.
    """
    pattern = {"POST": _POST_PATH, "GET": _GET_PATH}.get(method)
    match = pattern.fullmatch(path) if pattern and "?" not in path else None
    if match is None:
        raise _invalid(f"Malformed request: {method} {path}")
    model, version, label, last = match.groups()
    if version is not None and (len(version) > 19 or int(version) >= 2**63):
        raise _invalid(f"Failed to convert version: {version} to numeric.")
    return ModelPath(
        model=_unquote(model),
        version=None if version is None else int(version),
        label=None if label is None else _unquote(label),
        method=last if method == "POST" else None,
        subresource=last if method == "GET" else None,
    )


def _unquote(text: str | None) -> str:
    return unquote_to_bytes(text or "").decode("utf-8", "surrogateescape")


def inflate(body: bytes, max_bytes: int) -> bytes:
    """Inflate a gzip body as TF Serving does, where one that fails is seen as empty.

    Args:
        body: gzip data.
        max_bytes: Size of the result that is not exceeded.

    Returns:
        The data, or nothing where it is damaged or too large.
    """
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        data = inflater.decompress(body, max_bytes + 1)
    except zlib.error:
        return b""
    return data if inflater.eof and len(data) <= max_bytes else b""


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a request.

    Args:
        body: UTF-8, with or without a byte order mark; bytes that are none are kept.

    Returns:
        The object.

    Raises:
        RestError: It is not a JSON object, or nested deeper than `MAX_DEPTH`.
    """
    if not body.strip(b" \t\r\n"):
        raise _invalid("JSON Parse error: The document is empty")
    _require_depth(body)
    try:
        document = json.loads(body.decode("utf-8-sig", "surrogateescape"))
    except json.JSONDecodeError as error:
        message = f"JSON Parse error: {error.msg} at offset: {error.pos}"
        raise _invalid(message) from error
    except ValueError as error:
        # An integer of more digits than Python converts.
        raise _invalid(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise _invalid(f"JSON Value: {_show(document)} Is not object")
    # Half of a pair cannot be written as UTF-8; in an answer or a log it would fail later.
    if _HALF_ESCAPED.search(body) and _HALF.search(json.dumps(document, ensure_ascii=False)):
        raise _invalid("JSON Parse error: The surrogate pair in string is invalid.")
    return document


_HALF_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
# Without those that stand for bytes that are no UTF-8.
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
# Possessive, and matching from every quote, so that each byte is looked at once.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_STEPS = np.zeros(256, np.int32)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def _require_depth(body: bytes) -> None:
    """Refuse deep nesting before the parser recurses into it."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    depth = int(np.cumsum(_STEPS[np.frombuffer(brackets, np.uint8)]).max(initial=0))
    if depth > MAX_DEPTH:
        raise _invalid(
            f"JSON Parse error: expected nesting of at most {MAX_DEPTH} levels, got {depth}",
        )


def signature_name(document: Mapping[str, Any]) -> str:
    """Return the signature that a request asks for; empty means the default one.

    Raises:
        RestError: It is not a string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _invalid(
            f"JSON Value: {_show(document)} not formatted correctly. "
            "'signature_name' key must be a string value.",
        )
    return name


def parse_tensors(
    document: Mapping[str, Any], inputs: Mapping[str, str], max_rows: int | None = None
) -> tuple[str, dict[str, np.ndarray]]:
    """Convert the values of a request.

    Args:
        document: The request.
        inputs: The signature's inputs: name to type, such as "DT_FLOAT".
        max_rows: Most rows, which are counted before any is converted; default None, no limit.

    Returns:
        `ROW` or `COLUMNAR`, and the tensors by name.

    Raises:
        RestError: A value does not fit the signature, or there are too many rows.
    """
    if "instances" not in document and "inputs" not in document:
        raise _invalid("Missing 'inputs' or 'instances' key")
    if "instances" not in document:
        return COLUMNAR, _from_inputs(document["inputs"], inputs, max_rows)
    instances = document["instances"]
    if "inputs" in document:
        raise _format_error(
            document,
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
        )
    if not isinstance(instances, list):
        raise _format_error(document, "Expecting 'instances' to be an list/array")
    if not instances:
        raise _format_error(document, "No values in 'instances' array")
    require_rows(len(instances), max_rows)
    return ROW, _from_instances(instances, inputs)


def require_rows(number: int, max_rows: int | None) -> None:
    """Refuse more rows than `max_rows`; None is no limit.

    Raises:
        RestError: There are more.
    """
    if max_rows is not None and number > max_rows:
        raise _invalid(f"expected at most {max_rows} rows in a request, got {number}")


def _from_inputs(
    value: Any, inputs: Mapping[str, str], max_rows: int | None
) -> dict[str, np.ndarray]:
    """Convert the columnar format: a value of the only input, or an object of all."""
    if not isinstance(value, dict) or _is_base64(value):
        if len(inputs) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple input "
                "tensors required as per tensorinfo_map",
            )
        value = dict.fromkeys(inputs, value)
    for name in sorted(inputs):
        if name not in value:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
    lists = [value[name] for name in inputs if isinstance(value[name], list)]
    require_rows(max(map(len, lists), default=0), max_rows)
    return {name: _to_tensor(value[name], dtype) for name, dtype in inputs.items()}


def _from_instances(instances: list[Any], inputs: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Convert the row format: values of the only input, or objects with all of them."""
    if len(inputs) > 1 and not isinstance(instances[0], dict):
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map",
        )
    rows = _name_rows(instances, inputs)
    columns = {name: [row[name] for row in rows] for name in inputs if all(name in r for r in rows)}
    if len(columns) == len(inputs) and all(len(row) == len(inputs) for row in rows):
        tensors = {name: _regular_tensor(columns[name], inputs[name]) for name in inputs}
        if all(tensor is not None for tensor in tensors.values()):
            return {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return _from_rows(rows, inputs, named=_is_named(instances[0]))


def _is_named(element: Any) -> bool:
    return isinstance(element, dict) and not _is_base64(element)


def _name_rows(instances: list[Any], inputs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return all rows as objects; rows are all objects or none."""
    if not _is_named(instances[0]):
        if not inputs:
            raise _invalid(
                "Expecting objects without fields, as the signature has no inputs, but got "
                f"{_show(instances[0])}",
            )
        name = next(iter(inputs))
        for index, element in enumerate(instances):
            if _is_named(element):
                raise _invalid(
                    f"Expecting value/list but got object at item {index} of input list",
                )
        return [{name: element} for element in instances]
    for index, element in enumerate(instances):
        if not _is_named(element):
            raise _invalid(
                f"Expecting object but got list at item {index} of input list",
            )
    return instances


def _from_rows(
    rows: list[dict[str, Any]], inputs: Mapping[str, str], named: bool
) -> dict[str, np.ndarray]:
    """Convert row by row, to find strings, and the first error in the order of the document."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in inputs}
    for index, row in enumerate(rows):
        for name, value in row.items():
            try:
                _add_row(columns, inputs, name, value)
            except RestError as error:
                key = f" key: {cut(name)}" if named else ""
                raise _invalid(
                    f"Failed to process element: {index}{key} of 'instances' list. "
                    f"Error: {error.code}: {error.message}",
                ) from error
        if set(row) != set(inputs):
            raise _invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{_show(row)} keys must be equal to: {','.join(sorted(inputs))}",
            )
    return {name: np.stack(column) for name, column in columns.items()}


def _add_row(
    columns: dict[str, list[np.ndarray]], inputs: Mapping[str, str], name: str, value: Any
) -> None:
    """Append one row's value, which must have the shape of the first row's."""
    if name not in inputs:
        raise _invalid(f"JSON object: does not have named input: {cut(name)}")
    tensor = _to_tensor(value, inputs[name])
    first = columns[name][0] if columns[name] else tensor
    if first.size != tensor.size:
        message = f"Expecting tensor size: {first.size} but got: {tensor.size}"
        raise _invalid(message)
    if first.shape != tensor.shape:
        message = f"Expecting shape {_show_shape(first)} but got: {_show_shape(tensor)}"
        raise _invalid(message)
    columns[name].append(tensor)


def _show_shape(tensor: np.ndarray) -> str:
    return f"[{','.join(map(str, tensor.shape))}]"


def _to_tensor(value: Any, dtype: str) -> np.ndarray:
    """Convert one JSON value to a tensor."""
    tensor = _regular_tensor(value, dtype)
    if tensor is not None:
        return tensor
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        if not first:
            break
        first = first[0]
    values: list[Any] = []
    _fill(value, 0, shape, dtype, values)
    flat = np.empty(len(values), _numpy_type(dtype))
    flat[:] = values
    return flat.reshape(shape)


def _regular_tensor(value: Any, dtype: str) -> np.ndarray | None:
    """Convert plain numbers in lists of equal lengths, fast; None for everything else."""
    if dtype not in _FAST_TYPES:
        return None
    values, shape = [value], []
    while values and set(map(type, values)) == {list}:
        lengths = set(map(len, values))
        if len(lengths) != 1:
            return None
        shape.append(lengths.pop())
        values = list(chain.from_iterable(values))
    if not values:
        return np.zeros(shape, _numpy_type(dtype))
    numbers = np.array(values) if set(map(type, values)) <= _FAST_TYPES[dtype] else None
    kinds = "i" if dtype in _INTEGERS else "if"
    if numbers is None or numbers.dtype.kind not in kinds:
        return None
    # Not by the absolute value: of the least integer there is none.
    largest = _LARGEST_INTEGER.get(dtype)
    if largest and ((numbers > largest) | (numbers < -largest)).any():
        return None
    if dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        if numbers.min() < low or numbers.max() > high:
            return None
    return numbers.astype(_numpy_type(dtype)).reshape(shape)


def _fill(value: Any, level: int, shape: list[int], dtype: str, values: list[Any]) -> None:
    """Append the values of nested lists of a shape, one by one."""
    if not isinstance(value, list):
        if level != len(shape):
            raise _invalid(
                f"JSON Value: {_show(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}",
            )
        values.append(_convert(value, dtype))
        return
    if level >= len(shape):
        raise _invalid(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}",
        )
    if len(value) != shape[level]:
        raise _invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected "
            f"size: {shape[level]}",
        )
    for element in value:
        _fill(element, level + 1, shape, dtype, values)


# Ranges that TF Serving checks: small integers are taken as 32 bits and wrap.
_INTEGERS = {
    "DT_INT8": (-(2**31), 2**31 - 1),
    "DT_INT16": (-(2**31), 2**31 - 1),
    "DT_INT32": (-(2**31), 2**31 - 1),
    "DT_UINT8": (-(2**31), 2**31 - 1),
    "DT_INT64": (-(2**63), 2**63 - 1),
    "DT_UINT32": (0, 2**32 - 1),
    "DT_UINT64": (0, 2**64 - 1),
}
_LARGEST_INTEGER = {"DT_FLOAT": 2**24 - 1, "DT_DOUBLE": 2**53 - 1}
_FAST_TYPES: dict[str, set[type]] = {
    "DT_FLOAT": {int, float},
    "DT_DOUBLE": {int, float},
    **{dtype: {int} for dtype in _INTEGERS},
}


def _convert(value: Any, dtype: str) -> Any:
    """Convert one leaf."""
    if isinstance(value, dict):
        if dtype == "DT_STRING":
            return _from_base64(value)
        raise _type_error(value, dtype)
    if dtype in _LARGEST_INTEGER:
        return _convert_decimal(value, dtype)
    if dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        if type(value) is int and low <= value <= high:
            return np.array(value).astype(_numpy_type(dtype))[()]
    elif dtype == "DT_STRING":
        if isinstance(value, str):
            return _to_bytes(value)
    elif dtype == "DT_BOOL":
        if isinstance(value, bool):
            return value
    else:
        raise RestError(
            "UNIMPLEMENTED", f"Conversion of JSON Value: {_show(value)} to type: {_plain(dtype)}"
        )
    raise _type_error(value, dtype)


def _convert_decimal(value: Any, dtype: str) -> float:
    if type(value) is int:
        if abs(value) > _LARGEST_INTEGER[dtype]:
            raise _invalid(
                f"Cannot convert JSON value: {_show(value)} to {_plain(dtype)} without loss of "
                "precision.",
            )
        return float(value)
    if type(value) is not float:
        raise _type_error(value, dtype)
    with np.errstate(over="ignore"):
        return float(np.float32(value)) if dtype == "DT_FLOAT" else value


def _to_bytes(text: str) -> bytes:
    """Encode a JSON string, giving back bytes that were no UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _from_base64(value: dict[str, Any]) -> bytes:
    """Decode `{"b64": ...}`: standard alphabet, spaces skipped, padding all or nothing."""
    if not _is_base64(value):
        raise _invalid(
            f"JSON Value: {_show(value)} not formatted correctly for base64 data",
        )
    text = value["b64"]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = "".join(text.split())
    try:
        if "=" in data:
            return base64.b64decode(data, validate=True)
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("Unable to base64 decode") from error


def _numpy_type(dtype: str) -> type | str:
    if dtype == "DT_STRING":
        return object
    return {"DT_FLOAT": "float32", "DT_DOUBLE": "float64"}.get(dtype, _plain(dtype))


def _plain(dtype: str) -> str:
    """Return TensorFlow's own name: "DT_FLOAT" is "float"."""
    return dtype.removeprefix("DT_").lower()


def _type_error(value: Any, dtype: str) -> RestError:
    return _invalid(
        f"JSON Value: {_show(value)} Type: {_json_type(value)} is not of expected type: "
        f"{_plain(dtype)}",
    )


def _json_type(value: Any) -> str:
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    return _JSON_TYPES.get(type(value), "Number")


_JSON_TYPES: dict[type, str] = {dict: "Object", list: "Array", str: "String"}


def _format_error(document: Mapping[str, Any], message: str) -> RestError:
    return _invalid(f"JSON Value: {_show(document)} {message}")


def cut(name: str) -> str:
    """Return a name for a message, cut short: a body may be megabytes."""
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."


def _show(value: Any) -> str:
    """Quote a value in a message, cut short as names are."""
    if type(value) is float:
        return format_float(value, np.float64)
    if isinstance(value, str) and len(value) > _SHOWN:
        value = value[:_SHOWN]
    text = ""
    for part in json.JSONEncoder(ensure_ascii=True).iterencode(value):
        text += part[: _SHOWN + 1]
        if len(text) > _SHOWN:
            return f"{text[:_SHOWN]}..."
    return text


def format_predictions(tensors: Mapping[str, np.ndarray], layout: str) -> bytes:
    """Write an answer as TF Serving's pretty printer does, byte for byte but for the key order.

    Args:
        tensors: The outputs by name; strings as `object` arrays of `bytes`.
        layout: `ROW` or `COLUMNAR`, as the request.

    Returns:
        The JSON text.

    Raises:
        RestError: The outputs do not fit the row format, or a type has no JSON form.
    """
    if not tensors:
        raise _invalid("Cannot convert empty tensor map to JSON")
    tokens = {name: _tokens(name, tensors[name]) for name in sorted(tensors)}
    by_row = layout == ROW
    text = _format_rows(tokens, _batch_size(tensors)) if by_row else _format_columns(tokens)
    return text.encode("utf-8", "surrogateescape")


def _batch_size(tensors: Mapping[str, np.ndarray]) -> int:
    """Return the first dimension, which must be the same in all outputs."""
    batch_size = None
    for name in sorted(tensors):
        shape = tensors[name].shape
        if not shape:
            message = f"Tensor name: {name} has no shape information "
            raise _invalid(message)
        if batch_size not in (None, shape[0]):
            raise _invalid(
                f"Tensor name: {name} has inconsistent batch size: {shape[0]} expecting: "
                f"{batch_size}",
            )
        batch_size = shape[0]
    return batch_size or 0


def _format_rows(tokens: Mapping[str, Any], batch_size: int) -> str:
    """Write a row a line where rows are objects; plain rows all stand on one line."""
    named = len(tokens) > 1
    level = 2 + named
    rows = []
    for index in range(batch_size):
        fields = {name: _on_line(values[index], level) for name, values in tokens.items()}
        rows.append(_object(fields, 2) if named else next(iter(fields.values())))
    if not rows:
        return _object({"predictions": "[]"}, 0)
    start, separator = (f"\n{_INDENT * 2}", f",\n{_INDENT * 2}") if named else ("", ", ")
    return _object({"predictions": f"[{start}{separator.join(rows)}\n{_INDENT}]"}, 0)


def _format_columns(tokens: Mapping[str, Any]) -> str:
    """Write a value a line."""
    if len(tokens) == 1:
        return _object({"outputs": _on_lines(next(iter(tokens.values())), 1)}, 0)
    fields = {name: _on_lines(values, 2) for name, values in tokens.items()}
    return _object({"outputs": _object(fields, 1)}, 0)


def _object(fields: Mapping[str, str], level: int) -> str:
    inner = _INDENT * (level + 1)
    lines = f",\n{inner}".join(f"{_quote(name)}: {text}" for name, text in fields.items())
    return f"{{\n{inner}{lines}\n{_INDENT * level}}}"


def _on_line(tokens: Any, level: int) -> str:
    if isinstance(tokens, list):
        return f"[{', '.join(_on_line(token, level + 1) for token in tokens)}]"
    return _object(tokens, level) if isinstance(tokens, dict) else tokens


def _on_lines(tokens: Any, level: int) -> str:
    if not isinstance(tokens, list):
        return _object(tokens, level) if isinstance(tokens, dict) else tokens
    if not tokens:
        return "[]"
    inner = _INDENT * (level + 1)
    lines = f",\n{inner}".join(_on_lines(token, level + 1) for token in tokens)
    return f"[\n{inner}{lines}\n{_INDENT * level}]"


def _tokens(name: str, tensor: np.ndarray) -> Any:
    """Return nested lists of JSON texts; bytes become objects of one field."""
    write = _writer(name, tensor.dtype)

    def convert(value: Any) -> Any:
        return [convert(each) for each in value] if isinstance(value, list) else write(value)

    return convert(tensor.tolist())


def _writer(name: str, dtype: np.dtype) -> Callable[[Any], Any]:
    """Return the function that writes one value of a type."""
    if dtype in (np.float32, np.float64):
        return lambda value: format_float(value, dtype.type)
    if dtype.kind in "iub":
        return lambda value: json.dumps(value)
    if dtype.kind in "OS":
        if name.endswith("_bytes"):
            return lambda value: {"b64": f'"{base64.b64encode(value).decode()}"'}
        return lambda value: _quote(value.decode("utf-8", "surrogateescape"))
    raise _invalid(f"Failed to write JSON value for tensor type: {dtype}")


def format_float(value: float, dtype: type) -> str:
    """Write a number with six digits where they are enough, else with all, ".0" at whole ones."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text = f"{value:.6g}"
    if dtype(text) != dtype(value):
        text = f"{value:.9g}" if dtype is np.float32 else f"{value:.17g}"
    return text if "." in text or "e" in text else f"{text}.0"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def format_error(message: str) -> bytes:
    """Write an error."""
    return _object({"error": _quote(message)}, 0).encode("utf-8", "surrogateescape")


def format_status(versions: Sequence[tuple[int, str, str, str]]) -> bytes:
    """Write the status of a model: (version, state, error code, error message) of each."""
    status = [
        {
            "version": str(version),
            "state": state,
            "status": {"error_code": code, "error_message": message},
        }
        for version, state, code, message in versions
    ]
    return json.dumps({"model_version_status": status}, indent=1).encode()
