"""The service of returned mail on fakes: what is hard to reach with real servers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from contracts import routing
from tests.support.fakes import FakePublisher, SilentPublisher, counts, metrics
from tests.support.returned_mail import failure_notice, report
from worker.amqp.prompt import PromptPublisher
from worker.domain.keys import Key
from worker.domain.return_path import Reference, ReturnPath
from worker.returned import keeping
from worker.returned.keeping import Kept
from worker.returned.sources import Answer
from worker.services.returned import ReturnedParts, ReturnedService

if TYPE_CHECKING:
    from pathlib import Path

RETURNS = ReturnPath([Key(1, b"k" * 32)], "returns.example.org")
OURS = [str(RETURNS.sender(Reference(42, 17, 2)))]
FAILED = report(
    "Final-Recipient: rfc822; a@x.example\nAction: delayed\nStatus: 4.4.1\n\n"
    "Final-Recipient: rfc822; b@x.example\nAction: failed\nStatus: 5.2.2\n"
    "Diagnostic-Code: smtp; 552 5.2.2 mailbox full\n"
)
ODD = failure_notice("Something went wrong.\n")


class Setup:
    """A service on fakes."""

    def __init__(self, folder: Path, publisher: FakePublisher | None = None, **parts: Any) -> None:
        self.publisher = publisher or FakePublisher()
        self.metrics = metrics()
        self.service = ReturnedService(
            ReturnedParts(
                sources=[],
                references=RETURNS,
                kept=parts.pop("kept", Kept(folder)),
                publisher=PromptPublisher(self.publisher, seconds=0.01),
                names=routing.Names("blue"),
                metrics=self.metrics,
                **parts,
            )
        )

    def counted(self) -> dict[tuple[str, ...], float]:
        return counts(self.metrics.returned_mails)


async def test_a_bounce_is_that_of_the_attempt_which_the_envelope_names(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    assert await setup.service.take(FAILED, OURS) is Answer.TAKEN
    (published,) = setup.publisher.published
    assert (published.exchange, published.routing_key) == ("blue.sendoff.results", "bounce")
    (body,) = json.loads(published.message.body)
    assert (body["delivery_id"], body["recipient"], body["attempt"]) == (42, 17, 2)
    assert (body["kind"], body["reason"], body["status"]) == ("soft", "mailbox_full", "5.2.2")
    assert body["reply"] == "552 5.2.2 mailbox full"


async def test_without_a_confirm_the_mail_is_to_come_again(tmp_path: Path) -> None:
    setup = Setup(tmp_path, SilentPublisher())
    assert await setup.service.take(FAILED, OURS) is Answer.LATER
    assert setup.counted() == {("later",): 1}


@pytest.mark.parametrize("state", ["connected", "blocked"])
async def test_a_broker_that_takes_nothing_is_not_waited_for(tmp_path: Path, state: str) -> None:
    publisher = FakePublisher()
    setattr(publisher, state, state == "blocked")
    setup = Setup(tmp_path, publisher)
    assert await setup.service.take(FAILED, OURS) is Answer.LATER
    assert publisher.published == []


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_reader_that_fails_keeps_the_mail(tmp_path: Path) -> None:
    def fail(_: bytes) -> Any:
        raise RecursionError("too deep")

    setup = Setup(tmp_path, read=fail)
    with capture_logs() as logs:
        assert await setup.service.take(FAILED, OURS) is Answer.TAKEN
    (file,) = files(tmp_path)
    assert file.read_bytes().endswith(FAILED)
    assert file.stat().st_mode & 0o077 == 0
    assert logs[0]["event"] == "a returned mail made its reader fail"
    assert setup.counted() == {("kept",): 1}


class FullDisk:
    """A folder that cannot be written."""

    def keep(self, mail: bytes, because: str) -> Path | None:
        raise OSError(28, f"No space left on device for {len(mail)} octets: {because}")


async def test_what_cannot_be_kept_is_lost_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setup in (Setup(tmp_path, kept=FullDisk()), Setup(tmp_path)):
        monkeypatch.setattr(keeping, "MOST_FILES", 0)
        with capture_logs() as logs:
            assert await setup.service.take(ODD, OURS) is Answer.TAKEN
        assert [entry["event"] for entry in logs] == ["a returned mail could not be kept"]
        assert setup.counted() == {("lost",): 1}
    assert files(tmp_path) == []


def test_a_kept_mail_says_why_in_one_line(tmp_path: Path) -> None:
    file = Kept(tmp_path / "new").keep(b"x" * 1_000_000, "two\r\nlines")
    assert file is not None
    data = file.read_bytes()
    assert data.startswith(b"X-Sendoff-Kept: two lines\r\nxxx")
    assert len(data) < 300_000
