"""The files under deploy/: they are what their tools read, and say what the server says.

Schemas and the image's commands need installs: `make test-deploy`.
"""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fader.cli import app

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
MANIFESTS = ["kubernetes.yaml", "kubernetes-ray.yaml"]


def instructions():
    """The Dockerfile's instructions, each with its text on one line."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line]


def commands():
    """How the server is started in each of the files."""
    yield json.loads(dict(instructions())["CMD"])
    for name in MANIFESTS:
        for one in yaml.safe_load_all((DEPLOY / name).read_text()):
            if one["kind"] == "Deployment":
                [container] = one["spec"]["template"]["spec"]["containers"]
                said = container.get("args") or container["command"]
                words = shlex.split(" ".join(said))
                if "fader" in words:
                    yield words[words.index("fader") :]


def needing(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"{package} is not installed; `make test-deploy` installs and tests it",
    )


def test_the_server_is_started_with_options_that_it_has():
    found = list(commands())
    assert len(found) == 3
    for command in found:
        assert command[:2] == ["fader", "serve"]
        help = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["serve", "--help"]).stdout
        assert all(word in help for word in command if word.startswith("--")), command
        assert "--keys" in command  # others can reach it


def test_what_is_probed_and_drawn_is_what_the_server_has():
    from fader.server.guard import OPEN
    from fader.server.metrics import Metrics

    probes = re.findall(r"path: (/[a-z]+),", "".join((DEPLOY / m).read_text() for m in MANIFESTS))
    assert {*probes} == {"/health", "/ready"} <= {*OPEN}
    assert "/ready" in DOCKERFILE

    class Stats:
        def __getattr__(self, name):
            return 0

    metrics = Metrics(lambda: Stats())
    text = metrics.text().decode()
    known = set(re.findall(r"# TYPE (\w+)", text))
    board = json.loads((DEPLOY / "grafana.json").read_text())
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    drawn = {re.sub("_(bucket|total)$", "", name) for name in re.findall(r"fader_\w+", asked)}
    assert drawn <= known | {name.removesuffix("_total") for name in known}
    assert len(drawn) >= 10
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len({*places}) == len(places)


def test_extras_files_and_settings_of_the_image_are_there():
    extras = re.search(r"ARG EXTRAS=(\S+)", DOCKERFILE)[1].split(",")
    assert all(
        re.search(rf"^{one} = \[", (ROOT / "pyproject.toml").read_text(), re.M) for one in extras
    )
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text()
    for name, text in instructions():
        if name == "COPY":
            for source in text.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}\n" in kept
    source = "".join(file.read_text() for file in (ROOT / "fader").rglob("*.py"))
    said = DOCKERFILE + "".join((DEPLOY / m).read_text() for m in [*MANIFESTS, "compose.yaml"])
    assert all(name in source for name in re.findall(r"\bFADER_\w+", said))


@needing("kubernetes_validate")
@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_reads_the_manifests(name):
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    for one in yaml.safe_load_all((DEPLOY / name).read_text()):
        kubernetes_validate.validate(one, version, strict=True)


@needing("kubernetes_validate")
def test_what_is_misspelled_is_found():
    import kubernetes_validate

    bad = next(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    bad["spec"]["acessModes"] = bad["spec"].pop("accessModes")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, kubernetes_validate.latest_version(), strict=True)


@needing("compose_spec")
def test_compose_reads_its_file():
    from compose_spec import PyCompose

    text = (DEPLOY / "compose.yaml").read_text()
    PyCompose.from_yaml(text).validate()
    for right, wrong in {
        "mem_limit": "mem_limt",
        "secrets: [metrics-key]": "secrets: [no]",
    }.items():
        with pytest.raises(ValueError, match=wrong.split("[")[-1].strip("]")):
            PyCompose.from_yaml(text.replace(right, wrong)).validate()


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "hadolint").exists(),
    reason="hadolint is not installed; `make test-deploy` installs and runs it",
)
def test_the_dockerfile_has_no_known_mistakes():
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", DEPLOY / "Dockerfile"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


@needing("grafana_foundation_sdk")
def test_grafana_reads_the_board():
    from grafana_foundation_sdk.models.dashboard import Dashboard

    board = json.loads((DEPLOY / "grafana.json").read_text())
    read = Dashboard.from_json(board)
    assert read.title == "fader"
    assert len(read.panels) == len(board["panels"])


@pytest.mark.skipif(
    "FADER_TEST_IMAGE" not in os.environ, reason="installs torch anew; `make test-deploy` does it"
)
def test_the_commands_of_the_image_run_in_a_bare_environment(tmp_path):
    """All but what needs root and a container: users, healthcheck, the base image."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    place = {"/src": str(ROOT), "/var/lib/fader": str(tmp_path / "lib")}
    given = dict(text.split("=", 1) for name, text in instructions() if name == "ARG")
    path = f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, **given, "PATH": path, "HOME": str(tmp_path)}
    ran = []
    for name, text in instructions():
        for inside, outside in place.items():
            text = text.replace(inside, outside)
        if name == "ENV":
            environment.update(word.split("=", 1) for word in shlex.split(text))
        if name == "RUN" and "useradd" not in text:
            subprocess.run(["sh", "-c", text], check=True, cwd=ROOT, env=environment)
            ran.append(text)
    assert len(ran) == 3
    served = subprocess.run(["fader", "serve", "--help"], capture_output=True, env=environment)
    assert served.returncode == 0
