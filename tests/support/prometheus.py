"""A Prometheus of the test's own: Debian's, with the configuration of deploy/ and targets of the test."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dev.unpacking import program
from tests.support.stack import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"


class Prometheus:
    """One that runs."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def ask(self, expression: str) -> list[dict[str, Any]]:
        """Returns the series that an instant query finds, each with its labels and its value."""
        query = urllib.parse.urlencode({"query": expression})
        found = await asyncio.to_thread(self._get, f"/api/v1/query?{query}")
        result = found["data"]["result"]
        if found["data"]["resultType"] == "scalar":
            return [{"labels": {}, "value": float(result[1])}]
        return [{"labels": one["metric"], "value": float(one["value"][1])} for one in result]

    async def alerts(self) -> dict[str, str]:
        """Returns the state of every alert rule; fails where a rule cannot be evaluated."""
        found = await asyncio.to_thread(self._get, "/api/v1/rules")
        rules = [rule for group in found["data"]["groups"] for rule in group["rules"]]
        assert [rule for rule in rules if rule["health"] == "err"] == []
        return {rule["name"]: rule["state"] for rule in rules if rule["type"] == "alerting"}

    async def ready(self) -> bool:
        try:
            await asyncio.to_thread(self._get, "/api/v1/status/buildinfo")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://{self._address}{path}", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise
            raise AssertionError(error.read().decode()) from None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@asynccontextmanager
async def scraping(folder: Path, targets: Mapping[str, str]) -> AsyncIterator[Prometheus]:
    """Runs Prometheus while the block runs; it scrapes each job of the configuration every second.

    Args:
        folder: Where it keeps its data.
        targets: The address of each job.
    """
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"] = [
        {key: value for key, value in job.items() if not key.endswith("_sd_configs")}
        | {"static_configs": [{"targets": [targets[job["job_name"]]]}]}
        for job in config["scrape_configs"]
    ]
    config["rule_files"] = [str(DEPLOY / name) for name in config.get("rule_files", ())]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(program("prometheus", "usr/bin/prometheus")),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as said:
        process = await asyncio.create_subprocess_exec(*command, stdout=said, stderr=said)
        try:
            prometheus = Prometheus(address)
            await until(prometheus.ready)
            yield prometheus
        finally:
            process.kill()
            await process.wait()
