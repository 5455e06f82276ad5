"""The compose file and the images, as far as they can be checked without a Docker engine."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def test_compose_file_fits_the_specification() -> None:
    checked = subprocess.run(
        [
            Path(sys.executable).parent / "check-jsonschema",
            *("--builtin-schema", "vendor.compose-spec", COMPOSE),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_check_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "docker-compose.yml"
    bad.write_text("services: {api: {ports: wrong}}")
    checked = subprocess.run(
        [
            Path(sys.executable).parent / "check-jsonschema",
            *("--builtin-schema", "vendor.compose-spec", bad),
        ],
        capture_output=True,
        check=False,
    )
    assert checked.returncode != 0


def test_services_are_wired_to_each_other() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert set(services) == {"redis", "api", "background", "worker", "worker-gpu"}
    assert "appendonly yes" in services["redis"]["command"]
    assert "noeviction" in services["redis"]["command"]
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    for name in ("api", "background", "worker", "worker-gpu"):
        environment = services[name]["environment"]
        assert environment["MILLPOND_REDIS_URL"] == "redis://redis:6379/0"
        assert services[name]["depends_on"]["redis"]["condition"] == "service_healthy"
    assert services["api"]["ports"] == ["127.0.0.1:8000:8000"]
    assert services["api"]["environment"]["MILLPOND_AUTH"] == "on"


def test_variables_are_settings() -> None:
    from millpond.settings import Settings

    names = set(re.findall(r"MILLPOND_([A-Z_]+):", COMPOSE.read_text()))
    assert names <= {name.upper() for name in Settings.model_fields}


def test_images_install_with_the_makefile_and_the_api_has_no_torch() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^RUN make (\S+)", DOCKERFILE, re.MULTILINE))
    assert targets == {"install-api", "install-worker"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    api_stage = DOCKERFILE.split("AS api")[1].split("FROM")[0]
    assert "install-api" in api_stage
    assert "install-worker" not in api_stage
    api_rule = makefile.split("$(VENV)/.api:")[1].split("\n\n")[0]
    assert "'.[api,background,tracing]'" in api_rule


def test_copied_paths_exist() -> None:
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
