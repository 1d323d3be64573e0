import gzip
import json
import time

import numpy as np
import pytest

from fmd_tf import rest
from fmd_tf.rest import COLUMNAR, ROW, ModelPath, RestError


def parse(
    body: str, max_rows: int | None = None, **inputs: str
) -> tuple[str, dict[str, np.ndarray]]:
    return rest.parse_tensors(rest.parse_json(body.encode()), inputs, max_rows)


def error_of(body: str, max_rows: int | None = None, **inputs: str) -> str:
    with pytest.raises(RestError) as caught:
        parse(body, max_rows, **inputs)
    return caught.value.message


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/models/m", ModelPath("m")),
        ("GET", "/V1/MODELS/m/VERSIONS/7", ModelPath("m", version=7)),
        ("GET", "/v1/models/m/metadata", ModelPath("m", subresource="metadata")),
        (
            "GET",
            "/v1/models/m/labels/a%2Fb/metadata",
            ModelPath("m", None, "a/b", None, "metadata"),
        ),
        ("GET", "/v1/models", ModelPath("")),
        ("POST", "/v1/models/a%20b:predict", ModelPath("a b", method="predict")),
        ("POST", "/v1/models/m/versions/2:PREDICT", ModelPath("m", 2, None, "PREDICT")),
        ("POST", "/v1/models/m/labels/x:classify", ModelPath("m", None, "x", "classify")),
    ],
)
def test_paths(method: str, path: str, expected: ModelPath) -> None:
    assert rest.parse_path(method, path) == expected


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/m"),
        ("GET", "/v1/models/m:predict"),
        ("GET", "/v1/models/m/"),
        ("GET", "/v1/models/m?x=1"),
        ("GET", "/v1/models/m/versions/x"),
        ("GET", "/v1/models/m/versions/1/labels/x"),
        ("PUT", "/v1/models/m:predict"),
        ("HEAD", "/v1/models/m"),
    ],
)
def test_paths_that_are_none(method: str, path: str) -> None:
    with pytest.raises(RestError, match="Malformed request") as caught:
        rest.parse_path(method, path)
    assert caught.value.http_status == 400


@pytest.mark.parametrize("digits", ["9223372036854775808", "9" * 5000])
def test_versions_beyond_64_bits(digits: str) -> None:
    with pytest.raises(RestError, match="Failed to convert version"):
        rest.parse_path("GET", f"/v1/models/m/versions/{digits}")


def test_row_format_of_one_input_named_or_not() -> None:
    for body in (
        '{"instances": [[1, 2.5], [3, 4]]}',
        '{"instances": [{"x": [1, 2.5]}, {"x": [3, 4]}]}',
    ):
        layout, tensors = parse(body, x="DT_FLOAT")
        assert layout == ROW
        assert tensors["x"].dtype == np.float32
        assert tensors["x"].tolist() == [[1, 2.5], [3, 4]]


def test_columnar_format_takes_scalars_lists_and_objects() -> None:
    layout, tensors = parse('{"inputs": 3}', x="DT_INT32")
    assert (layout, tensors["x"].shape, int(tensors["x"])) == (COLUMNAR, (), 3)
    _, tensors = parse('{"inputs": {"a": [], "b": [["x", "y"]]}}', a="DT_FLOAT", b="DT_STRING")
    assert tensors["a"].shape == (0,)
    assert tensors["b"].tolist() == [[b"x", b"y"]]


def test_bytes_are_base64_of_the_standard_alphabet() -> None:
    # "hello" is aGVsbG8=; its padding may be left out, and spaces do not count.
    for text in ("aGVsbG8=", "aGVsbG8", "aGVs\\n bG8="):
        _, tensors = parse(f'{{"instances": [{{"b64": "{text}"}}]}}', x="DT_STRING")
        assert tensors["x"].tolist() == [b"hello"]
    for text in ("a", "aGVsbG8==", "-_-_", "aGV!", "\u00e9\u00e9\u00e9\u00e9"):
        message = error_of(f'{{"instances": [{{"b64": "{text}"}}]}}', x="DT_STRING")
        assert "Unable to base64 decode" in message
    assert "not formatted correctly for base64" in error_of(
        '{"inputs": [{"b64": 1}]}', x="DT_STRING"
    )


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ("1.0", "DT_INT32", "Type: Number is not of expected type: int32"),
        ("2147483648", "DT_INT32", "is not of expected type: int32"),
        ("-1", "DT_UINT32", "is not of expected type: uint32"),
        ("18446744073709551616", "DT_UINT64", "is not of expected type: uint64"),
        ("true", "DT_FLOAT", "Type: True is not of expected type: float"),
        ("null", "DT_FLOAT", "Type: Null is not of expected type: float"),
        ('"x"', "DT_DOUBLE", 'JSON Value: "x" Type: String is not of expected type: double'),
        ('{"a": 1}', "DT_FLOAT", "Type: Object is not of expected type: float"),
        ("1", "DT_BOOL", "Type: Number is not of expected type: bool"),
        ("1", "DT_STRING", "Type: Number is not of expected type: string"),
        ("16777217", "DT_FLOAT", "Cannot convert JSON value: 16777217 to float without loss"),
        ("-9223372036854775808", "DT_FLOAT", "-9223372036854775808 to float without loss"),
        ("-9223372036854775808", "DT_DOUBLE", "-9223372036854775808 to double without loss"),
        ('"\\ud800"', "DT_STRING", "surrogate pair in string is invalid"),
        ("1", "DT_HALF", "Conversion of JSON Value: 1 to type: half"),
    ],
)
def test_values_that_do_not_fit(value: str, dtype: str, expected: str) -> None:
    assert expected in error_of(f'{{"inputs": [{value}]}}', x=dtype)


def test_values_that_fit() -> None:
    for value, dtype, expected in (
        ("-2147483648", "DT_INT32", -(2**31)),
        ("9223372036854775807", "DT_INT64", 2**63 - 1),
        ("18446744073709551615", "DT_UINT64", 2**64 - 1),
        # Small integers are taken as 32 bits and wrap: 300 - 256 = 44.
        ("300", "DT_UINT8", 44),
        ("false", "DT_BOOL", False),
        ("1e30", "DT_FLOAT", np.float32(1e30)),
        ("1e300", "DT_FLOAT", np.inf),
        ("-Infinity", "DT_DOUBLE", -np.inf),
    ):
        _, tensors = parse(f'{{"inputs": [{value}]}}', x=dtype)
        assert tensors["x"].tolist() == [expected]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", "The document is empty"),
        (" \n", "The document is empty"),
        ("{", "JSON Parse error"),
        ("[1]", "Is not object"),
        ('{"x": ' + "9" * 5000 + "}", "JSON Parse error"),
        ('{"instances": []}', "No values in 'instances' array"),
        ('{"instances": {}}', "Expecting 'instances' to be an list/array"),
        ('{"instances": [1], "inputs": 1}', "expecting only one of"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"instances": [[1, 2], [3]]}', "Expecting tensor size: 2 but got: 1"),
        ('{"instances": [[[1, 2]], [[1], [2]]]}', "Expecting shape [1,2] but got: [2,1]"),
        ('{"inputs": [[1], [2, 3]]}', "unexpected size: 2 at level: 1 expected size: 1"),
        ('{"inputs": [1, [2]]}', "Encountered list at unexpected level: 1 expected < 1"),
        ('{"instances": [1, {"x": 1}]}', "Expecting value/list but got object at item 1"),
        ('{"instances": [{"x": 1}, 1]}', "Expecting object but got list at item 1"),
        ('{"instances": [{}]}', "keys must be equal to: x"),
        ('{"instances": [{"x": 1}, {}]}', "Failed to process element: 1 of 'instances' list"),
    ],
)
def test_bodies_that_are_wrong(body: str, expected: str) -> None:
    assert expected in error_of(body, x="DT_FLOAT")


def test_depth_is_limited_before_parsing() -> None:
    # Brackets in strings do not count, escaped quotes do not end them.
    harmless = json.dumps({"inputs": ["[" * 500 + '\\"[' * 500]})
    _, tensors = parse(harmless, x="DT_STRING")
    assert tensors["x"].shape == (1,)
    assert len(parse("{" + f'"inputs": [{"[1]," * 400}[1]]' + "}", x="DT_FLOAT")[1]["x"]) == 401
    for body in ("[" * 100_000, '{"a":' * 65, "[" * 65 + "]" * 65, '"[' + "[" * 99):
        with pytest.raises(RestError) as caught:
            rest.parse_json(body.encode())
        assert caught.value.http_status == 400
    rest.parse_json(b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}")


@pytest.mark.parametrize("end", [b"", b"\\", b'"', b'\\"'])
def test_strings_with_many_escapes_take_no_longer_than_others(end: bytes) -> None:
    # Steps that grow with the square of the length would take minutes.
    body = b"[" * 65 + b'"' + b'\\"' * 100_000 + end
    started = time.perf_counter()
    with pytest.raises(RestError, match="nesting of at most 64 levels, got 65"):
        rest.parse_json(body)
    assert time.perf_counter() - started < 10


def test_rows_are_counted_before_they_are_converted() -> None:
    # Each first row could not be converted.
    for body, inputs in (
        ('{"instances": ["a", 2, 3]}', {"x": "DT_FLOAT"}),
        ('{"instances": [{"x": "a"}, {}, {}]}', {"x": "DT_FLOAT"}),
        ('{"inputs": ["a", 2, 3]}', {"x": "DT_FLOAT"}),
        ('{"inputs": {"x": 1, "y": ["a", 2, 3]}}', {"x": "DT_FLOAT", "y": "DT_FLOAT"}),
    ):
        assert error_of(body, 2, **inputs) == "expected at most 2 rows in a request, got 3"
        assert "rows" not in error_of(body, 3, **inputs)
    assert parse('{"inputs": [1, 2]}', 2, x="DT_FLOAT")[1]["x"].tolist() == [1, 2]


def test_empty_lists_have_their_shape() -> None:
    for dtype, kind in (("DT_FLOAT", np.float32), ("DT_INT64", np.int64), ("DT_STRING", object)):
        for body, shape in (
            ('{"inputs": []}', (0,)),
            ('{"inputs": [[[], []]]}', (1, 2, 0)),
            ('{"instances": [[], [], []]}', (3, 0)),
        ):
            tensor = parse(body, x=dtype)[1]["x"]
            assert (tensor.shape, tensor.dtype) == (shape, kind)
        assert "process element: 1" in error_of('{"instances": [[], [1]]}', x=dtype)


def test_a_signature_without_inputs_takes_empty_objects() -> None:
    assert parse('{"instances": [{}, {}]}') == (ROW, {})
    assert "the signature has no inputs, but got 1" in error_of('{"instances": [1]}')


def test_bytes_that_are_no_utf8_are_kept() -> None:
    document = rest.parse_json(b'\xef\xbb\xbf{"inputs": ["\xff"]}')
    assert rest.parse_tensors(document, {"x": "DT_STRING"})[1]["x"].tolist() == [b"\xff"]
    text = rest.format_predictions({"x": np.array([b"\xff"], object)}, COLUMNAR)
    assert b'"\xff"' in text


def test_long_values_are_cut_in_messages() -> None:
    message = error_of(json.dumps({"instances": ["x" * 10**6]}), x="DT_FLOAT")
    assert len(message) < 500


def test_long_names_are_cut_in_messages() -> None:
    message = error_of(json.dumps({"instances": [{"n" * 10**6: 1}]}), x="DT_FLOAT")
    name = "n" * 200 + "..."
    assert f"key: {name} of" in message and message.endswith(f"does not have named input: {name}")


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (0.1, np.float32, "0.1"),
        (1 / 3, np.float32, "0.333333343"),
        (1 / 3, np.float64, "0.33333333333333331"),
        (9_000_000, np.float32, "9e+06"),
        (2, np.float32, "2.0"),
        (-0.0, np.float64, "-0.0"),
        (np.nan, np.float32, "NaN"),
        (-np.inf, np.float32, "-Infinity"),
    ],
)
def test_floats(value: float, dtype: type, expected: str) -> None:
    assert rest.format_float(float(dtype(value)), dtype) == expected


def test_answers_have_the_form_of_tf_serving() -> None:
    outputs = {
        "score": np.array([0.5, 1], np.float32),
        "label": np.array([b"a", b"b\n"], object),
        "raw_bytes": np.array([b"hello", b""], object),
    }
    # A value a line in objects; lists of values stand on one line in the row format only.
    assert rest.format_predictions(outputs, ROW).decode() == (
        '{\n    "predictions": [\n        {\n            "label": "a",\n'
        '            "raw_bytes": {\n                "b64": "aGVsbG8="\n            },\n'
        '            "score": 0.5\n        },\n        {\n            "label": "b\\n",\n'
        '            "raw_bytes": {\n                "b64": ""\n            },\n'
        '            "score": 1.0\n        }\n    ]\n}'
    )
    only = {"y": np.array([[1, 2], [3, 4]], np.int64)}
    assert rest.format_predictions(only, ROW) == (
        b'{\n    "predictions": [[1, 2], [3, 4]\n    ]\n}'
    )
    assert rest.format_predictions({"y": np.array([1, 2])}, COLUMNAR) == (
        b'{\n    "outputs": [\n        1,\n        2\n    ]\n}'
    )
    assert json.loads(rest.format_predictions(outputs, COLUMNAR))["outputs"]["label"] == [
        "a",
        "b\n",
    ]


def test_outputs_that_do_not_fit() -> None:
    for outputs, expected in (
        ({}, "empty tensor map"),
        ({"y": np.float32(1)}, "no shape information"),
        ({"y": np.zeros(2), "z": np.zeros(3)}, "inconsistent batch size: 3 expecting: 2"),
        ({"y": np.zeros(2, np.complex64)}, "Failed to write JSON value"),
    ):
        with pytest.raises(RestError, match=expected):
            rest.format_predictions({k: np.asarray(v) for k, v in outputs.items()}, ROW)


def test_gzip_that_fails_is_empty() -> None:
    data = gzip.compress(b"abc" * 100)
    assert rest.inflate(data, 300) == b"abc" * 100
    for body, limit in ((data, 299), (data[:-9], 300), (b"no gzip", 300)):
        assert rest.inflate(body, limit) == b""


def test_error_codes_have_their_status() -> None:
    expected = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "ABORTED": 409, "UNAVAILABLE": 503}
    assert {code: RestError(code, "").http_status for code in expected} == expected
    assert RestError("DATA_LOSS", "").http_status == 500
    assert RestError("INVALID_ARGUMENT", "", 413).http_status == 413
    assert rest.format_error('a "b"') == b'{\n    "error": "a \\"b\\""\n}'
