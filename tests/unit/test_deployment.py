"""The Kubernetes manifests and the systemd units, as far as they can be checked without a cluster."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from millpond.settings import Settings, load_settings
from tests.monitoring import scaling_queries

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
SCHEMAS = ROOT / "tests/schemas"
CORE = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text())
KEDA = json.loads((SCHEMAS / "keda-2.16-scaledobject.json").read_text())
GROUPS = {"v1": "core.v1", "networking.k8s.io/v1": "networking.v1"}
OVERLAYS = ("base", "keda", "gpu")


def schema_of(manifest: dict[str, Any]) -> dict[str, Any]:
    version, kind = manifest["apiVersion"], manifest["kind"]
    if version.startswith("keda.sh/"):
        return KEDA
    group = GROUPS.get(version, version.replace("/", "."))
    return CORE | {"$ref": f"#/$defs/io.k8s.api.{group}.{kind}"}


def files() -> list[Path]:
    return [p for p in sorted(KUBERNETES.rglob("*.yaml")) if p.name != "kustomization.yaml"]


def manifests() -> list[dict[str, Any]]:
    return [one for file in files() for one in yaml.safe_load_all(file.read_text())]


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: m for m in manifests() if m["kind"] == kind}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in manifests():
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def settings_literals() -> dict[str, str]:
    [made] = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())[
        "configMapGenerator"
    ]
    return dict(literal.split("=", 1) for literal in made["literals"])


@pytest.mark.parametrize(
    "manifest", manifests(), ids=lambda m: f"{m['kind']}-{m['metadata']['name']}"
)
def test_manifests_fit_their_schemas(manifest: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema_of(manifest)).validate(manifest)


def test_the_schemas_notice_a_wrong_field() -> None:
    for name, where in (("worker", "spec"), ("worker", "metadata")):
        for kind in ("Deployment", "ScaledObject"):
            wrong = named(kind)[name]
            wrong[where]["replicsa"] = 3
            with pytest.raises(jsonschema.ValidationError, match="replicsa"):
                jsonschema.Draft202012Validator(schema_of(wrong)).validate(wrong)


def test_kustomize_builds_each_overlay() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; the manifests were checked one by one all the same")
    for overlay in OVERLAYS:
        built = subprocess.run(
            [kubectl, "kustomize", KUBERNETES / overlay], capture_output=True, text=True, check=True
        )
        made = list(yaml.safe_load_all(built.stdout))
        for manifest in made:
            jsonschema.Draft202012Validator(schema_of(manifest)).validate(manifest)
        [worker] = [
            m for m in made if (m["kind"], m["metadata"]["name"]) == ("Deployment", "worker")
        ]
        assert ("replicas" in worker["spec"]) is (overlay == "base"), "KEDA owns the number"
        [container] = worker["spec"]["template"]["spec"]["containers"]
        limits, names = container["resources"]["limits"], [e["name"] for e in container["env"]]
        assert ("nvidia.com/gpu" in limits) is ("MILLPOND_DEVICE" in names) is (overlay == "gpu")


def test_every_resource_is_listed_and_every_listed_one_exists() -> None:
    for overlay in OVERLAYS:
        folder = KUBERNETES / overlay
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        assert all((folder / name).exists() for name in listed)
        own = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert own == {name for name in listed if not name.startswith("..")}


def test_variables_are_settings_and_their_values_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = settings_literals()
    for _, pod in pods():
        for container in pod["containers"]:
            given |= {entry["name"]: entry["value"] for entry in container.get("env", [])}
    assert {name.removeprefix("MILLPOND_").lower() for name in given} <= set(Settings.model_fields)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.auth_required
    [port] = named("Deployment")["worker"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert settings.metrics_port == port["containerPort"]


def test_pods_have_time_to_stop_and_no_more_rights_than_needed() -> None:
    grace_s = float(settings_literals()["MILLPOND_GRACE_S"])
    worker = named("Deployment")["worker"]["spec"]["template"]["spec"]
    assert worker["terminationGracePeriodSeconds"] >= grace_s + 10
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False, name
            assert rights["readOnlyRootFilesystem"], name
            assert rights["capabilities"]["drop"] == ["ALL"], name
            assert "memory" in container["resources"]["limits"], name
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert name == "redis" or "tmp" in mounted, f"{name} has nowhere to write"


def test_services_and_the_network_policy_select_pods_that_exist() -> None:
    labels = {
        manifest["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for manifest in manifests()
        if manifest["kind"] in ("Deployment", "StatefulSet")
    }
    for service in named("Service").values():
        assert service["spec"]["selector"]["app.kubernetes.io/name"] in labels
    [rule] = named("NetworkPolicy")["redis"]["spec"]["ingress"]
    [expression] = rule["from"][0]["podSelector"]["matchExpressions"]
    assert set(expression["values"]) == labels - {"redis"}
    url = settings_literals()["MILLPOND_REDIS_URL"]
    assert re.fullmatch(r"redis://(\w+):6379/0", url)[1] in named("Service")  # type: ignore[index]
    assert (
        "noeviction"
        in named("StatefulSet")["redis"]["spec"]["template"]["spec"]["containers"][0]["command"]
    )


def test_workers_are_scaled_on_wait_and_depth() -> None:
    scaled = named("ScaledObject")["worker"]["spec"]
    assert scaled["scaleTargetRef"]["name"] in named("Deployment")
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    assert any("next_job_wait" in query for query in scaling_queries().values())


@pytest.mark.parametrize("unit", sorted((ROOT / "deploy/systemd").iterdir()), ids=lambda p: p.name)
def test_systemd_takes_the_unit(unit: Path, tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd is not installed")
    text = unit.read_text()
    [command] = re.findall(r"^ExecStart=(\S+) (\w+)$", text, re.MULTILINE)
    here = Path(sys.executable).parent / "millpond"
    name = unit.name.replace("@.", "@one.")
    (tmp_path / name).write_text(text.replace(command[0], str(here)))
    checked = subprocess.run(
        [verify, "verify", "--man=no", tmp_path / name], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert str(tmp_path) not in checked.stderr, "it warns of the unit"
    [stop_s] = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(stop_s) > Settings.model_fields["grace_s"].default + 10
