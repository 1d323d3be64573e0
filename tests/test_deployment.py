"""The deployment files mean what the tools that read them take them for."""

import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

from fmd_tf import serve

FOLDER = Path(__file__).parent.parent / "savedmodel"

# TF Serving's monitoring_config.proto, which its Python package leaves out.
MONITORING = """
name: "monitoring_config.proto" package: "tensorflow.serving" syntax: "proto3"
message_type {
  name: "PrometheusConfig"
  field { name: "enable" number: 1 type: TYPE_BOOL label: LABEL_OPTIONAL }
  field { name: "path" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
}
message_type {
  name: "MonitoringConfig"
  field {
    name: "prometheus_config" number: 1 type: TYPE_MESSAGE label: LABEL_OPTIONAL
    type_name: ".tensorflow.serving.PrometheusConfig"
  }
}
"""

# The fields of KServe's InferenceService (serving.kserve.io/v1beta1) that the manifest uses.
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Mi|Gi)?$"}
RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"cpu": QUANTITY, "memory": QUANTITY},
}
KSERVE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "predictor": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "minReplicas": {"type": "integer", "minimum": 0},
                        "maxReplicas": {"type": "integer", "minimum": 1},
                        "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
                        "scaleTarget": {"type": "integer"},
                        "model": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["modelFormat", "storageUri"],
                            "properties": {
                                "modelFormat": {
                                    "type": "object",
                                    "required": ["name"],
                                    "properties": {"name": {"const": "tensorflow"}},
                                },
                                "protocolVersion": {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]},
                                "runtimeVersion": {"type": "string"},
                                "storageUri": {"pattern": "^(pvc|s3|gs|https)://"},
                                "resources": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {"requests": RESOURCES, "limits": RESOURCES},
                                },
                            },
                        },
                    },
                }
            },
        },
    },
}


@pytest.fixture(scope="module")
def models() -> model_server_config_pb2.ModelServerConfig:
    text = (FOLDER / "models.config").read_text()
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def test_models_config(models):
    (config,) = models.model_config_list.config
    assert (config.name, config.model_platform) == ("face_mask", "tensorflow")
    assert Path(config.base_path).is_absolute()
    # A training writes version 1, an export with a detector the next: users want the newest.
    assert config.model_version_policy.latest.num_versions == 1


def test_what_the_readme_puts_into_models_config(models):
    """The lines of its section on rolling out, in place of the policy that is there."""
    text = (FOLDER / "README.md").read_text()
    lines = re.search(r"```\n( +model_version_policy .*?)```", text, re.DOTALL)
    assert lines
    changed = re.sub(
        r" +model_version_policy \{.*?\n    \}\n",
        lines.group(1),
        (FOLDER / "models.config").read_text(),
        flags=re.DOTALL,
    )
    config = text_format.Parse(changed, model_server_config_pb2.ModelServerConfig())
    (config,) = config.model_config_list.config
    policy = config.model_version_policy
    assert list(policy.specific.versions) == [config.version_labels["stable"]] == [1]
    canary = re.findall(r"`((?:specific|version_labels) \{.*?\})`", text)
    policy.Clear()
    text_format.Parse(canary[0], policy)
    text_format.Parse(canary[1], config)
    assert list(policy.specific.versions) == [1, 2]
    assert dict(config.version_labels) == {"stable": 1, "canary": 2}


def test_monitoring_config():
    file = text_format.Parse(MONITORING, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("tensorflow.serving.MonitoringConfig")
    message = message_factory.GetMessageClass(descriptor)()
    text_format.Parse((FOLDER / "monitoring.config").read_text(), message)
    assert message.prometheus_config.enable
    assert message.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_compose_keeps_to_its_specification(compose: dict):
    schemas = files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())
    jsonschema.validate(compose, schema)


def test_compose_mounts_what_is_there_and_nothing_to_write(compose: dict, models):
    serving = compose["services"]["serving"]
    mounts = {source: target for source, target, _ in (v.split(":") for v in serving["volumes"])}
    assert all(volume.endswith(":ro") for volume in serving["volumes"])
    assert mounts["./face_mask"] == models.model_config_list.config[0].base_path
    for name in ("models.config", "monitoring.config"):
        assert (FOLDER / name).is_file()
        assert any(flag.endswith(mounts[f"./{name}"]) for flag in serving["command"])
    assert all(port.startswith("127.0.0.1:") for port in serving["ports"])


def test_kserve_manifest():
    jsonschema.validate(yaml.safe_load((FOLDER / "kserve.yaml").read_text()), KSERVE)


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("/v1/models/face_mask", True),
        ("/v1/models/face_mask:predict", True),
        ("/v1/models/face_mask/versions/12:predict", True),
        ("/v1/models/face_mask/labels/stable:predict", True),
        ("/v1/models/face_mask/metadata/../../x", False),
        ("/v1/models/other:predict", False),
        ("/monitoring/prometheus/metrics", False),
        ("/", True),
        ("/page.js", True),
        ("/page.jsx", False),
        ("/server.key", False),
    ],
)
def test_proxy_passes_only_the_routes_of_the_model_and_the_page(path: str, passes: bool):
    locations = re.findall(r"location ~ (\S+) \{", (FOLDER / "nginx.conf").read_text())
    assert any(re.search(location, path) for location in locations) == passes


def test_proxy_and_server_guard_the_page_alike(compose: dict):
    added = re.findall(r'add_header (\S+) "?(.*?)"?;\n', (FOLDER / "nginx.conf").read_text())
    assert {(name.lower().encode(), value.encode()) for name, value in added} >= {
        *serve._PAGE_HEADERS
    }
    mounts = [volume.split(":")[:2] for volume in compose["services"]["proxy"]["volumes"]]
    (page,) = (source for source, target in mounts if target == "/page")
    assert (FOLDER / page).resolve() == serve._PAGE_DIR
