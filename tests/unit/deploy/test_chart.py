"""The Helm chart renders to manifests that Kubernetes takes, with settings that our processes take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmRenderError, HelmValuesError

from common.settings import FLAGS

CHART: Final = Path("deploy/helm/parakeet")
# The oldest and the newest Kubernetes that the chart is checked against.
VERSIONS: Final = ("1.30", "1.37")
# Kinds that are no part of Kubernetes; their shape is checked by hand below.
FOREIGN: Final = {"PodMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication"}

LEAST: Final = {"auth": {"existingSecret": "keys"}, "redis": {"existingSecret": "redis"}}
EVERYTHING: Final = {
    "auth": {"existingSecret": "keys", "allowedOrigins": ["https://a.example", "https://b.example"]},
    "tls": {"existingSecret": "tls"},
    "redis": {
        "existingSecret": "redis",
        "shards": 2,
        "embedded": {"enabled": False},
        "tlsSecret": "redis-tls",
        "tlsClientCertificate": True,
        "tlsServerName": "redis.internal",
    },
    "ingress": {
        "autoscaling": {"enabled": True},
        "httpRoute": {"enabled": True, "host": "speech.example", "tlsSecret": "speech"},
        "trustedProxies": ["192.0.2.0/24"],
        "uploads": {"maxMb": 300, "maxDecoders": 2},
        "extraEnv": [{"name": "PARAKEET_LOG_LEVEL", "value": "debug"}],
    },
    "worker": {
        "model": {"existingClaim": "models"},
        "maxStreams": 500,
        "keda": {"enabled": True, "redisAddress": "redis:6379", "existingSecret": "keda"},
    },
    "monitoring": {
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "networkPolicy": {"clientCidrs": ["198.51.100.0/24"]},
}
FOREIGN_REDIS: Final = {
    "auth": {"none": True},
    "redis": {"existingSecret": "redis", "embedded": {"enabled": False}},
    "ingress": {"tcp": {"enabled": False}},
    "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "topologySpread": {"enabled": False},
}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the manifests of a release named `speech`."""
    with Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="speech", namespace="asr")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def one(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"] == name
    )
    return found


def environment(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the environment of the container of a Deployment: values, or where they come from."""
    (container,) = one(documents, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    return {row["name"]: row.get("value", row.get("valueFrom")) for row in container["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "values", [LEAST, EVERYTHING, FOREIGN_REDIS], ids=["least", "everything", "foreign-redis"]
)
def test_kubernetes_takes_every_manifest(values: dict[str, Any], version: str) -> None:
    documents = render(values)
    assert documents
    for document in documents:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, version, strict=True)


def test_the_chart_passes_helms_own_lint() -> None:
    report = helm_python.lint(str(CHART), EVERYTHING, strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", [LEAST, EVERYTHING, FOREIGN_REDIS])
def test_every_setting_is_a_flag_of_its_command_and_has_a_value_that_it_takes(values: dict[str, Any]) -> None:
    documents = render(values)
    flags = {flag.variable: flag for flag in FLAGS}
    for command in ("ingress", "worker"):
        for name, value in environment(documents, f"speech-{command}").items():
            if not name.startswith("PARAKEET_"):
                continue
            assert command in flags[name].commands, name
            if isinstance(value, str):
                flags[name].kind.parse(value)


def test_an_ingress_has_keys_tls_origins_and_proxies() -> None:
    env = environment(render(EVERYTHING), "speech-ingress")
    assert env["PARAKEET_AUTH_KEYS_FILE"] == "/etc/parakeet/auth/keys.json"
    assert env["PARAKEET_REQUIRE_AUTH"] == "on"
    assert env["PARAKEET_TLS_CERT"] == "/etc/parakeet/tls/tls.crt"
    assert env["PARAKEET_ALLOWED_ORIGINS"] == "https://a.example,https://b.example"
    assert env["PARAKEET_TRUSTED_PROXIES"] == "192.0.2.0/24"
    assert env["PARAKEET_REDIS_URL"] == {"secretKeyRef": {"name": "redis", "key": "ingress-url"}}
    assert env["PARAKEET_LOG_LEVEL"] == "debug"


@pytest.mark.parametrize("kind", ["ingress", "worker"])
def test_redis_is_reached_with_tls(kind: str) -> None:
    documents = render(EVERYTHING)
    env = environment(documents, f"speech-{kind}")
    assert env["PARAKEET_REDIS_TLS_CA"] == "/etc/parakeet/redis-tls/ca.crt"
    assert env["PARAKEET_REDIS_TLS_CERT"] == "/etc/parakeet/redis-tls/tls.crt"
    assert env["PARAKEET_REDIS_TLS_KEY"] == "/etc/parakeet/redis-tls/tls.key"
    assert env["PARAKEET_REDIS_TLS_SERVER_NAME"] == "redis.internal"
    pod = one(documents, "Deployment", f"speech-{kind}")["spec"]["template"]["spec"]
    (volume,) = (row for row in pod["volumes"] if row["name"] == "redis-tls")
    assert volume["secret"]["secretName"] == "redis-tls"
    assert "PARAKEET_REDIS_TLS_CA" not in environment(render(LEAST), f"speech-{kind}")


@pytest.mark.parametrize(
    ("uploads", "body", "room"),
    [({}, "101m", "864Mi"), ({"maxMb": 300, "maxDecoders": 2}, "301m", "1264Mi")],
)
def test_bodies_and_their_room_follow_what_may_be_uploaded(
    uploads: dict[str, int], body: str, room: str
) -> None:
    route = {"enabled": True, "host": "speech.example"}
    documents = render({**LEAST, "ingress": {"uploads": uploads, "httpRoute": route}})
    annotations = one(documents, "Ingress", "speech")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == body
    pod = one(documents, "Deployment", "speech-ingress")["spec"]["template"]["spec"]
    (tmp,) = (volume for volume in pod["volumes"] if volume["name"] == "tmp")
    assert tmp["emptyDir"] == {"sizeLimit": room}
    env = environment(documents, "speech-ingress")
    assert f"{int(env['PARAKEET_MAX_UPLOAD_MB']) + 1}m" == body
    default = {flag.name: flag.default for flag in FLAGS}
    values = yaml.safe_load((CHART / "values.yaml").read_text())["ingress"]["uploads"]
    assert values == {
        "maxMb": int(default["max_upload_mb"]),
        "maxDecoders": int(default["max_decoders"]),
    }
    assert f"client_max_body_size    {values['maxMb'] + 1}m;" in Path("deploy/proxy/nginx.conf").read_text()


def test_disruptions_take_one_pod_of_a_kind() -> None:
    documents = render(LEAST)
    for kind in ("ingress", "worker"):
        assert one(documents, "PodDisruptionBudget", f"speech-{kind}")["spec"]["maxUnavailable"] == 1


def test_the_two_kinds_of_process_have_users_of_their_own_in_redis() -> None:
    documents = render(LEAST)
    urls = [environment(documents, f"speech-{kind}")["PARAKEET_REDIS_URL"] for kind in ("ingress", "worker")]
    assert [url["secretKeyRef"]["key"] for url in urls] == ["ingress-url", "worker-url"]


def test_pods_run_without_rights_and_have_time_to_drain() -> None:
    documents = render(LEAST)
    for kind, name, grace in (
        ("Deployment", "speech-ingress", 75),
        ("Deployment", "speech-worker", 65),
        ("StatefulSet", "speech-redis", None),
    ):
        pod = one(documents, kind, name)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["automountServiceAccountToken"] is False
        assert pod.get("terminationGracePeriodSeconds") == grace
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}


def test_probes_ask_the_metrics_port() -> None:
    documents = render(LEAST)
    for name in ("speech-ingress", "speech-worker"):
        (container,) = one(documents, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        for probe, path in (
            ("startupProbe", "/startupz"),
            ("livenessProbe", "/livez"),
            ("readinessProbe", "/readyz"),
        ):
            assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}
        assert {"name": "metrics", "containerPort": 9090} in container["ports"]


def test_workers_scale_by_the_assignments_of_every_shard() -> None:
    documents = render(EVERYTHING)
    triggers = one(documents, "ScaledObject", "speech-worker")["spec"]["triggers"]
    assert [trigger["metadata"]["stream"] for trigger in triggers] == [
        "px:{0}:new",
        "px:{0}:new",
        "px:{1}:new",
        "px:{1}:new",
    ]
    assert triggers[0]["metadata"]["pendingEntriesCount"] == "350"
    assert all(trigger["authenticationRef"] == {"name": "speech-redis"} for trigger in triggers)
    assert "replicas" not in one(documents, "Deployment", "speech-worker")["spec"]


def test_the_rules_and_the_dashboard_are_those_of_the_project() -> None:
    documents = render(EVERYTHING)
    rules = yaml.safe_load(Path("deploy/monitoring/alerts.yaml").read_text())
    assert one(documents, "PrometheusRule", "speech")["spec"] == rules
    dashboard = one(documents, "ConfigMap", "speech-dashboard")["data"]["parakeet.json"]
    assert dashboard.strip() == Path("deploy/monitoring/dashboard.json").read_text().strip()
    jobs = [
        document["spec"]["podMetricsEndpoints"][0]["relabelings"][0]["replacement"]
        for document in documents
        if document["kind"] == "PodMonitor"
    ]
    assert jobs == ["parakeet-ingress", "parakeet-worker"]


def test_only_the_processes_reach_redis() -> None:
    policy = one(render(LEAST), "NetworkPolicy", "speech-redis")["spec"]
    (peer,) = policy["ingress"][0]["from"]
    assert peer["podSelector"]["matchExpressions"][0]["values"] == ["ingress", "worker"]
    assert "namespaceSelector" not in peer


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"redis": {"existingSecret": "r"}}, "auth.existingSecret is empty"),
        ({"auth": {"none": True}}, "redis.existingSecret is empty"),
        ({**LEAST, "worker": {"maxStreams": 2000}}, "worker.maxStreams is more than maxStreams"),
        ({**LEAST, "worker": {"keda": {"enabled": True}}}, "worker.keda.redisAddress is empty"),
        (
            {**LEAST, "worker": {"keda": {"enabled": True, "minReplicas": 0, "redisAddress": "r:6379"}}},
            "worker.keda.minReplicas is less than 1",
        ),
        (
            {**LEAST, "redis": {"existingSecret": "r", "tlsSecret": "t"}},
            "the embedded Valkey speaks no TLS",
        ),
        (
            {**LEAST, "redis": {"existingSecret": "r", "tlsServerName": "r.internal"}},
            "need redis.tlsSecret",
        ),
        ({**LEAST, "ingress": {"httpRoute": {"enabled": True}}}, "ingress.httpRoute.host is empty"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmRenderError, match=re.escape(sentence)):
        render(values)


@pytest.mark.parametrize(
    "values",
    [
        {**LEAST, "replicas": 3},
        {**LEAST, "maxStreams": 0},
        {**LEAST, "worker": {"model": {"size": "huge"}}},
        {**LEAST, "ingress": {"service": {"type": "clusterip"}}},
    ],
)
def test_values_of_another_shape_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises((HelmValuesError, HelmRenderError)):
        render(values)
