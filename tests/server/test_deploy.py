"""deploy/ is well-formed, keeps its promises, and agrees with the code it starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from dermino_client.site import read_site
from dermino_core.datasets import find_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
BIN = Path(sys.executable).parent
UNITS = sorted((DEPLOY / "systemd").glob("dermino-*"))
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def unit_lines(unit: str) -> list[str]:
    text = (DEPLOY / "systemd" / unit).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


# ---------------------------------------------------------------- compose


def test_only_the_proxy_publishes_a_port(compose: dict) -> None:
    services = compose["services"]
    assert set(services) == {"superlink", "proxy", "client"}
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert services["proxy"]["ports"] == ["${DERMINO_PORT:-443}:8443"]
    assert not any(service.get("network_mode") for service in services.values())


def test_only_the_proxy_shares_a_network_with_the_superlink(compose: dict) -> None:
    services = compose["services"]
    assert services["superlink"]["networks"] == ["inside"]
    assert compose["networks"]["inside"]["internal"] is True
    assert [name for name in services if "inside" in services[name]["networks"]] == [
        "superlink",
        "proxy",
    ]


def test_containers_have_no_more_rights_than_they_need(compose: dict) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service, name
    volumes = compose["services"]["client"]["volumes"]
    assert [v for v in volumes if ":/srv" in v] == ["${DERMINO_DATA:-/srv}:/srv:ro"]
    assert [v for v in volumes if ":/etc/dermino" in v] == [
        "${DERMINO_ETC:-/etc/dermino}:/etc/dermino:ro"
    ]


def test_images_are_pinned_and_built_from_what_is_here(compose: dict) -> None:
    for service in compose["services"].values():
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"\d", tag), service["image"]
        if "build" in service:
            assert (REPOSITORY / service["build"]["dockerfile"]).is_file()


def test_the_proxy_gets_every_value_its_template_needs(compose: dict) -> None:
    template = (DEPLOY / "proxy" / "dermino.conf.template").read_text()
    wanted = set(re.findall(r"\$\{(\w+)\}", template))
    assert set(compose["services"]["proxy"]["environment"]) == wanted
    readme = (DEPLOY / "README.md").read_text()
    assert all(f"{name}=" in readme and f"${name}" in readme for name in wanted)


def test_example_env_covers_compose(compose: dict) -> None:
    used = set(re.findall(r"\$\{(\w+):-", (DEPLOY / "compose.yaml").read_text()))
    named = set(re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text(), re.MULTILINE))
    assert used == named


def test_docker_agrees(tmp_path: Path) -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker command")
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker is here without its compose plugin")
    command = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml")]
    command += ["--profile", "coordinator", "--profile", "hospital", "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["services"]) == {"superlink", "proxy", "client"}


# ---------------------------------------------------------------- container files


def instructions(file: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_container_file(file: Path) -> None:
    steps = instructions(file)
    known = {"ARG", "FROM", "WORKDIR", "RUN", "COPY", "ENV", "USER", "VOLUME", "CMD", "ENTRYPOINT"}
    assert {word for word, _ in steps} <= known | {"HEALTHCHECK"}
    for word, rest in steps:
        if word == "FROM":
            assert re.match(r"\S+:\d+\.\d+\.\d+-\S+( AS \w+)?$", rest), rest
        if word == "COPY" and "--from" not in rest:
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                assert (REPOSITORY / source).exists(), source
    last_from = max(i for i, (word, _) in enumerate(steps) if word == "FROM")
    final = steps[last_from:]
    users = [rest for word, rest in final if word == "USER"]
    assert users == ["10001:10001"]
    words = [word for word, _ in final]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY"))
    health = next(rest for word, rest in final if word == "HEALTHCHECK")
    assert "dermino" in health
    assert "health" in health
    assert any("--constraint constraints.txt" in rest for word, rest in steps if word == "RUN")
    for word, rest in final:
        if word in ("CMD", "ENTRYPOINT"):
            assert isinstance(json.loads(rest), list)


def test_there_are_two_container_files() -> None:
    assert [file.name for file in DOCKERFILES] == ["client.Dockerfile", "coordinator.Dockerfile"]
    for file in DOCKERFILES:
        ignored = file.with_name(file.name + ".dockerignore").read_text().splitlines()
        assert ignored[0] == "*"
        for word, rest in instructions(file):
            if word == "COPY" and "--from" not in rest:
                *sources, _ = [part for part in rest.split() if not part.startswith("--")]
                assert all(f"!{source}" in ignored for source in sources), sources


def test_both_ways_start_the_same_superlink() -> None:
    container = next(
        json.loads(rest)
        for word, rest in instructions(DEPLOY / "coordinator.Dockerfile")
        if word == "CMD"
    )
    start = next(x for x in unit_lines("dermino-superlink.service") if x.startswith("ExecStart="))
    unit = shlex.split(start.removeprefix("ExecStart="))
    assert option(unit, "--host") == "127.0.0.1"
    differing = {"/opt/dermino/bin/flower-superlink", "flower-superlink", "0.0.0.0", "127.0.0.1"}
    assert set(container) ^ set(unit) <= differing
    assert "--enable-supernode-auth" in unit
    assert "--insecure" not in unit


def test_flower_accepts_the_flags(tmp_path: Path) -> None:
    helped = subprocess.run(
        [str(BIN / "flower-superlink"), "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"FLWR_HOME": str(tmp_path), "FLWR_DISABLE_UPDATE_CHECK": "1"},
    ).stdout
    start = next(x for x in unit_lines("dermino-superlink.service") if x.startswith("ExecStart="))
    flags = [word for word in shlex.split(start) if word.startswith("--")]
    assert len(flags) == 9
    assert all(flag in helped for flag in flags)


# ---------------------------------------------------------------- systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze command")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    names = []
    for unit in UNITS:
        text = unit.read_text().replace("/opt/dermino/bin", str(BIN))
        names.append(unit.name.replace("@.", "@mednode."))
        for name in {unit.name, names[-1]}:
            (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in names)],
        capture_output=True,
        text=True,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    assert done.returncode == 0, done.stderr
    assert "dermino" not in done.stderr, done.stderr


@pytest.mark.parametrize("unit", ["dermino-superlink.service", "dermino-client@.service"])
def test_services_are_confined(unit: str) -> None:
    lines = unit_lines(unit)
    for wanted in (
        "User=dermino",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "CapabilityBoundingSet=",
        "PrivateTmp=yes",
        "RestrictNamespaces=yes",
        "SystemCallFilter=@system-service",
        "Environment=FLWR_TELEMETRY_ENABLED=0",
        "Environment=FLWR_DISABLE_UPDATE_CHECK=1",
        "Environment=PATH=/opt/dermino/bin:/usr/bin:/bin",
        "Restart=always",
    ):
        assert wanted in lines
    assert any(line.startswith("ReadWritePaths=/var/lib/dermino") for line in lines)


# ---------------------------------------------------------------- site files, app


@pytest.mark.parametrize("name", ["mednode", "ph2", "fitzpatrick17k"])
def test_example_sites_are_valid(name: str) -> None:
    site = read_site(DEPLOY / "sites" / f"{name}.toml")
    assert site.name == name
    assert site.coordinator is None, "the join bundle has the address"
    assert site.folder == Path(f"/var/lib/dermino/{name}/site")
    assert site.node.health_address == "127.0.0.1:8081"
    labels = find_dataset(name).label_map
    assert dict(site.labels).items() <= dict(labels).items()


def test_the_flower_app_builds(tmp_path: Path) -> None:
    import dermino_strategies

    source = Path(dermino_strategies.__file__).parent / "flower_app" / "pyproject.toml"
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(source, app)
    config = tomllib.loads(source.read_text())
    assert config["project"]["dependencies"] == []
    assert config["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "dermino_server.app:app",
        "clientapp": "dermino_client.app:app",
    }
    assert config["tool"]["flwr"]["app"]["config"] == {
        "run-folder": "",
        "resume": False,
    }
    assert config["project"]["version"] == dermino_version()
    done = subprocess.run(
        [str(BIN / "flwr"), "build"],
        cwd=app,
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "FLWR_HOME": str(tmp_path / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = app.glob("*.fab")
    assert bundle.name.startswith("dermino.dermino.")


def dermino_version() -> str:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


# ---------------------------------------------------------------- proxy, README


@pytest.mark.skipif(NGINX is None, reason="no nginx")
def test_nginx_accepts_the_template(tmp_path: Path) -> None:
    from dermino_server.provisioning import provision

    provision(tmp_path / "tls", hosts=["coordinator.example.org"])
    values = {
        "DERMINO_LISTEN": "127.0.0.1:8443",
        "DERMINO_UPSTREAM": "127.0.0.1:8000",
        "DERMINO_TLS": str(tmp_path / "tls"),
        "DERMINO_ACCESS_LOG": str(tmp_path / "access.log"),
    }
    text = (DEPLOY / "proxy" / "dermino.conf.template").read_text()
    for name, value in values.items():
        text = text.replace("${" + name + "}", value)
    (tmp_path / "dermino.conf").write_text(text)
    main = tmp_path / "nginx.conf"
    main.write_text(
        f"pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ include {tmp_path}/dermino.conf; }}\n"
    )
    done = subprocess.run([str(NGINX), "-t", "-c", str(main)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


def test_readme_names_only_what_exists() -> None:
    readme = (DEPLOY / "README.md").read_text()
    for path in re.findall(r"(?:/opt/dermino/share/)?deploy/([\w./@*-]*[\w*])", readme):
        assert list(DEPLOY.glob(path)), path
    assert (REPOSITORY / "tests/server/test_proxy_topology.py").is_file()
    for said in ("no authentication", "judges the bundle by its bytes", "ca.key", "443"):
        assert said in readme
