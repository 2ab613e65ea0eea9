"""Postfix and Exim as Debian builds them, private: unpacked beside the local servers' data, not installed.

Both look up users that only an installation creates, and change to them. So they run as root, with lists of
users of their own (libnss-wrapper).
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

UNPACKED = Path(__file__).resolve().parents[2] / ".dev" / "relays"
PACKAGES = ("postfix", "exim4-daemon-light", "libidn12", "libnss-wrapper")
SECONDS = 120
USER, PASSWORD, TOKEN = "ana", "p@ss/word ü", "ya29.token"

ACCOUNTS = """\
root:x:0:0::/root:/bin/sh
Debian-exim:x:1:1::/tmp:/bin/false
postfix:x:2:2::/tmp:/bin/false
nobody:x:65534:65534::/tmp:/bin/false
"""
GROUP = "root:x:0:\nDebian-exim:x:1:\npostfix:x:2:\npostdrop:x:3:\nnogroup:x:65534:\n"

EXIM = """\
exim_path = {root}/usr/sbin/exim4
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
log_selector = +tls_cipher +tls_certificate_verified
primary_hostname = mx.example.org
daemon_smtp_ports = {starttls} : {tls}
tls_on_connect_ports = {tls}
local_interfaces = 127.0.0.1
tls_certificate = {certificate}
tls_advertise_hosts = *
tls_try_verify_hosts = *
tls_verify_certificates = {certificate}
dsn_advertise_hosts = *
acl_smtp_rcpt = rcpt
acl_smtp_data = data
keep_environment =
host_lookup =
begin acl
rcpt:
  require message = log in first
          authenticated = *
  accept
data:
  discard
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
  server_advertise_condition = ${{if def:tls_in_cipher}}
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${{if and{{{{eq{{$auth1}}{{{user}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
  server_set_id = $auth1
  server_advertise_condition = ${{if def:tls_in_cipher}}
"""

ENVIRONMENT = "LD_LIBRARY_PATH LD_PRELOAD NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP MAIL_CONFIG LANG=C"
MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
daemon_directory = {root}/usr/lib/postfix/sbin
command_directory = {root}/usr/sbin
shlib_directory = {root}/usr/lib/postfix
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.example.org
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks =
alias_maps =
local_recipient_maps =
maillog_file = {folder}/log/mail.log
maillog_file_prefixes = {folder}
import_environment = {environment}
relayhost = [127.0.0.1]:{next}
smtp_tls_security_level = none
smtpd_tls_chain_files = {certificate}
smtpd_tls_CAfile = {certificate}
smtpd_tls_security_level = may
smtpd_tls_ask_ccert = yes
smtpd_tls_auth_only = yes
smtpd_tls_loglevel = 1
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:127.0.0.1:{sasl}
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
smtpd_relay_restrictions = permit_sasl_authenticated, reject
"""
MASTER_CF = """\
127.0.0.1:{starttls} inet n - n - - smtpd
127.0.0.1:{tls} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
smtp unix - - n - - smtp
scache unix - - n - 1 scache
error unix - - n - - error
retry unix - - n - - error
"""
QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "saved", "trace"),
    *("maildrop", "pid", "private", "public"),
)


@dataclass
class Relay:
    """A server that runs."""

    starttls: int
    """The port on which TLS begins with STARTTLS."""
    tls: int
    """The port on which it begins at once."""
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


def programs() -> Path:
    """Returns where Debian's packages are unpacked; skips the test if they cannot be."""
    if os.geteuid() != 0:
        pytest.skip("Postfix and Exim change to users of their own, which takes root")
    UNPACKED.mkdir(parents=True, exist_ok=True)
    root = UNPACKED / "root"
    with (UNPACKED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "done").exists():
            shutil.rmtree(root, ignore_errors=True)
            try:
                call = ["apt-get", "-q", "download", *PACKAGES]
                subprocess.run(call, cwd=UNPACKED, check=True, capture_output=True, timeout=SECONDS)
                for package in UNPACKED.glob("*.deb"):
                    call = ["dpkg", "-x", str(package), str(root)]
                    subprocess.run(call, check=True, capture_output=True, timeout=SECONDS)
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"Debian's Postfix and Exim could not be unpacked: {error}")
            (root / "done").touch()
    return root


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextmanager
def exim(certificate: Path) -> Iterator[Relay]:
    """Runs Exim, which takes and discards all mail of `USER`: PLAIN and LOGIN, under TLS only."""
    root = programs()
    with own_folder(certificate) as folder:
        relay = Relay(free_port(), free_port(), folder / "log" / "mainlog")
        (folder / "spool").mkdir()
        for owned in ("spool", "log"):
            os.chown(folder / owned, 1, 1)
        values = {"root": root, "folder": folder, "certificate": folder / "both.pem"}
        login = {"user": USER, "password": PASSWORD}
        config = folder / "exim.conf"
        config.write_text(EXIM.format(**values, **login, starttls=relay.starttls, tls=relay.tls))
        call = [root / "usr/sbin/exim4", "-C", config, "-bdf"]
        with program(call, root, folder, relay):
            yield relay


@contextmanager
def postfix(certificate: Path, *, sasl: int, sink: int) -> Iterator[Relay]:
    """Runs Postfix, which relays all mail of who logs in.

    Args:
        certificate: Its certificate and key, and the authority for those of clients.
        sasl: The port of `logins`.
        sink: Where it relays to.
    """
    root = programs()
    with own_folder(certificate) as folder:
        relay = Relay(free_port(), free_port(), folder / "log" / "mail.log")
        for name in ("conf", "data", *(f"queue/{queue}" for queue in QUEUES)):
            (folder / name).mkdir(parents=True)
        for owned in ("data", *(f"queue/{queue}" for queue in QUEUES if queue != "pid")):
            os.chown(folder / owned, 2, 3 if owned in ("queue/maildrop", "queue/public") else 2)
        values = {"root": root, "folder": folder, "certificate": folder / "both.pem"}
        ports = {"starttls": relay.starttls, "tls": relay.tls, "sasl": sasl, "next": sink}
        (folder / "conf" / "main.cf").write_text(MAIN_CF.format(**values, **ports, environment=ENVIRONMENT))
        (folder / "conf" / "master.cf").write_text(MASTER_CF.format(**ports))
        call = [root / "usr/lib/postfix/sbin/master", "-c", folder / "conf", "-s"]
        with program(call, root, folder, relay):
            yield relay


@contextmanager
def own_folder(certificate: Path | None = None) -> Iterator[Path]:
    """A folder with a short path, for sockets, that other users may enter."""
    folder = Path(tempfile.mkdtemp(prefix="relay-", dir="/tmp"))  # pytest's own is for root alone
    try:
        folder.chmod(0o755)
        (folder / "log").mkdir()
        (folder / "passwd").write_text(ACCOUNTS)
        (folder / "group").write_text(GROUP)
        if certificate:
            (folder / "both.pem").write_bytes(certificate.read_bytes())
            (folder / "both.pem").chmod(0o644)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def program(call: list[object], root: Path, folder: Path, relay: Relay) -> Iterator[None]:
    libraries = [path.parent for path in root.glob("usr/lib/*/libidn.so.12")]
    (wrapper,) = root.glob("usr/lib/*/libnss_wrapper.so")
    environment = {
        "PATH": os.defpath,
        "LD_LIBRARY_PATH": ":".join(map(str, [*libraries, root / "usr/lib/postfix"])),
        "LD_PRELOAD": str(wrapper),
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
        "NSS_WRAPPER_GROUP": str(folder / "group"),
    }
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [*map(str, call)], env=environment, cwd="/", stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            try:
                for port in (relay.starttls, relay.tls):
                    socket.create_connection(("127.0.0.1", port), timeout=2).close()
            except OSError:
                time.sleep(0.05)
            else:
                break
        else:
            raise AssertionError(f"it does not run: {(folder / 'out').read_text()}\n{relay.log()}")
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@asynccontextmanager
async def logins() -> AsyncIterator[int]:
    """Answers Postfix as Dovecot's authentication does, with PLAIN, LOGIN and XOAUTH2; gives its port."""
    plain = f"\0{USER}\0{PASSWORD}".encode()
    bearer = f"user={USER}\x01auth=Bearer {TOKEN}\x01\x01".encode()
    known = {"PLAIN": plain, "XOAUTH2": bearer}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mechanisms = "".join(f"MECH\t{name}\tplaintext\n" for name in ("PLAIN", "LOGIN", "XOAUTH2"))
        writer.write(f"VERSION\t1\t2\n{mechanisms}SPID\t1\nCUID\t1\nCOOKIE\t0\nDONE\n".encode())
        user = b""
        async for line in reader:
            verb, number, *rest = line.decode().rstrip("\n").split("\t")
            if verb not in ("AUTH", "CONT"):
                continue
            said = next((one.removeprefix("resp=") for one in rest if one.startswith("resp=")), rest[-1])
            octets = base64.b64decode(said)
            if verb == "AUTH" and rest[0] == "LOGIN":
                user = octets
                writer.write(f"CONT\t{number}\t{base64.b64encode(b'Password:').decode()}\n".encode())
                continue
            good = known[rest[0]] == octets if verb == "AUTH" else plain == b"\0" + user + b"\0" + octets
            writer.write((f"OK\t{number}\tuser={USER}\n" if good else f"FAIL\t{number}\n").encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
