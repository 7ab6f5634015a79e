"""The Kubernetes manifests: valid, and of one mind with image, settings and rules."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.service.running import Client, free_port, in_a_process
from tests.test_project import CLOSING_S, ROOT, STOPPING, instructions

FOLDER = ROOT / "docker" / "kubernetes"
OPERATOR = "monitoring.coreos.com/v1"
VERSIONS = ["1.30", "1.37"]  # of Kubernetes
Manifest = dict[str, Any]


def manifests(*folders: str) -> list[Manifest]:
    paths = [path for folder in folders for path in sorted((FOLDER / folder).glob("*.yaml"))]
    return [
        each
        for path in paths
        if path.name != "kustomization.yaml"
        for each in yaml.safe_load_all(path.read_text())
    ]


def one(kind: str, name: str) -> Manifest:
    (found,) = (
        each
        for each in manifests("base", "monitoring")
        if each["kind"] == kind and each["metadata"]["name"] == name
    )
    return found


def named(each: Manifest) -> str:
    return f"{each['kind']} {each['metadata']['name']}"


SET = one("StatefulSet", "llmemb")
POD = SET["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
PODS = [SET, one("Deployment", "llmemb-redis")]
ENVIRONMENT = {each["name"]: each["value"] for each in CONTAINER["env"] if "value" in each}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", manifests("base", "milvus"), ids=named)
def test_a_manifest_is_what_kubernetes_expects(manifest: Manifest, version: str) -> None:
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="no kubernetes-validate; the extra dev has it"
    )

    schemas.validate(manifest, version, strict=True)


def test_a_manifest_that_is_wrong_is_found_out() -> None:
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="no kubernetes-validate; the extra dev has it"
    )
    wrong = {**SET, "spec": {**SET["spec"], "replica": 1}}

    with pytest.raises(schemas.ValidationError, match="replica"):
        schemas.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("folder", ["base", "monitoring", "milvus"])
def test_a_kustomization_names_every_file_beside_it(folder: str) -> None:
    kustomization = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    files = {path.name for path in (FOLDER / folder).iterdir()} - {"kustomization.yaml"}

    named = {each for each in kustomization["resources"] if not each.startswith("..")}
    above = [FOLDER / folder / each for each in kustomization["resources"] if each not in named]

    assert named == files
    assert all((each / "kustomization.yaml").is_file() for each in above)
    images = {
        container["image"]
        for each in manifests(folder)
        if "template" in each["spec"]
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    assert {each["name"] for each in kustomization.get("images", [])} <= images


def test_there_is_one_replica_of_the_embedded_catalogue_on_a_volume() -> None:
    (claim,) = SET["spec"]["volumeClaimTemplates"]
    mounts = {each["name"]: each["mountPath"] for each in CONTAINER["volumeMounts"]}

    assert SET["spec"]["replicas"] == 1
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    folder = Path(ENVIRONMENT[f"{PREFIX}CATALOGUE_DIR"])
    assert folder.is_relative_to(mounts[claim["metadata"]["name"]])


def test_nothing_scales_what_cannot_be_scaled() -> None:
    kinds = {each["kind"] for each in manifests("base", "monitoring")}

    assert not kinds & {"HorizontalPodAutoscaler", "PodDisruptionBudget"}


def test_with_milvus_pods_are_as_before_without_a_volume_and_may_be_many() -> None:
    found = {named(each): each for each in manifests("milvus")}
    workload = found["Deployment llmemb"]
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {each["name"]: each for each in container["env"]}
    before = {each["name"]: each for each in CONTAINER["env"]}

    assert environment.keys() - before.keys() == {f"{PREFIX}STORE"}
    assert before.keys() - environment.keys() == {f"{PREFIX}CATALOGUE_DIR"}
    assert all(environment[name] == before[name] for name in environment.keys() & before.keys())
    for name in container.keys() - {"env", "volumeMounts"}:
        assert container[name] == CONTAINER[name]
    assert {each["name"] for each in container["volumeMounts"]} == {"keys", "tmp"}
    assert pod["volumes"] == POD["volumes"]
    assert workload["spec"]["selector"] == SET["spec"]["selector"]
    target = found["HorizontalPodAutoscaler llmemb"]["spec"]["scaleTargetRef"]
    assert f"{target['kind']} {target['name']}" == named(workload)
    budget = found["PodDisruptionBudget llmemb"]["spec"]
    assert budget["selector"] == workload["spec"]["selector"]


def test_the_variables_are_settings_that_can_be_used_together() -> None:
    names = {name.removeprefix(PREFIX).lower() for name in ENVIRONMENT}
    keys = next(each for each in POD["volumes"] if each["name"] == "keys")["secret"]

    assert names <= Settings.model_fields.keys()
    assert keys["secretName"] == "llmemb-keys"
    folder = next(each for each in CONTAINER["volumeMounts"] if each["name"] == "keys")["mountPath"]
    assert Path(ENVIRONMENT[f"{PREFIX}API_KEYS_FILE"]).parent == Path(folder)
    # With the image's own address, which others can reach, it starts only with keys.
    assert f"{PREFIX}ALLOW_ANONYMOUS" not in ENVIRONMENT


def test_the_service_starts_and_answers_probes_with_these_variables(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "keys").write_text(f"shop read {'k' * 40}\n")
    (tmp_path / "keys").chmod(0o440)
    environment = {
        **ENVIRONMENT,
        f"{PREFIX}API_KEYS_FILE": str(tmp_path / "keys"),
        f"{PREFIX}CATALOGUE_DIR": "",
        f"{PREFIX}REDIS_URL": "redis://127.0.0.1:9/0",
        f"{PREFIX}DRAIN_DELAY_S": "0",
    }
    # As deep in a volume that is empty as in the manifest.
    catalogue = tmp_path / "volume" / Path(ENVIRONMENT[f"{PREFIX}CATALOGUE_DIR"]).name
    with (
        in_a_process(tiny_bundle, catalogue, port, **environment) as process,
        Client(port) as client,
    ):
        client.wait_until_ready(process)
        probed = {
            name: client.get(CONTAINER[name]["httpGet"]["path"]).status_code
            for name in ("startupProbe", "livenessProbe", "readinessProbe")
        }
        metrics = one("ServiceMonitor", "llmemb")["spec"]["endpoints"][0]["path"]
        scraped = client.get(metrics).status_code
        refused = client.get("/items/1").status_code

    assert set(probed.values()) == {200}
    assert (scraped, refused) == (200, 401)


def test_a_probe_asks_the_port_that_the_image_listens_on() -> None:
    (port,) = CONTAINER["ports"]
    exposed = dict(instructions(ROOT / "docker" / "Dockerfile"))["EXPOSE"]

    assert port["containerPort"] == int(exposed)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert CONTAINER[probe]["httpGet"]["port"] == port["name"]


def test_kubernetes_waits_longer_than_a_stop_may_take() -> None:
    longest_s = sum(float(ENVIRONMENT[PREFIX + name.upper()]) for name in STOPPING)

    assert POD["terminationGracePeriodSeconds"] > longest_s + CLOSING_S


def test_the_pod_says_draining_for_longer_than_readiness_takes_to_notice() -> None:
    probe = CONTAINER["readinessProbe"]
    noticed_s = probe["failureThreshold"] * (probe["periodSeconds"] + probe["timeoutSeconds"])

    assert float(ENVIRONMENT[f"{PREFIX}DRAIN_DELAY_S"]) > noticed_s


@pytest.mark.parametrize("workload", PODS, ids=named)
def test_a_pod_has_no_more_rights_than_it_needs(workload: Manifest) -> None:
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_the_user_is_the_one_of_the_image() -> None:
    user = dict(instructions(ROOT / "docker" / "Dockerfile"))["USER"]
    context = POD["securityContext"]

    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert context["fsGroup"] == context["runAsGroup"]


def test_redis_is_the_one_of_the_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["redis"]
    (container,) = one("Deployment", "llmemb-redis")["spec"]["template"]["spec"]["containers"]
    (port,) = one("Service", "llmemb-redis")["spec"]["ports"]

    assert container["args"] == compose["command"]
    assert container["image"] == compose["image"]
    assert ENVIRONMENT[f"{PREFIX}REDIS_URL"] == f"redis://llmemb-redis:{port['port']}/0"


@pytest.mark.parametrize(
    ("service", "workload"),
    [("llmemb", SET), ("llmemb-pods", SET), ("llmemb-redis", PODS[1])],
    ids=["llmemb", "llmemb-pods", "llmemb-redis"],
)
def test_a_service_leads_to_its_pods_alone(service: str, workload: Manifest) -> None:
    spec = one("Service", service)["spec"]
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    (port,) = spec["ports"]

    assert spec["selector"] == workload["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"] == workload["spec"]["selector"]["matchLabels"]
    assert port["targetPort"] in {each["name"] for each in container["ports"]}


def test_the_stateful_set_has_the_service_that_it_names() -> None:
    assert one("Service", SET["spec"]["serviceName"])["spec"]["clusterIP"] == "None"


def test_prometheus_finds_the_pod_once_under_the_job_of_the_alerts() -> None:
    monitor = one("ServiceMonitor", "llmemb")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [
        each
        for each in manifests("base")
        if each["kind"] == "Service" and wanted <= each["metadata"]["labels"].items()
    ]
    (service,) = found
    (endpoint,) = monitor["spec"]["endpoints"]
    rules = (ROOT / "docker" / "prometheus" / "rules.yml").read_text()

    assert monitor["apiVersion"] == OPERATOR
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    job = service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert set(re.findall(r'job="(\w+)"', rules)) == {job}


def test_the_line_of_the_documents_makes_the_alerts_what_the_operator_reads() -> None:
    page = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text()
    (line,) = re.findall(r"^(\(printf 'apiVersion.*?\)) \| kubectl", page, re.M | re.S)
    written = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    made = yaml.safe_load(written)

    assert (made["apiVersion"], made["kind"]) == (OPERATOR, "PrometheusRule")
    assert made["spec"] == yaml.safe_load(
        (ROOT / "docker" / "prometheus" / "rules.yml").read_text()
    )


def test_only_who_should_may_ask_whom() -> None:
    names = ("llmemb", "llmemb-redis")
    service, redis = (one("NetworkPolicy", name)["spec"] for name in names)
    of_service, of_redis = (
        {"matchLabels": each["spec"]["template"]["metadata"]["labels"]} for each in PODS
    )

    assert (service["podSelector"], redis["podSelector"]) == (of_service, of_redis)
    assert redis["ingress"][0]["from"] == [{"podSelector": of_service}]
    assert service["egress"][0]["to"] == [{"podSelector": of_redis}]
    assert redis["egress"] == []
    for policy in (service, redis):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])
