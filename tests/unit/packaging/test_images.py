"""The Dockerfiles say what the code, compose.yaml and the chart say: files, users, ports, paths, commands."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from common.settings import FLAGS

ROOT: Final = Path(__file__).parents[3]
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
IMAGES: Final = {
    "ingress": ("setup", "ingress"),
    "worker": ("gpu_worker", "cpu_worker"),
}
"""The services of compose.yaml that run each image."""


def instructions(image: str) -> list[tuple[str, str]]:
    """Return the lines of a Dockerfile, continued ones as one, each with its instruction."""
    text = (ROOT / "docker" / f"{image}.Dockerfile").read_text(encoding="utf-8")
    whole = re.sub(r"\\\n", " ", text)
    lines = [line for line in whole.splitlines() if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def told(image: str, name: str) -> list[str]:
    return [rest for each, rest in instructions(image) if each == name]


def environment(image: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in told(image, "ENV") for pair in shlex.split(line))


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_not_ignored(image: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for line in told(image, "COPY"):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert not any(Path(source).match(pattern) for pattern in ignored), source


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_holds_all_that_it_imports(image: str) -> None:
    """A program of another part, which only that part imports, is named in a string and is not looked at."""
    copied = {line.split()[0] for line in told(image, "COPY")} & {
        "common",
        "gpu_worker",
        "ingress",
        "parakeet",
    }
    needed = {"ingress": {"common", "ingress", "parakeet"}, "worker": {"common", "gpu_worker", "parakeet"}}
    assert copied == needed[image]
    own = {"common", "gpu_worker", "ingress", "parakeet", "clients", "tests", "benchmarks", "training"}
    for package in copied - {"parakeet"}:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                match node:
                    case ast.Import(names=names):
                        modules = [name.name for name in names]
                    case ast.ImportFrom(module=str(module), level=0):
                        modules = [module]
                    case _:
                        continue
                tops = {module.split(".")[0] for module in modules}
                assert tops & own <= copied, f"{path} imports {tops & own - copied}"


@pytest.mark.parametrize("image", IMAGES)
def test_the_user_is_the_number_that_compose_and_the_chart_have(image: str) -> None:
    (user,) = told(image, "USER")
    for service in IMAGES[image]:
        assert COMPOSE["services"][service]["user"] == user
    helpers = (ROOT / "deploy/helm/parakeet/templates/_helpers.tpl").read_text(encoding="utf-8")
    number, group = user.split(":")
    assert f"runAsUser: {number}\nrunAsGroup: {group}\nfsGroup: {group}\n" in helpers
    assert any(f"--uid {number} " in line for line in told(image, "RUN"))


@pytest.mark.parametrize("image", IMAGES)
def test_the_ports_are_those_of_the_flags(image: str) -> None:
    defaults = {flag.name: flag.default for flag in FLAGS}
    (line,) = told(image, "EXPOSE")
    expected = [environment(image)["PARAKEET_METRICS_PORT"]]
    if image == "ingress":
        expected += [defaults[name] for name in ("port", "ws_port", "status_port")]
    assert sorted(line.split()) == sorted(expected)
    for service in IMAGES[image]:
        inside = {mapping.rsplit(":", 1)[1] for mapping in COMPOSE["services"][service].get("ports", ())}
        assert inside <= set(expected)


@pytest.mark.parametrize("image", IMAGES)
def test_settings_are_flags_of_the_command_that_runs(image: str) -> None:
    (words,) = told(image, "CMD")
    program, command = json.loads(words)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert program in scripts
    assert command == image
    flags = {flag.variable: flag for flag in FLAGS}
    for name, value in environment(image).items():
        if name.startswith("PARAKEET_"):
            assert command in flags[name].commands
            flags[name].kind.parse(value)
    for service in set(IMAGES[image]) - {"setup"}:
        assert COMPOSE["services"][service]["command"] == [program, command]


@pytest.mark.parametrize("image", IMAGES)
def test_the_health_check_is_that_of_compose(image: str) -> None:
    (line,) = told(image, "HEALTHCHECK")
    check = json.loads(line.partition(" CMD ")[2])
    for service in set(IMAGES[image]) - {"setup"}:
        assert COMPOSE["services"][service]["healthcheck"]["test"] == ["CMD", *check]
    assert f":{environment(image)['PARAKEET_METRICS_PORT']}/readyz" in check[-1]


@pytest.mark.parametrize("image", IMAGES)
def test_folders_that_volumes_are_mounted_at_belong_to_the_user(image: str) -> None:
    """A new volume takes the owner of the folder of the image that it is mounted at."""
    made = {
        word
        for line in told(image, "RUN")
        for part in line.split("&&")
        if "install -d -m 0700 -o parakeet -g parakeet" in part
        for word in part.split()
        if word.startswith("/")
    }
    mounted = {
        mount.split(":")[1] for service in IMAGES[image] for mount in COMPOSE["services"][service]["volumes"]
    }
    assert made == mounted
    if image == "worker":
        assert environment(image)["HF_HOME"] in made


@pytest.mark.parametrize("image", IMAGES)
def test_traces_can_be_sent(image: str) -> None:
    runs = " ".join(told(image, "RUN"))
    if image == "worker":
        assert '".[otel]"' in runs
        return
    (script,) = re.findall(r'python -c "(import tomllib.*?)" > otel\.txt', runs)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert done.stdout.splitlines() == project["optional-dependencies"]["otel"]
