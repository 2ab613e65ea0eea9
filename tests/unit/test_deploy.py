"""deploy/: every service is hardened, a user of its own, and has each secret that it asks for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from contracts.routing import Names
from worker.amqp.policies import queue_policy
from worker.amqp.versions import read_version
from worker.bootstrap import ON_REQUEST, SERVICES
from worker.bootstrap_intake import INTAKES
from worker.settings import Settings
from worker.settings_fit import variable

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSED: dict[str, Any] = yaml.safe_load(TEXT)["services"]
OURS = ("migrate", *SERVICES, *ON_REQUEST, *INTAKES, "tracker")


@pytest.mark.parametrize("name", COMPOSED)
def test_no_container_gains_privileges(name: str) -> None:
    assert COMPOSED[name]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", [*OURS, "roles"])
def test_what_needs_no_disk_and_no_capability_has_none(name: str) -> None:
    assert COMPOSED[name]["read_only"] is True
    assert COMPOSED[name]["cap_drop"] == ["ALL"]


def test_prometheus_scrapes_every_service() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (found,) = jobs["sendoff"]["dns_sd_configs"]
    running = [name for name, one in COMPOSED.items() if one.get("command", [""])[0] == "run"]
    assert found["names"] == running


def user(name: str, variable: str) -> str | None:
    return urlsplit(COMPOSED[name]["environment"][variable].replace("${", "").replace(":?}", "")).username


def test_each_service_is_a_user_of_its_own_at_the_broker_and_the_worker_at_the_database() -> None:
    known = {u["name"] for u in json.loads((DEPLOY / "rabbitmq/definitions.json").read_text())["users"]}
    for name in (*SERVICES, *ON_REQUEST, *INTAKES):
        assert user(name, "SENDOFF_AMQP_URL") == f"sendoff-{name}"
        if name in INTAKES:  # strangers talk to them, and they have no access
            assert "DATABASE" not in str(COMPOSED[name]["environment"])
        else:
            assert user(name, "SENDOFF_DATABASE_URL") == "sendoff_worker"
        assert f"sendoff-{name}" in known
        assert f"BROKER_SENDOFF_{name.upper()}:?" in COMPOSED[name]["environment"]["SENDOFF_AMQP_URL"]
    assert user("tracker", "SENDOFF_AMQP_URL") == "tracker"
    assert "BROKER_TRACKER:?" in COMPOSED["tracker"]["environment"]["SENDOFF_AMQP_URL"]
    assert user("migrate", "SENDOFF_AMQP_URL") == "sendoff-ops"
    assert user("migrate", "SENDOFF_DATABASE_URL") == "sendoff_owner"


@pytest.mark.parametrize("name", ["tracker", *INTAKES, *ON_REQUEST])
def test_what_listens_is_reached_from_this_machine_alone_and_only_where_it_is_asked_for(name: str) -> None:
    assert COMPOSED[name]["profiles"] == [name]
    (published,) = COMPOSED[name]["ports"]
    port = Settings.model_fields[f"{name}_port"].default
    assert published == f"127.0.0.1:{port}:{port}"
    assert COMPOSED[name]["environment"][f"SENDOFF_{name.upper()}_HOST"] == "0.0.0.0"  # noqa: S104


def test_the_script_makes_every_secret_that_is_asked_for_and_none_twice(tmp_path: Path) -> None:
    copy = shutil.copytree(
        DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns(".env", "secrets", "__pycache__")
    )
    (copy / "definitions.json").unlink(missing_ok=True)
    script = ["sh", str(copy / "make_secrets.sh")]
    subprocess.run(script, check=True, capture_output=True, timeout=60)
    made = dict(line.split("=", 1) for line in (copy / ".env").read_text().splitlines())
    asked = set(re.findall(r"\$\{(\w+):\?\}", TEXT)) - {"SENDOFF_SMTP_URL"}
    assert asked <= set(made)
    assert len(set(made.values())) == len(made)
    assert (copy / ".env").stat().st_mode & 0o077 == 0
    definitions = (copy / "definitions.json").read_text()
    assert all(found["password_hash"] for found in json.loads(definitions)["users"])
    assert not any(secret in definitions for secret in made.values())
    again = subprocess.run(script, check=False, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1
    assert "is there already" in again.stderr


@pytest.mark.parametrize(
    ("name", "password", "sentence"),
    [("upstreem", "x" * 20, "no user of this name"), ("upstream", "short", "shorter than 16")],
)
def test_a_password_that_cannot_be_meant_is_a_sentence(
    tmp_path: Path, name: str, password: str, sentence: str
) -> None:
    (tmp_path / name).write_text(password)
    (tmp_path / "..data").mkdir()
    script = [sys.executable, str(DEPLOY / "rabbitmq/set_passwords.py"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr


@pytest.mark.parametrize("name", COMPOSED)
def test_no_container_fills_the_disk_with_its_log_or_takes_all_memory(name: str) -> None:
    assert set(COMPOSED[name]["logging"]["options"]) == {"max-size", "max-file"}
    assert "mem_limit" in COMPOSED[name] or COMPOSED[name]["restart"] == "no"


def test_postgres_gets_a_quarter_of_its_memory_for_its_buffers() -> None:
    postgres = COMPOSED["postgres"]
    assert postgres["mem_limit"] == "4g"
    assert "shared_buffers=1GB" in postgres["command"]


def test_a_unit_of_systemd_runs_a_service_and_is_given_the_time_to_end(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd/sendoff@.service").read_text()
    said = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    assert int(said["TimeoutStopSec"]) > Settings.model_fields["shutdown_grace"].default + 10
    for name in re.findall(r"^Environment=(\w+)=", unit, re.MULTILINE):
        assert name in map(variable, Settings.model_fields)
    program = tmp_path / "sendoff"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    script = said["ExecStart"].split("'")[1].replace("/opt/sendoff/bin/sendoff", str(program))
    for instance, run in (("send", "run send"), ("all", "run")):
        done = subprocess.run(
            ["sh", "-c", script, "sendoff", instance], capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stdout.strip() == run
    if shutil.which("systemd-analyze"):
        copy = tmp_path / "sendoff@send.service"
        copy.write_text(unit.replace("/opt/sendoff/bin/sendoff", str(program)))
        verified = subprocess.run(
            ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60, check=False
        )
        assert (verified.returncode, verified.stderr) == (0, "")


def test_the_broker_has_the_policy_that_migrate_sets() -> None:
    policies = json.loads((DEPLOY / "rabbitmq/definitions.json").read_text())["policies"]
    policy = queue_policy(Names(), read_version("4.0.5"))
    assert policies == [{"vhost": "/", "name": policy.name, **policy.body()}]
