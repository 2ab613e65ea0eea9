"""deploy/compose.yaml without a container engine: its commands, users and secrets, on this test's servers.

What only an engine shows is not shown here: images, networks, read-only disks, capabilities.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.support.processes import received, sink
from tests.support.stack import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SENDOFF = ROOT / ".venv/bin/sendoff"
SECONDS = 60
RECIPIENTS = 50
DELIVERY = """\
label = "Composed"
channel = "email"
[email]
from = "news@example.org"
subject = "Hello"
text = "Hi"
"""


class Composed:
    """The file with the secrets of its script, and with servers at other addresses."""

    def __init__(self, deploy: Path, servers: Any, programs: Path, relay: tuple[str, Path]) -> None:
        self._deploy = deploy
        self._servers = servers
        self._programs = programs
        self._ports: dict[str, int] = {}
        self.services: dict[str, Any] = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]
        secrets = dict(line.split("=", 1) for line in (deploy / ".env").read_text().splitlines())
        # The superuser is that of the servers, whose password the script cannot know.
        self.secrets = secrets | {"DATABASE_SUPERUSER": servers.secret, "SENDOFF_SMTP_URL": relay[0]}
        self.secrets["SENDOFF_TRACKER_URL"] = "https://track.example.org"
        self.secrets["SENDOFF_BOUNCE_DOMAIN"] = "returns.example.org"
        self.secrets["SENDOFF_RELAY_PROVIDER"] = "generic"
        self.secrets["SENDOFF_AUTH_ISSUER"] = self.secrets["SENDOFF_AUTH_AUDIENCE"] = "issuer"
        (deploy / "webhooks.toml").write_text(f"[generic]\nsecrets = ['{'s' * 32}']\n")
        (deploy / "jwks.json").write_text(json.dumps(jwks()))
        self.index = relay[1]
        dockerfile = (ROOT / "Dockerfile").read_text()
        self._image = dict(re.findall(r"(SENDOFF_\w+)=(\S+)", dockerfile))
        # Not in folders of this machine's.
        for service, setting in (
            ("tracker", "SENDOFF_TRACKER_SPOOL"),
            ("returned", "SENDOFF_RETURNED_FOLDER"),
        ):
            assert self.services[service]["volumes"][0].endswith(f":{self._image[setting]}")
            self._image[setting] = str(deploy / service)
        self.probe: list[str] = json.loads(re.findall(r'CMD (\["python", .*\])', dockerfile)[0])

    def environment(self, name: str, **changes: str) -> dict[str, str]:
        """What a container gets, and no variable of who runs this test."""
        said = {key: self._filled(str(value)) for key, value in self.services[name]["environment"].items()}
        image = self._image if self.services[name].get("image") == "sendoff" else {}
        return {"PATH": f"{self._programs}:{os.environ['PATH']}", **image, **said, **changes}

    def order(self) -> list[str]:
        """The services, each after those that it waits for."""
        waits = {name: service.get("depends_on", {}) for name, service in self.services.items()}
        return list(TopologicalSorter(waits).static_order())

    def initialise(self) -> None:
        """Does with the mounted files what the image of Postgres does, in the order of their names."""
        at = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self._servers.postgres),
            "PGPASSWORD": self._servers.secret,
        }
        env = self.environment("postgres", POSTGRES_USER="sendoff", **at)
        psql = [
            "psql",
            "-v",
            "ON_ERROR_STOP=1",
            "--no-psqlrc",
            "--username",
            "sendoff",
            "--dbname",
            "sendoff",
        ]
        mounted = [volume.split(":") for volume in self.services["postgres"]["volumes"]]
        files = sorted(
            (there, here) for here, there, *_ in mounted if "/docker-entrypoint-initdb.d/" in there
        )
        assert [Path(there).suffix for there, _ in files] == [".sql", ".sh"]
        for there, here in files:
            file = str(self._deploy / here)
            subprocess.run(
                ["sh", file] if there.endswith(".sh") else [*psql, "-f", file],
                env=env,
                check=True,
                timeout=SECONDS,
            )

    def once(self, name: str, *command: str, **changes: str) -> str:
        """Runs its own command to the end, or another as `docker compose run` does; returns the output."""
        given = list(command) or self.services[name]["command"]
        if name == "roles":
            file = f"--file={self._deploy}/postgres/roles.sql"
            given = [file if argument.startswith("--file=") else argument for argument in given]
            changes |= {"PGHOST": "127.0.0.1", "PGPORT": str(self._servers.postgres), "PGUSER": "sendoff"}
        else:
            given = [str(SENDOFF), *given]
        env = self.environment(name, **changes)
        done = subprocess.run(given, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, name: str, port: int, log: Path) -> subprocess.Popen[bytes]:
        listens = name in {"tracker", "returned", "webhooks", "console"}
        own = {f"SENDOFF_{name.upper()}_PORT": str(self.port_of(name))} if listens else {}
        env = self.environment(name, SENDOFF_HTTP_PORT=str(port), **own)
        with log.open("wb") as out:
            command = [str(SENDOFF), *self.services[name]["command"]]
            return subprocess.Popen(command, env=env, cwd="/", stdout=out, stderr=out)

    def port_of(self, name: str) -> int:
        """The port that a service listens on here, in place of that of the file."""
        if name not in self._ports:
            self._ports[name] = free_port()
        return self._ports[name]

    def _filled(self, value: str) -> str:
        said = re.sub(r"\$\{(\w+):[?-]\}", lambda match: self.secrets[match[1]], value)
        said = said.replace("/etc/sendoff/", f"{self._deploy}/")
        said = said.replace("@rabbitmq:5672/", f"@127.0.0.1:{self._servers.amqp}/")
        return said.replace("@postgres:5432/", f"@127.0.0.1:{self._servers.postgres}/")


@pytest.fixture
def composed() -> Iterator[Composed]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "dev")
        backends = importlib.import_module("backends")
    programs = backends.find(backends.POSTGRES)
    if backends.find(backends.RABBITMQ) is None or programs is None:
        pytest.skip("the programs of RabbitMQ and Postgres are not on this machine")
    with tempfile.TemporaryDirectory(prefix="sendoff-compose-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o711)  # Postgres runs as a user of its own
        fresh = shutil.ignore_patterns(".env", "definitions.json", "__pycache__")
        deploy = shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=fresh)
        shutil.copy(ROOT / "deploy/rabbitmq/definitions.json", deploy / "rabbitmq")
        script = ["sh", str(deploy / "make_secrets.sh")]
        subprocess.run(script, check=True, capture_output=True, timeout=SECONDS)
        conf = (deploy / "rabbitmq/rabbitmq.conf").read_text()
        assert "/etc/rabbitmq/definitions.json" in conf
        servers = backends.Servers(folder)
        stack.callback(servers.end)
        servers.start_rabbitmq(conf.replace("/etc/rabbitmq/definitions.json", f"{deploy}/definitions.json"))
        servers.start_postgres()
        servers.wait_rabbitmq()
        relay = stack.enter_context(sink(folder / "received"))
        yield Composed(deploy, servers, programs, relay)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def test_an_installation_of_the_compose_file_sends_a_delivery(
    composed: Composed, tmp_path: Path
) -> None:
    composed.initialise()
    running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    try:
        for name in composed.order():
            if name in {"rabbitmq", "postgres"}:
                continue
            if composed.services[name].get("restart") == "no":
                composed.once(name)
                continue
            port = free_port()
            running[name] = composed.start(name, port, tmp_path / f"{name}.log"), port
        for name, (process, port) in running.items():
            await until(lambda p=port: healthy(composed, p), SECONDS)
            assert process.poll() is None, (tmp_path / f"{name}.log").read_text()

        (tmp_path / "delivery.toml").write_text(DELIVERY)
        addresses = [f"user{n}@example.org" for n in range(RECIPIENTS)]
        (tmp_path / "recipients.csv").write_text("\n".join(["address", *addresses]))
        composed.once("confirm", "operator", "add", "ana", "--role", "start_deliveries")
        composed.once("confirm", "operator", "grant", "ana", "prepare_deliveries")
        assert await answers(composed, "returned") == "220"
        assert await answers(composed, "webhooks") == "HTTP/1.1 401 Unauthorized"
        assert await answers(composed, "console") == "HTTP/1.1 401 Unauthorized"
        prepare = ("prepare", f"{tmp_path}/delivery.toml", "--recipients", f"{tmp_path}/recipients.csv")
        made = json.loads(composed.once("confirm", *prepare, "--operator", "ana", "--json"))
        number = str(made["delivery_id"])
        url = composed.environment("confirm")["SENDOFF_AMQP_URL"]
        upstream = re.sub(r"//.*@", f"//upstream:{composed.secrets['BROKER_UPSTREAM']}@", url)
        composed.once("confirm", "confirm", number, "--operator", "ana", "--yes", SENDOFF_AMQP_URL=upstream)

        def finished() -> bool:
            said = composed.once("confirm", "stats", number, "--json", SENDOFF_AMQP_URL=upstream)
            return bool(json.loads(said)["sent"] == RECIPIENTS)

        await until(lambda: asyncio.to_thread(finished), SECONDS)
        assert received(composed.index) == dict.fromkeys(addresses, 1)
        worker = composed.environment("confirm")["SENDOFF_DATABASE_URL"]
        reader = f"//sendoff_reader:{composed.secrets['DATABASE_READER']}@"
        connection = await asyncpg.connect(re.sub(r"//.*@", reader, worker), timeout=SECONDS)
        assert await connection.fetchval("SELECT state FROM sendoff.deployment") == "finished"
        await connection.close()
    finally:
        for process, _ in running.values():
            process.terminate()
        ended = {name: process.wait(SECONDS) for name, (process, _) in running.items()}
    assert ended == dict.fromkeys(running, 0)


def jwks() -> dict[str, Any]:
    """The keys of an issuer, as it publishes them."""
    public = rsa.generate_private_key(65537, 2048).public_key()
    return {"keys": [{**json.loads(RSAAlgorithm.to_jwk(public)), "kid": "k1", "use": "sig", "alg": "RS256"}]}


async def answers(composed: Composed, name: str) -> str:
    """The beginning of what a service answers a stranger."""
    reader, writer = await asyncio.open_connection("127.0.0.1", composed.port_of(name))
    request = b"POST /generic HTTP/1.1" if name == "webhooks" else b"GET / HTTP/1.1"
    writer.write(request + b"\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        line = (await reader.readline()).decode()
    writer.close()
    return line[:3] if name == "returned" else line.strip()


async def healthy(composed: Composed, port: int) -> bool:
    """Runs the health check of the image."""
    command = [sys.executable, *composed.probe[1:]]
    env = {"SENDOFF_HTTP_PORT": str(port)}
    done = await asyncio.to_thread(
        subprocess.run, command, env=env, capture_output=True, timeout=SECONDS, check=False
    )
    return done.returncode == 0
