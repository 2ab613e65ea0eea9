"""What each local server is: its files, its command, and the question whether it is ready."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

DEV = Path(__file__).resolve().parent
PYTHON = DEV.parent / ".venv" / "bin" / "python"
POSTGRES = "usr/lib/postgresql/*/bin/initdb"
# Debian's rabbitmq-server on PATH changes to the user rabbitmq and the system's own node, so it is passed by.
RABBITMQ = "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-env"

# Below the range that Linux hands to outgoing connections (32768-60999), so that none of those takes a port.
FIRST_PORT, BLOCKS, BLOCK_SIZE = 20000, 1500, 8
START_SECONDS, STOP_SECONDS = 120, 15

RABBITMQ_CONF = """\
default_user = sendoff
default_pass = {secret}
vm_memory_high_watermark.relative = 0.3
disk_free_limit.absolute = 500MB
collect_statistics_interval = 30000
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = {metrics}
"""

INITDB = "--username=sendoff --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --no-sync"
# Durability stays on (fsync, synchronous_commit, full_page_writes): it is part of what the tests are about.
POSTGRES_SETTINGS = """
listen_addresses=127.0.0.1 unix_socket_directories= max_connections=200
max_wal_size=2GB checkpoint_timeout=15min jit=off timezone=UTC log_timezone=UTC
"""
SMALL_MEGABYTES = 256
"""Of Postgres's buffers, unless SENDOFF_DEV_SHARED_MEGABYTES says more: enough for the tests."""
HUGE_PAGES = Path("/proc/sys/vm/nr_overcommit_hugepages")

LIBC = ctypes.CDLL(None)
ENDS = {"postgres": signal.SIGQUIT}
"""How a server is ended that is not killed outright: Postgres ends its backends and frees its memory then."""
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Blocked in the process that keeps servers, and asked for in `pause`: none comes between two steps."""


def say(line: str) -> None:
    """Tells a person how far it is."""
    print(f"servers: {line}", file=sys.stderr, flush=True)


def pause(seconds: float) -> None:
    """Waits; ends this program when one of SIGNALS has come."""
    if signal.sigtimedwait(SIGNALS, seconds):
        sys.exit()


def tries(seconds: float, nap: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Lets a loop try again every 20 ms, for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        nap(0.02)


def find(pattern: str) -> Path | None:
    """Returns the folder of a program: of its newest release as Debian lays them out, or else on PATH."""
    releases = Path("/").glob(pattern)
    newest = max(releases, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], default=None)
    found = newest or shutil.which(Path(pattern).name)
    return Path(found).resolve().parent if found else None


def mark(name: str) -> socket.socket | None:
    """Takes a name that one process has at a time; none if it is taken.

    It is an abstract address, free again when all who inherited it have ended, however they did.
    """
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0sendoff-dev-{name}")
    except OSError:
        held.close()
        return None
    return held


def set_parent_death_signal(number: int) -> None:
    """Has the kernel send this process a signal when its parent ends; 0 for none."""
    LIBC.prctl(1, number)


def die_with_parent(number: int, blocked: Iterable[int] = ()) -> Callable[[], None]:
    """Returns what a child calls first, to be sent a signal when this process ends."""
    parent = os.getpid()

    def arrange() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        set_parent_death_signal(number)
        if os.getppid() != parent:
            os._exit(1)

    return arrange


class Servers:
    """The servers of one instance: in one folder, with ports of their own, and one password.

    Each is a child in the foreground, which the kernel ends with this process; what `pg_ctl start` or
    `rabbitmq-server -detached` start is nobody's child, and would stay.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = secrets.token_hex(16)
        self.running: dict[str, tuple[subprocess.Popen[bytes], list[object], dict[str, object]]] = {}
        self.owner = "postgres" if os.geteuid() == 0 else None  # Postgres refuses to run as root
        start = int(hashlib.sha256(folder.name.encode()).hexdigest(), 16)
        for step in range(BLOCKS):
            first = FIRST_PORT + BLOCK_SIZE * ((start + step) % BLOCKS)
            if (held := mark(str(first))) is None:
                continue
            try:
                for port in range(first, first + BLOCK_SIZE):
                    socket.create_server(("127.0.0.1", port)).close()
            except OSError:
                held.close()
                continue
            self.mark = held
            self.amqp, self.postgres, self.smtp, self.epmd, self.node, self.metrics = range(first, first + 6)
            return
        sys.exit(f"servers: No {BLOCK_SIZE} ports in a row are free from {FIRST_PORT} on 127.0.0.1.")

    def settings(self) -> dict[str, str]:
        """Returns the environment that leads a program to these servers."""
        login = f"sendoff:{self.secret}@127.0.0.1"
        return {
            "SENDOFF_AMQP_URL": f"amqp://{login}:{self.amqp}/",
            "SENDOFF_DATABASE_URL": f"postgresql://{login}:{self.postgres}/sendoff",
            "SENDOFF_SMTP_URL": f"smtp://127.0.0.1:{self.smtp}",
            "SENDOFF_DEV_BROKER_METRICS": f"127.0.0.1:{self.metrics}",
            "SENDOFF_DEV_SINK": str(self.folder / "received"),
            "SENDOFF_DEV_STATE": str(self.folder / "state.json"),
        }

    def state(self) -> dict[str, object]:
        """Returns what the programs of this folder tell each other: settings, ports, processes by name."""
        pids = {name: process.pid for name, (process, *_) in self.running.items()}
        ports = [self.amqp, self.postgres, self.smtp]
        return {"settings": self.settings(), "ports": ports, "pids": {"keeper": os.getpid(), **pids}}

    def start(self) -> None:
        """Starts all, and returns when they are ready; ends this program with a sentence if one is not."""
        self.start_rabbitmq()
        self.start_postgres()
        self.serve("sink", [PYTHON, DEV / "sink.py", "--port", self.smtp, "--dir", self.folder / "received"])
        connect = f"import socket; socket.create_connection(('127.0.0.1', {self.smtp}), 2)"
        self.wait("sink", [sys.executable, "-c", connect])
        self.wait_rabbitmq()

    def start_rabbitmq(self, more: str = "") -> None:
        """Starts epmd, a private name server of Erlang nodes, and RabbitMQ with more in its rabbitmq.conf."""
        folder, sbin = self.folder / "rabbitmq", find(RABBITMQ) or Path()
        self.erlang: dict[str, object] = {  # nothing of the system's own node is theirs
            "HOME": folder,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": self.epmd,
            "RABBITMQ_NODENAME": "sendoff@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.amqp,
            "RABBITMQ_DIST_PORT": self.node,
            "RABBITMQ_CONFIG_FILE": folder / "rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": folder / "none" / "*.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": folder / "none.config",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "enabled_plugins",
            "RABBITMQ_MNESIA_BASE": folder / "data",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_LOGS": "-",
            # With "input allowed" the start script becomes the broker instead of keeping it as a child, so
            # that signals reach the broker itself; -noinput takes the shell away again.
            "RABBITMQ_ALLOW_INPUT": 1,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput -start_epmd false"
            " -kernel inet_dist_use_interface {127,0,0,1}",
        }
        folder.mkdir()
        (folder / "rabbitmq.conf").write_text(
            RABBITMQ_CONF.format(secret=self.secret, metrics=self.metrics) + more
        )
        (folder / "enabled_plugins").write_text("[rabbitmq_prometheus].\n")
        (folder / ".erlang.cookie").touch(mode=0o600)
        (folder / ".erlang.cookie").write_text(secrets.token_hex(16))
        self.serve("epmd", ["epmd"], **self.erlang)
        self.wait("epmd", ["epmd", "-names"], **self.erlang)  # or RabbitMQ would start one that stays
        self.serve("rabbitmq", [sbin / "rabbitmq-server"], **self.erlang)

    def wait_rabbitmq(self) -> None:
        """Waits until RabbitMQ is ready."""
        rabbitmqctl = (find(RABBITMQ) or Path()) / "rabbitmqctl"
        self.wait("rabbitmq", [rabbitmqctl, "await_startup", "--timeout", START_SECONDS], **self.erlang)

    def start_postgres(self) -> None:
        """Starts Postgres, and returns when it is ready."""
        data, password = self.folder / "postgres", self.folder / "postgres.password"
        programs = find(POSTGRES) or Path()
        data.mkdir(mode=0o700)
        password.write_text(self.secret)
        if self.owner:
            shutil.chown(data, self.owner, self.owner)
            shutil.chown(password, self.owner)
        initdb = [programs / "initdb", "-D", data, f"--pwfile={password}", *INITDB.split()]
        if self.spawn("postgres", initdb).wait(START_SECONDS) != 0:
            self.give_up("postgres", "could not be set up")
        megabytes = int(os.environ.get("SENDOFF_DEV_SHARED_MEGABYTES", SMALL_MEGABYTES))
        if megabytes > SMALL_MEGABYTES:
            with suppress(OSError):  # in large pages, as its manual advises, where this user may allow them
                HUGE_PAGES.write_text(str(max(int(HUGE_PAGES.read_text()), megabytes * 11 // 20)))
        settings = [f"port={self.postgres}", f"shared_buffers={megabytes}MB", *POSTGRES_SETTINGS.split()]
        self.serve("postgres", [programs / "postgres", "-D", data, *(f"-c{each}" for each in settings)])
        address = ["--host=127.0.0.1", f"--port={self.postgres}", "--username=sendoff"]
        self.wait("postgres", [programs / "createdb", *address, "sendoff"], PGPASSWORD=self.secret)

    def spawn(self, log: str, command: list[object], **environment: object) -> subprocess.Popen[bytes]:
        """Starts a process whose output goes to a log, and which the kernel ends where this one ended first.

        Its environment is small, so that no RABBITMQ_, ERL_ or PG variable of the user leaks in.
        """
        own = {name: str(value) for name, value in environment.items()}
        user = self.owner if log == "postgres" else None
        with (self.folder / f"{log}.log").open("ab") as out:
            return subprocess.Popen(
                [*map(str, command)],
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **own},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=[] if user else None,
                preexec_fn=die_with_parent(ENDS.get(log, signal.SIGKILL)),  # noqa: PLW1509 - no threads here
            )

    def serve(self, name: str, command: list[object], **environment: object) -> None:
        """Starts a server."""
        say(f"starting {name}")
        self.running[name] = self.spawn(name, command, **environment), command, environment
        pause(0)

    def wait(self, name: str, question: list[object], **environment: object) -> None:
        """Runs a command until it succeeds: a server is ready then."""
        asked = None
        for _ in tries(START_SECONDS, pause):
            if asked is None or asked.returncode is not None:
                asked = self.spawn(f"{name}-ready", question, **environment)
            if asked.poll() == 0:
                return
            for each, (process, *_) in self.running.items():
                if process.poll() is not None:
                    self.give_up(each, "ended while it started")
        self.give_up(name, f"was not ready in {START_SECONDS} s")

    def give_up(self, name: str, why: str) -> None:
        """Ends this program with a sentence and the end of a server's log."""
        log = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
        sys.exit("\n    ".join([f"servers: {name} {why}. Its log ends with:", *log[-12:]]))

    def revive(self) -> bool:
        """Starts again what has ended; says whether anything had."""
        ended = [name for name, (process, *_) in self.running.items() if process.poll() is not None]
        for name in ended:
            _, command, environment = self.running[name]
            self.serve(name, command, **environment)
        return bool(ended)

    def end(self) -> None:
        """Ends all at once, since their data goes with them."""
        for name, (process, *_) in self.running.items():
            process.send_signal(ENDS.get(name, signal.SIGKILL))
        for process, *_ in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)
        self.mark.close()
