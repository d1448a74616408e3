"""The Helm chart renders to manifests that Kubernetes takes, with settings that our processes take."""

from __future__ import annotations

import re
import shutil
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
        "lanes": 3,
        "keda": {"enabled": True, "redisAddress": "redis:6379", "existingSecret": "keda"},
    },
    "monitoring": {
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "networkPolicy": {"clientCidrs": ["198.51.100.0/24"]},
    "tracing": {"endpoint": "http://collector.monitoring:4318/v1/traces", "ratio": 0.1},
}
KEDA: Final = {"enabled": True, "redisAddress": "r:6379"}
FOREIGN_REDIS: Final = {
    "auth": {"none": True},
    "redis": {"existingSecret": "redis", "embedded": {"enabled": False}},
    "ingress": {"tcp": {"enabled": False}},
    "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "topologySpread": {"enabled": False},
}


def render(values: dict[str, Any], chart_folder: Path = CHART) -> list[dict[str, Any]]:
    """Return the manifests of a release named `speech`."""
    with Chart.load(str(chart_folder)) as chart:
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


@pytest.mark.parametrize("values", [LEAST, EVERYTHING, FOREIGN_REDIS, {**LEAST, "maxStreams": 1_000_000}])
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


def test_an_ingress_has_memory_for_all_of_its_decoders() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["ingress"]
    default = {flag.name: flag.default for flag in FLAGS}
    gib = int(values["resources"]["limits"]["memory"].removesuffix("Gi"))
    assert gib << 10 >= values["uploads"]["maxDecoders"] * int(default["max_decoder_mb"]) + 512


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


def test_an_upgrade_replaces_no_redis(tmp_path: Path) -> None:
    """The memory of all streams is in that pod, and nothing of it is written down."""
    newer = tmp_path / "parakeet"
    shutil.copytree(CHART, newer)
    facts = yaml.safe_load((newer / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(yaml.safe_dump({**facts, "version": "9.9.9", "appVersion": "9.9.9"}))
    before, after = render(LEAST), render(LEAST, newer)
    pods = [
        one(documents, "StatefulSet", "speech-redis")["spec"]["template"] for documents in (before, after)
    ]
    assert pods[0] == pods[1]
    for name in ("speech-ingress", "speech-worker"):
        assert one(before, "Deployment", name)["spec"] != one(after, "Deployment", name)["spec"]


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


def test_each_lane_is_scraped_and_the_groups_port_is_probed() -> None:
    documents = render(EVERYTHING)
    (container,) = one(documents, "Deployment", "speech-worker")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": 9090, "metrics-0": 9091, "metrics-1": 9092, "metrics-2": 9093}
    assert environment(documents, "speech-worker")["PARAKEET_LANES"] == "3"
    endpoints = one(documents, "PodMonitor", "speech-worker")["spec"]["podMetricsEndpoints"]
    assert [endpoint["port"] for endpoint in endpoints] == list(ports)
    (rule,) = one(documents, "NetworkPolicy", "speech-metrics")["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == list(ports)
    (plain,) = one(render(LEAST), "Deployment", "speech-worker")["spec"]["template"]["spec"]["containers"]
    assert [port["name"] for port in plain["ports"]] == ["metrics"]


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
    lags = [trigger["metadata"] for trigger in triggers if "lagCount" in trigger["metadata"]]
    assert [lag["activationLagCount"] for lag in lags] == ["0", "0"]
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


def policies(documents: list[dict[str, Any]], direction: str, component: str) -> list[dict[str, Any]]:
    """Return the rules of a pod, of `Ingress` or `Egress`: what its policies let through."""
    labels = {
        "app.kubernetes.io/name": "parakeet",
        "app.kubernetes.io/instance": "speech",
        "app.kubernetes.io/component": component,
    }
    rules, is_bound = [], False
    for document in documents:
        if document["kind"] != "NetworkPolicy":
            continue
        spec = document["spec"]
        selector = spec["podSelector"]
        if not selector["matchLabels"].items() <= labels.items():
            continue
        if not all(labels[row["key"]] in row["values"] for row in selector.get("matchExpressions", ())):
            continue
        is_bound |= direction in spec["policyTypes"]
        rules += spec.get(direction.lower(), [])
    assert is_bound, f"{component} is bound by no policy"
    return rules


def ports(rules: list[dict[str, Any]]) -> set[int | str]:
    return {port["port"] for rule in rules for port in rule["ports"]}


_DNS: Final = {53, 5353}


@pytest.mark.parametrize(
    ("more", "ingress", "worker"),
    [
        ({}, {"redis"}, {"redis", 443}),
        ({"worker": {"model": {"size": "tiny"}}}, {"redis"}, {"redis"}),
        ({"worker": {"model": {"path": "/models/mine"}}}, {"redis"}, {"redis"}),
        ({"tracing": {"endpoint": "http://collector:4318/v1/traces"}}, {"redis", 4318}, {"redis", 4318, 443}),
        ({"tracing": {"endpoint": "https://collector/v1/traces"}}, {"redis", 443}, {"redis", 443}),
        ({"tracing": {"endpoint": "http://[fd00::1]/v1/traces"}}, {"redis", 80}, {"redis", 80, 443}),
        ({"tracing": {"endpoint": "http://[fd00::1]:4318/"}}, {"redis", 4318}, {"redis", 4318, 443}),
        (
            {"redis": {"existingSecret": "redis", "embedded": {"enabled": False}}},
            {6379, 6380, 26379},
            {6379, 6380, 26379, 443},
        ),
        (
            {"networkPolicy": {"egress": {"extra": [{"ports": [{"port": 3128}]}]}}},
            {"redis", 3128},
            {"redis", 3128, 443},
        ),
    ],
)
def test_pods_reach_what_they_need_and_nothing_else(
    more: dict[str, Any], ingress: set[int | str], worker: set[int | str]
) -> None:
    documents = render({**LEAST, **more})
    for document in documents:
        if document["kind"] == "NetworkPolicy":
            kubernetes_validate.validate(document, VERSIONS[0], strict=True)
    assert ports(policies(documents, "Egress", "ingress")) == ingress | _DNS
    assert ports(policies(documents, "Egress", "worker")) == worker | _DNS
    if "redis" not in more:
        assert policies(documents, "Egress", "redis") == []


def test_pods_connect_anywhere_where_egress_is_left_alone() -> None:
    documents = render({**LEAST, "networkPolicy": {"egress": {"enabled": False}}})
    found = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    assert found
    assert all(spec["policyTypes"] == ["Ingress"] for spec in found)


def test_every_source_comes_in_by_its_port_and_no_other() -> None:
    documents = render(LEAST)
    clients, scrapers = policies(documents, "Ingress", "ingress")
    assert ports([clients]) == {"websocket", "tcp"}
    assert "from" not in clients
    assert ports([scrapers]) == {"metrics"}
    assert ports(policies(documents, "Ingress", "worker")) == {"metrics"}
    assert ports(policies(documents, "Ingress", "redis")) == {"redis"}
    named = {
        port["name"]
        for document in documents
        if document["kind"] in ("Deployment", "StatefulSet")
        for port in document["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert named == {"websocket", "tcp", "metrics", "redis"}


def test_clients_of_some_networks_come_through_the_controller_too() -> None:
    (clients, _) = policies(render(EVERYTHING), "Ingress", "ingress")
    assert clients["from"] == [
        {"ipBlock": {"cidr": "198.51.100.0/24"}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}},
    ]


def test_keda_reads_a_valkey_of_the_release() -> None:
    keda = {"enabled": True, "redisAddress": "speech-redis:6379"}
    (rule,) = policies(render({**LEAST, "worker": {"keda": keda}}), "Ingress", "redis")
    assert rule["from"][1] == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}


@pytest.mark.parametrize("kind", ["ingress", "worker"])
def test_spans_go_to_the_collector(kind: str) -> None:
    env = environment(render(EVERYTHING), f"speech-{kind}")
    assert env["PARAKEET_TRACE_ENDPOINT"] == "http://collector.monitoring:4318/v1/traces"
    assert env["PARAKEET_TRACE_RATIO"] == "0.1"
    assert "PARAKEET_TRACE_ENDPOINT" not in environment(render(LEAST), f"speech-{kind}")


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
        (
            {**LEAST, "worker": {"keda": {**KEDA, "minReplicas": 9}}},
            "worker.keda.maxReplicas is less than worker.keda.minReplicas",
        ),
        (
            {
                **LEAST,
                "redis": {"existingSecret": "r", "shards": 2},
                "worker": {"keda": {**KEDA, "streamsPerWorker": 1}},
            },
            "worker.keda.streamsPerWorker is less than redis.shards",
        ),
        (
            {**LEAST, "ingress": {"autoscaling": {"enabled": True, "minReplicas": 20}}},
            "ingress.autoscaling.maxReplicas is less",
        ),
        ({**LEAST, "monitoring": {"port": 8000}}, "monitoring.port is a port of clients"),
        ({**LEAST, "monitoring": {"port": 8765}}, "monitoring.port is a port of clients"),
        ({**LEAST, "monitoring": {"port": 65535}, "worker": {"lanes": 2}}, "no ports for worker.lanes"),
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
        {**LEAST, "tracing": {"endpoint": "collector:4318"}},
        {**LEAST, "networkPolicy": {"egress": {"redisPorts": []}}},
    ],
)
def test_values_of_another_shape_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises((HelmValuesError, HelmRenderError)):
        render(values)
