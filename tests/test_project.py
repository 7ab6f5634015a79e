"""Promises that no single module keeps: layers, pins, set-up, images and the compose file."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Package -> what it may import of ours. training and service meet only through a bundle on disk.
LAYERS = {
    "models": {"models"},
    "training": {"training", "models"},
    "service": {"service", "models"},
}
# Third-party package -> where it may be imported.
TERRITORY = {
    "torch": {"models", "training"},
    "transformers": {"models", "training"},
    "peft": {"models", "training"},
    "accelerate": {"training"},
    "fastapi": {"service"},
    "starlette": {"service"},
    "uvicorn": {"service"},
    "redis": {"service"},
    "pymilvus": {"service"},
    "faiss": {"service"},
    "prometheus_client": {"service"},
    "pythonjsonlogger": {"service"},
    "opentelemetry": {"service"},
}
# What a stop may take: saying so, then the requests that are running, then a forward pass, the
# files and the last traces.
STOPPING = ("drain_delay_s", "drain_limit_s")
CLOSING_S = 20


def imported(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", LAYERS)
def test_training_and_service_meet_only_through_models(package: str) -> None:
    for source in (ROOT / package).rglob("*.py"):
        strays = (imported(source) & LAYERS.keys()) - LAYERS[package]
        assert not strays, f"{source.relative_to(ROOT)} imports {strays}"


@pytest.mark.parametrize("package", LAYERS)
def test_a_library_is_imported_only_on_its_own_side(package: str) -> None:
    for source in (ROOT / package).rglob("*.py"):
        strays = {
            name for name in imported(source) if package not in TERRITORY.get(name, {package})
        }
        assert not strays, f"{source.relative_to(ROOT)} imports {strays}"


@pytest.mark.parametrize("package", LAYERS)
def test_every_file_the_code_reads_is_in_the_wheel(package: str) -> None:
    patterns = PROJECT["tool"]["setuptools"].get("package-data", {}).get(package, [])
    packaged = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}

    files = {
        path
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }

    assert files <= packaged, f"not in package-data: {sorted(map(str, files - packaged))}"


# --- pins ------------------------------------------------------------------------------------


def pins() -> dict[str, Version]:
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (exact,) = requirement.specifier
            assert exact.operator == "==", f"{line} is not one version"
            found[canonicalize_name(requirement.name)] = Version(exact.version)
    return found


def direct_dependencies() -> list[str]:
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    build: list[str] = PROJECT["build-system"]["requires"]
    runtime: list[str] = PROJECT["project"]["dependencies"]
    return [*build, *runtime, *(line for lines in extras.values() for line in lines)]


@pytest.mark.parametrize("dependency", direct_dependencies())
def test_every_direct_dependency_is_pinned_within_its_bounds(dependency: str) -> None:
    requirement = Requirement(dependency)

    pinned = pins()[canonicalize_name(requirement.name)]

    assert pinned in requirement.specifier


def test_no_pin_names_a_build_or_brings_cuda() -> None:
    for name, version in pins().items():
        assert version.local is None, f"{name} {version} exists on one index only"
        assert not name.startswith("nvidia-")


def test_pip_is_pinned_because_it_decides_how_the_rest_is_installed() -> None:
    assert "pip" in pins()


# --- set-up ----------------------------------------------------------------------------------


def interpreter_that_says(folder: Path, minor: int) -> Path:
    """A command that runs this Python under another version number, and cannot make a venv."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.executable = '/bin/false'\n"
        f"sys.version_info = type('V', (tuple,), dict(major=3, minor={minor}))((3, {minor}, 0))\n"
    )
    command = folder / "python"
    command.write_text(
        "#!/bin/sh\n"
        f'PYTHONPATH={shlex.quote(str(folder))} exec {shlex.quote(sys.executable)} "$@"\n'
    )
    command.chmod(0o755)
    return command


def preflight(**environment: str) -> subprocess.CompletedProcess[str]:
    """scripts/preflight.sh, for an index that nothing listens at, so that it never leaves here."""
    return subprocess.run(
        ["sh", "scripts/preflight.sh"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PIP_INDEX_URL": "http://127.0.0.1:9/", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_preflight_accepts_the_pythons_that_pyproject_allows(tmp_path: Path, minor: int) -> None:
    python = interpreter_that_says(tmp_path, minor)
    allowed = SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"3.{minor}.0")

    answer = preflight(PYTHON=str(python), VENV=str(tmp_path / "venv"))

    refused = "is not a CPython" in answer.stderr
    assert refused is not allowed, answer.stderr


def test_preflight_says_in_one_sentence_what_is_missing() -> None:
    answer = preflight(PYTHON="/nonexistent/python")

    assert answer.returncode == 1
    assert answer.stdout == ""
    (sentence,) = answer.stderr.splitlines()
    assert sentence.startswith(
        "preflight: PYTHON=/nonexistent/python is not a CPython >=3.11,<3.13"
    )


def test_preflight_names_the_range_that_pyproject_allows() -> None:
    assert (
        f"CPython {PROJECT['project']['requires-python']}"
        in (ROOT / "scripts" / "preflight.sh").read_text()
    )


def test_make_alone_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (listed,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    targets = set(listed.split())

    # --no-print-directory: under `make test` this make is not the first.
    printed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert {line.split()[1] for line in printed.splitlines()} == targets
    assert {"demo", "test", "check", "serve", "bench", "clean"} <= targets


# --- images and compose ----------------------------------------------------------------------


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of the last stage, continuation lines joined."""
    text = "\n".join(
        line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")
    )
    lines = text.replace("\\\n", " ").splitlines()
    pairs = [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]
    last = max(place for place, (name, _) in enumerate(pairs) if name == "FROM")
    return pairs[last:]


@pytest.fixture(scope="module", params=["Dockerfile", "Dockerfile.training"])
def dockerfile(request: pytest.FixtureRequest) -> Path:
    return ROOT / "docker" / str(request.param)


def test_an_image_runs_as_a_fixed_user_that_is_not_root(dockerfile: Path) -> None:
    users = [arguments for name, arguments in instructions(dockerfile) if name == "USER"]

    assert users == ["10001:10001"]


def test_an_image_starts_python_without_a_shell_that_would_keep_signals(dockerfile: Path) -> None:
    package = {"Dockerfile": "service", "Dockerfile.training": "training"}[dockerfile.name]
    steps = dict(instructions(dockerfile))

    assert yaml.safe_load(steps["ENTRYPOINT"]) == ["python", "-m", package]


def test_an_image_copies_only_what_dockerignore_lets_in(dockerfile: Path) -> None:
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copies = [
        line.split()[1:-1]
        for line in dockerfile.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
    ]

    assert {name for names in copies for name in names} <= let_in


def test_the_service_image_holds_no_training_code() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()

    assert "COPY training" not in text
    assert "ARG EXTRAS=service,tracing\n" in text
    assert '".[$EXTRAS]"' in text


def test_the_service_image_asks_itself_whether_it_is_ready() -> None:
    check = dict(instructions(ROOT / "docker" / "Dockerfile"))["HEALTHCHECK"]
    command: list[str] = yaml.safe_load(check.split("CMD ", 1)[1])

    assert command[:2] == ["python", "-c"]
    ast.parse(command[2])
    assert "/health/ready" in command[2]


def test_the_variables_an_image_sets_are_settings() -> None:
    environment = dict(instructions(ROOT / "docker" / "Dockerfile"))["ENV"]
    names = re.findall(rf"{PREFIX}(\w+)=", environment)

    assert names
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_every_published_port_is_on_the_loopback_address(compose: dict[str, Any]) -> None:
    published = [port for part in compose["services"].values() for port in part.get("ports", [])]

    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_service_answers_without_keys_only_behind_the_loopback_port(
    compose: dict[str, Any],
) -> None:
    service = compose["services"]["service"]

    assert service["environment"][f"{PREFIX}ALLOW_ANONYMOUS"] == "1"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_redis_is_a_bounded_cache_that_only_the_service_reaches(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    options = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))

    assert options == {
        "--maxmemory": "256mb",
        "--maxmemory-policy": "allkeys-lru",
        "--save": "",
        "--appendonly": "no",
    }
    assert "ports" not in redis


def test_the_bundle_is_mounted_read_only_and_the_catalogue_in_a_volume(
    compose: dict[str, Any],
) -> None:
    bundle, catalogue = compose["services"]["service"]["volumes"]

    assert bundle["target"] == "/bundle"
    assert bundle["read_only"] is True
    assert bundle["bind"]["create_host_path"] is False
    assert catalogue == "catalogue:/catalogue"
    assert "catalogue" in compose["volumes"]


@pytest.mark.parametrize("part", ["service", "redis", "prometheus", "grafana"])
def test_a_container_has_no_more_rights_than_it_needs(compose: dict[str, Any], part: str) -> None:
    container = compose["services"][part]

    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["mem_limit"]


def test_the_service_starts_without_waiting_for_redis_to_be_well(compose: dict[str, Any]) -> None:
    service = compose["services"]["service"]

    assert service["depends_on"] == {"redis": {"condition": "service_started"}}
    assert service["environment"][f"{PREFIX}REDIS_URL"] == "redis://redis:6379/0"


def test_a_stop_leaves_time_for_the_running_requests(compose: dict[str, Any]) -> None:
    service = compose["services"]["service"]
    grace_s = float(service["stop_grace_period"].removesuffix("s"))
    defaults = {name: Settings.model_fields[name].default for name in STOPPING}
    given = service["environment"]

    longest_s = sum(
        float(given.get(PREFIX + name.upper(), default)) for name, default in defaults.items()
    )

    assert grace_s > longest_s + CLOSING_S


def test_monitoring_starts_only_when_it_is_asked_for(compose: dict[str, Any]) -> None:
    profiles = {name: part.get("profiles", []) for name, part in compose["services"].items()}

    asked_for = {name for name, under in profiles.items() if under == ["monitoring"]}
    assert asked_for == {"prometheus", "grafana"}
    assert [name for name, under in profiles.items() if not under] == ["service", "redis"]


def test_prometheus_scrapes_the_service_and_reads_the_rules() -> None:
    config = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]

    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": ["service:8000"]}]
    assert all((ROOT / "docker" / "prometheus" / name).is_file() for name in config["rule_files"])
