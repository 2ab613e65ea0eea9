"""A Postfix that takes mail from this machine, limits its clients as told, and discards what it took."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.support import relays

if TYPE_CHECKING:
    from collections.abc import Iterator

_MASTER: Final = """\
127.0.0.1:{port} inet n - n - 50 smtpd
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
proxymap unix - - n - - proxymap
verify unix - - n - 1 verify
discard unix - - n - - discard
lmtp unix - - n - - lmtp
error unix - - n - - error
retry unix - - n - - error
"""


class Postfix(NamedTuple):
    """One that runs."""

    port: int
    relay: relays.Relay

    def logged(self, pattern: str) -> int:
        """Counts what its log says."""
        return len(re.findall(pattern, self.relay.log()))


@contextmanager
def running(**settings: str) -> Iterator[Postfix]:
    """Runs one with these settings in its `main.cf`."""
    root, port = relays.programs(), relays.free_port()
    with relays.own_folder() as folder:
        relay = relays.Relay(port, port, folder / "log" / "mail.log")
        for name in ("conf", "data", *(f"queue/{queue}" for queue in relays.QUEUES)):
            (folder / name).mkdir(parents=True)
        for owned in ("data", *(f"queue/{queue}" for queue in relays.QUEUES if queue != "pid")):
            os.chown(folder / owned, 2, 3 if owned in ("queue/maildrop", "queue/public") else 2)
        own = {
            "compatibility_level": "3.6",
            "queue_directory": f"{folder}/queue",
            "data_directory": f"{folder}/data",
            "daemon_directory": f"{root}/usr/lib/postfix/sbin",
            "command_directory": f"{root}/usr/sbin",
            "shlib_directory": f"{root}/usr/lib/postfix",
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            "import_environment": relays.ENVIRONMENT,
            "maillog_file": f"{folder}/log/mail.log",
            "maillog_file_prefixes": str(folder),
            "myhostname": "mx.example.org",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "inet_protocols": "ipv4",
            "alias_maps": "",
            "default_transport": "discard:",
            "relay_transport": "discard:",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            # Clients of the own network are spared the limits, unless this is empty.
            "smtpd_client_event_limit_exceptions": "",
        }
        lines = [f"{name} = {value}" for name, value in {**own, **settings}.items()]
        (folder / "conf" / "main.cf").write_text("\n".join(lines) + "\n")
        (folder / "conf" / "master.cf").write_text(_MASTER.format(port=port))
        call: list[object] = [root / "usr/lib/postfix/sbin/master", "-c", folder / "conf", "-s"]
        with relays.program(call, root, folder, relay):
            yield Postfix(port, relay)
