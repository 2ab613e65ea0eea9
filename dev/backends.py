"""What each local server is: its files, its command, how it is stopped, and how it shows that it is ready."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import probes
from instance import CHECKOUT, Instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from programs import Programs

PYTHON = CHECKOUT / ".venv" / "bin" / "python"
COMPOSE_FILE = CHECKOUT / "dev" / "compose.yaml"

RABBITMQ_CONF = """\
listeners.tcp.default = 127.0.0.1:{amqp_port}
default_user = sendoff
default_pass = {secret}
loopback_users.sendoff = true
vm_memory_high_watermark.relative = 0.3
disk_free_limit.absolute = 500MB
collect_statistics_interval = 30000
log.console.level = info
"""

SMALL_MEGABYTES = 256
"""Of Postgres's buffers, unless SENDOFF_DEV_SHARED_MEGABYTES says more: enough for the tests."""

HUGE_PAGES = Path("/proc/sys/vm/nr_overcommit_hugepages")

# Durability stays on (fsync, synchronous_commit, full_page_writes): it is part of what the tests are about.
POSTGRESQL_CONF = """
listen_addresses = '127.0.0.1'
port = {postgres_port}
unix_socket_directories = '{data}'
max_connections = 200
shared_buffers = {shared_buffers}
max_wal_size = 2GB
checkpoint_timeout = 15min
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
"""


def _nothing() -> None:
    """Prepares a server that needs no preparation."""


@dataclass(frozen=True)
class Server:
    """One process to be kept running.

    Attributes:
        name: its name in messages, in `state.json` and of its log file.
        command: the program and its arguments; it stays in the foreground.
        environment: all of its environment.
        ready: says whether it does its work now.
        prepare: brings its files about; called before each start, so it does nothing where they are there.
        user: the system user to run as; none means whoever calls.
        stop: the signal for an orderly end.
        orphan: the signal that the kernel sends where the supervisor died first.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    ready: Callable[[], bool]
    prepare: Callable[[], None] = field(default=_nothing)
    user: str | None = None
    stop: signal.Signals = signal.SIGTERM
    orphan: signal.Signals = signal.SIGKILL


def native(instance: Instance, programs: Programs) -> list[Server]:
    """Returns the servers in the order of their start, from the programs of this machine."""
    return [*_rabbitmq(instance, programs.rabbitmq), _postgres(instance, programs.postgres), _sink(instance)]


def compose(instance: Instance) -> list[Server]:
    """Returns the servers in the order of their start, with RabbitMQ and Postgres in containers."""
    environment = _environment(
        HOME=str(Path.home()),
        SENDOFF_DEV_SECRET=instance.secret,
        SENDOFF_DEV_AMQP_PORT=str(instance.amqp_port),
        SENDOFF_DEV_POSTGRES_PORT=str(instance.postgres_port),
    )
    docker = ["docker", "compose", "--file", str(COMPOSE_FILE), "--project-name", instance.folder.name]

    def query() -> bool:
        psql = ["psql", "--username", "sendoff", "--dbname", "sendoff", "--command", "select 1"]
        call = [*docker, "exec", "--no-TTY", "postgres", *psql]
        return (
            subprocess.run(call, env=environment, capture_output=True, timeout=30, check=False).returncode
            == 0
        )

    containers = Server(
        name="containers",
        command=[*docker, "up", "--abort-on-container-exit", "--renew-anon-volumes"],
        environment=environment,
        ready=lambda: probes.amqp(instance.amqp_port, "sendoff", instance.secret) and query(),
        stop=signal.SIGINT,
        orphan=signal.SIGINT,
    )
    return [containers, _sink(instance)]


def _environment(**own: str) -> dict[str, str]:
    """A small environment of our own, so that no RABBITMQ_, ERL_ or PG variable of the user leaks in."""
    kept = {name: os.environ[name] for name in ("PATH", "SENDOFF_DEV_RUN") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", **own}


def _rabbitmq(instance: Instance, sbin: Path) -> list[Server]:
    folder = instance.folder / "rabbitmq"
    epmd_settings = {"ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(instance.epmd_port)}
    environment = _environment(
        **epmd_settings,
        HOME=str(folder),
        RABBITMQ_NODENAME=f"sendoff{instance.port}@localhost",
        RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
        RABBITMQ_NODE_PORT=str(instance.amqp_port),
        RABBITMQ_DIST_PORT=str(instance.node_port),
        RABBITMQ_CONFIG_FILE=str(folder / "rabbitmq.conf"),
        RABBITMQ_CONFIG_FILES=str(folder / "none" / "*.conf"),
        RABBITMQ_ADVANCED_CONFIG_FILE=str(folder / "none.config"),
        RABBITMQ_CONF_ENV_FILE="/dev/null",
        RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "enabled_plugins"),
        RABBITMQ_MNESIA_BASE=str(folder / "data"),
        RABBITMQ_LOG_BASE=str(folder),
        RABBITMQ_LOGS="-",
        # With "input allowed" the start script becomes the broker instead of keeping it as a child, so that
        # signals and the end of the supervisor reach the broker itself; -noinput takes the shell away again.
        RABBITMQ_ALLOW_INPUT="1",
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=(
            "-noinput -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
        ),
    )

    def prepare() -> None:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        conf = folder / "rabbitmq.conf"
        conf.touch(mode=0o600)
        conf.write_text(RABBITMQ_CONF.format(amqp_port=instance.amqp_port, secret=instance.secret))
        (folder / "enabled_plugins").write_text("[].\n")
        deadline = time.monotonic() + 5
        while not probes.tcp(instance.epmd_port) and time.monotonic() < deadline:
            time.sleep(0.02)

    epmd = Server(
        name="epmd",
        command=[shutil.which("epmd") or "epmd", "-port", str(instance.epmd_port), "-address", "127.0.0.1"],
        environment=_environment(**epmd_settings),
        ready=lambda: probes.tcp(instance.epmd_port),
    )
    broker = Server(
        name="rabbitmq",
        command=[str(sbin / "rabbitmq-server")],
        environment=environment,
        prepare=prepare,
        ready=lambda: probes.amqp(instance.amqp_port, "sendoff", instance.secret),
    )
    return [epmd, broker]


def _allow_huge_pages(megabytes: int) -> None:
    """Lets Postgres have its memory in large pages, as its manual advises, where this user may allow that.

    The kernel hands them out when asked, and has them back when Postgres ends; the leave to ask stays.
    """
    wanted = megabytes * 11 // 20  # of 2 MB, and a tenth more than the buffers
    with contextlib.suppress(OSError):
        if int(HUGE_PAGES.read_text()) < wanted:
            HUGE_PAGES.write_text(str(wanted))


def _postgres(instance: Instance, programs: Path) -> Server:
    data = instance.folder / "postgres"
    user = "postgres" if os.geteuid() == 0 else None
    environment = _environment(HOME="/")
    megabytes = int(os.environ.get("SENDOFF_DEV_SHARED_MEGABYTES", SMALL_MEGABYTES))

    def prepare() -> None:
        if megabytes > SMALL_MEGABYTES:
            _allow_huge_pages(megabytes)
        if (data / "PG_VERSION").exists():
            return
        data.mkdir(mode=0o700, exist_ok=True)
        password = instance.folder / "postgres.password"
        password.touch(mode=0o600)
        password.write_text(instance.secret)
        if user:
            shutil.chown(data, user, user)
            shutil.chown(password, user, user)
        options = [
            "--username=sendoff",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--auth=scram-sha-256",
            "--no-sync",
        ]
        subprocess.run(
            [str(programs / "initdb"), f"--pgdata={data}", *options, f"--pwfile={password}"],
            env=environment,
            cwd="/",
            user=user,
            group=user,
            extra_groups=[] if user else None,
            stdout=subprocess.DEVNULL,
            timeout=60,
            check=True,
        )
        password.unlink()
        with (data / "postgresql.conf").open("a") as conf:
            settings = {
                "postgres_port": instance.postgres_port,
                "data": data,
                "shared_buffers": f"{megabytes}MB",
            }
            conf.write(POSTGRESQL_CONF.format(**settings))

    def psql(statement: str) -> str | None:
        options = [
            "-X",
            "-At",
            "-h",
            "127.0.0.1",
            "-p",
            str(instance.postgres_port),
            "-U",
            "sendoff",
            "-d",
            "postgres",
        ]
        login = {**environment, "PGPASSWORD": instance.secret, "PGCONNECT_TIMEOUT": "2"}
        call = [str(programs / "psql"), *options, "-c", statement]
        done = subprocess.run(
            call, env=login, cwd="/", capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout if done.returncode == 0 else None

    def ready() -> bool:
        if not probes.tcp(instance.postgres_port):
            return False
        found = psql("select 1 from pg_database where datname = 'sendoff'")
        return bool(found) or (found is not None and psql("create database sendoff") is not None)

    return Server(
        name="postgres",
        command=[str(programs / "postgres"), "-D", str(data)],
        environment=environment,
        prepare=prepare,
        ready=ready,
        user=user,
        stop=signal.SIGINT,  # the fast shutdown: clients are disconnected
        orphan=signal.SIGQUIT,  # the immediate one, which still ends every backend
    )


def _sink(instance: Instance) -> Server:
    program = str(CHECKOUT / "dev" / "sink.py")
    return Server(
        name="sink",
        command=[str(PYTHON), program, "--port", str(instance.smtp_port), "--dir", str(instance.sink_folder)],
        environment=_environment(HOME=str(instance.folder)),
        ready=lambda: probes.smtp(instance.smtp_port),
    )
