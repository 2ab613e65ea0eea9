"""deploy/helm: Kubernetes takes what Helm's engine makes of it, and each pod has what its service needs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts import routing
from worker.amqp.permissions import needs
from worker.bootstrap import ON_REQUEST, SERVICES
from worker.bootstrap_intake import INTAKES
from worker.settings import Settings
from worker.settings_fit import variable

helm = pytest.importorskip("helm_python")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm"
DEFINITIONS = json.loads((ROOT / "deploy/rabbitmq/definitions.json").read_text())
OPTIONAL = ("claims", "tracker", "webhooks", "returned", "console")
FULL: dict[str, Any] = {
    "image": {"digest": f"sha256:{'a' * 64}", "pullSecrets": [{"name": "registry"}]},
    "settings": {
        "SENDOFF_TRACKER_URL": "https://t.example.org",
        "SENDOFF_QUEUE_PREFIX": "blue",
        "SENDOFF_SHUTDOWN_GRACE": 60,
    },
    "services": {name: {"enabled": True} for name in OPTIONAL}
    | {
        "webhooks": {
            "enabled": True,
            "files": "webhooks",
            "env": {"SENDOFF_WEBHOOKS_FILE": "/etc/sendoff/providers.toml"},
        },
        "console": {
            "enabled": True,
            "files": "issuer",
            "env": {
                "SENDOFF_CONSOLE_AUTH": "proxy",
                "SENDOFF_AUTH": "token",
                "SENDOFF_AUTH_JWKS_FILE": "/etc/sendoff/jwks.json",
                "SENDOFF_AUTH_ISSUER": "https://id.example.org",
                "SENDOFF_AUTH_AUDIENCE": "sendoff",
            },
        },
    },
    "secrets": {"management": "sendoff-management"},
    "keda": {"enabled": True},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "mail", "operator": "Exists"}],
    "podAnnotations": {"example.org/team": "mail"},
}
OLDEST, NEWEST = "1.27", "1.37"


def rendered(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        texts = chart.render(values, name="mail", namespace="sending")
    assert not any("{{" in text for text in texts.values())
    found = [
        document
        for path, text in texts.items()
        if not path.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]
    named = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(named) == len(set(named))
    return found


BY_VALUES = {"default": rendered(), "full": rendered(FULL)}


def of_kind(values: str, *kinds: str) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each
        for each in BY_VALUES[values]
        if each["kind"] in kinds
    }


def pods(values: str) -> dict[str, dict[str, Any]]:
    return {
        name: each["spec"]["template"]["spec"]
        for name, each in of_kind(values, "Deployment", "StatefulSet", "Job").items()
    }


def environment(pod: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    assert len(found) == len(pod["containers"][0]["env"])
    return found


def secrets(pod: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The files that a pod gets, each with its secret and the key there."""
    (volume,) = [each for each in pod["volumes"] if each["name"] == "secrets"]
    return {
        item["path"]: (source["secret"]["name"], item["key"])
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }


def test_helm_finds_nothing_to_complain_of() -> None:
    for values in (None, FULL):
        report = helm.lint(str(CHART), values, strict=True, quiet=True)
        assert [m for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("version", [OLDEST, "1.31", NEWEST])
@pytest.mark.parametrize("values", BY_VALUES)
def test_kubernetes_takes_every_object(values: str, version: str) -> None:
    for each in BY_VALUES[values]:
        if not each["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(each, version, strict=True)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"


def test_a_wrong_object_and_a_wrong_value_are_refused() -> None:
    (job,) = [each for each in BY_VALUES["default"] if each["kind"] == "Job"]
    wrong = json.loads(json.dumps(job))
    wrong["spec"]["template"]["spec"]["containers"][0]["image_"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)
    for values in (
        {"services": {"sent": {"replicas": 2}}},
        {"services": {"send": {"replica": 2}}},
        {"settings": {"SENDOFF_DATABASE_URL": "postgresql://u:secret@db/x"}},
        {"settings": {"CHANNELS": "email"}},
        {"image": {"digest": "sha256:abc"}},
    ):
        with pytest.raises(helm.HelmValuesError):
            rendered(values)


def test_each_service_is_a_deployment_of_its_own() -> None:
    known = {*SERVICES, *ON_REQUEST, *INTAKES, "tracker"}
    assert set(pods("full")) == known | {"migrate"}
    assert set(pods("default")) == set(SERVICES) - {"claims"} | {"migrate"}
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["services"]["propertyNames"]["enum"]) == known
    for name, pod in pods("full").items():
        assert pod["containers"][0]["args"] == (["migrate"] if name == "migrate" else ["run", name])
    (migrate,) = of_kind("full", "Job").values()
    assert migrate["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"


@pytest.mark.parametrize("values", BY_VALUES)
def test_no_pod_may_do_more_than_it_needs(values: str) -> None:
    for pod in pods(values).values():
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["resources"]["limits"]["memory"]
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        # Kubernetes's variables for services named sendoff-… would look like misspelt settings.
        assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("values", BY_VALUES)
def test_each_pod_gets_the_secrets_of_its_service_alone_and_none_in_its_environment(values: str) -> None:
    users = {user["name"] for user in DEFINITIONS["users"]}
    for name, pod in pods(values).items():
        found = secrets(pod)
        store, user = found.pop("broker")
        assert store == "sendoff-broker"
        own = {"tracker": "tracker", "migrate": "sendoff-ops", "console": "upstream"}.get(
            name, f"sendoff-{name}"
        )
        assert user == own
        assert user in users
        role = None if name in INTAKES else ("sendoff-database", "owner" if name == "migrate" else "worker")
        assert found.pop("database", None) == role
        assert ("relay" in found) == (name == "send")
        assert ("management" in found) == (values == "full" and name == "migrate")
        assert ("tracker-keys" in found) == (values == "full" and name in {"send", "tracker"})
        said = environment(pod)
        assert {n for n in said if n.endswith("_URL_FILE")} <= {
            "SENDOFF_AMQP_URL_FILE", "SENDOFF_DATABASE_URL_FILE", "SENDOFF_SMTP_URL_FILE",
            "SENDOFF_MANAGEMENT_URL_FILE",
        }  # fmt: skip
        files = {
            path.rpartition("/")[2] for path in said.values() if path.startswith("/run/secrets/sendoff/")
        }
        assert files == set(secrets(pod))


@pytest.mark.parametrize("values", BY_VALUES)
def test_every_variable_is_a_setting_and_all_fit_together(
    values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("SENDOFF_")]:
        monkeypatch.delenv(name)
    urls = {
        "broker": "amqps://u:p@mq/",
        "database": "postgresql://u:p@db/x",
        "relay": "smtps://relay",
        "management": "https://u:p@mq:15671",
        "tracker-keys": f"1:{'k' * 32}",
    }
    for path, text in urls.items():
        (tmp_path / path).write_text(text)
    for pod in pods(values).values():
        with monkeypatch.context() as patch:
            for name, value in environment(pod).items():
                assert name in map(variable, Settings.model_fields), name
                patch.setenv(name, value.replace("/run/secrets/sendoff", str(tmp_path)))
            settings = Settings(_env_file=None)  # type: ignore[call-arg]
            assert settings.amqp_url == urls["broker"]
            assert settings.conflicts == []


@pytest.mark.parametrize(
    ("values", "grace"), [("default", Settings.model_fields["shutdown_grace"].default), ("full", 60)]
)
def test_a_pod_has_longer_than_its_process_takes_to_end(values: str, grace: int) -> None:
    for name, pod in pods(values).items():
        # What is late is cancelled for up to 5 s, and connections are closed for up to 5 s.
        if name != "migrate":
            assert pod["terminationGracePeriodSeconds"] > grace + 5 + 5


@pytest.mark.parametrize("values", BY_VALUES)
def test_probes_ask_what_is_served_and_the_image_serves_it(values: str) -> None:
    image = dict(re.findall(r"(SENDOFF_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
    for name, pod in pods(values).items():
        if name == "migrate":
            continue
        (container,) = pod["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert str(ports["health"]) == image["SENDOFF_HTTP_PORT"]
        asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert {kind: get["path"] for kind, get in asked.items()} == {
            "startup": "/health/live",
            "liveness": "/health/live",
            "readiness": "/health/ready",
        }
        # The loop counts as stuck after 4 s, and each part is asked for 2 s.
        assert min(container[f"{kind}Probe"].get("timeoutSeconds", 6) for kind in asked) >= 5
        if name in ports:
            assert ports[name] == Settings.model_fields[f"{name}_port"].default
            assert environment(pod)[f"SENDOFF_{name.upper()}_HOST"] == "0.0.0.0"  # noqa: S104 - in a pod


@pytest.mark.parametrize("values", BY_VALUES)
def test_every_pod_has_a_network_policy_and_what_runs_twice_a_disruption_budget(values: str) -> None:
    policies, budgets = of_kind(values, "NetworkPolicy"), of_kind(values, "PodDisruptionBudget")
    assert set(policies) == set(pods(values))
    for name, policy in policies.items():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        out = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        assert ({25, 587} <= out) == (name == "send")
        assert (15671 in out) == (values == "full" and name == "migrate")
        assert {53, 5671, 5432} <= out
    alone = {"migrate", "returned", "console"}
    assert set(budgets) == set(pods(values)) - alone
    for name, budget in budgets.items():
        selector = budget["spec"]["selector"]["matchLabels"]
        labels = of_kind(values, "Deployment", "StatefulSet")[name]["spec"]["template"]["metadata"]["labels"]
        assert selector.items() <= labels.items()
        assert policies[name]["spec"]["podSelector"]["matchLabels"] == selector


def test_keda_scales_by_what_may_be_sent_now_and_by_the_queues_of_the_installation() -> None:
    assert of_kind("default", "ScaledObject") == {}
    scaled = of_kind("full", "ScaledObject")
    workloads = of_kind("full", "Deployment", "StatefulSet")
    assert set(scaled) == {"fanout", "send", "claims", "results", "tracking"}
    (login,) = of_kind("full", "TriggerAuthentication").values()
    assert [(e["parameter"], e["name"], e["key"]) for e in login["spec"]["secretTargetRef"]] == [
        ("connection", "sendoff-database", "reader"),
        ("host", "sendoff-broker", "sendoff-schedule"),
    ]
    names = routing.Names("blue")
    reads = needs(("email",))
    for name, each in scaled.items():
        target = each["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == (
            workloads[name]["kind"],
            workloads[name]["metadata"]["name"],
        )
        assert "replicas" not in workloads[name]["spec"]
        assert 1 <= each["spec"]["minReplicaCount"] < each["spec"]["maxReplicaCount"]
        for trigger in each["spec"]["triggers"]:
            assert trigger["authenticationRef"]["name"] == login["metadata"]["name"]
            assert all(isinstance(value, str) for value in trigger["metadata"].values())
        kinds = {trigger["type"] for trigger in each["spec"]["triggers"]}
        if name in {"send", "fanout"}:
            assert kinds == {"postgresql"}
        else:
            assert kinds == {"rabbitmq"}
            asked = {trigger["metadata"]["queueName"] for trigger in each["spec"]["triggers"]}
            assert asked == {names.queue(queue) for queue in reads[name].reads}
    assert {name for name in workloads if "replicas" in workloads[name]["spec"]} == set(workloads) - set(
        scaled
    )


async def test_a_reader_of_the_database_may_ask_what_keda_asks(stack: Any) -> None:
    for each in of_kind("full", "ScaledObject").values():
        for trigger in each["spec"]["triggers"]:
            if trigger["type"] == "postgresql":
                (row,) = await stack.rows(trigger["metadata"]["query"])
                assert list(row.values()) == [0]
