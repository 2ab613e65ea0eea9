"""Prepares a delivery: from its file and a recipients file to a frozen audience that can be confirmed.

1. Check operator and delivery, so that a wrong request is refused at once.
2. Stream the recipients file, row by row, into a temporary table. Nothing else changes before its end was
   read without a fault. Some of the recipients are kept, and the content is tried with them.
3. One short transaction moves the delivery, new or given, to *preparing*.
4. One transaction replaces audience, content and schedule from the temporary table and ends in *ready*.

A lock of the session covers all steps. So if a delivery is in *preparing* and can be locked, its process
died.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from contracts.states import State
from worker.channels.registry import CHANNELS, address_rule, content_table
from worker.db import commands, deliveries, partitions, preparation
from worker.db.failures import ERRORS, classify
from worker.domain.audience import targets
from worker.domain.content import ContentInvalid
from worker.domain.delivery_file import DeliveryFileInvalid, parse_delivery_file
from worker.domain.failures import Failure
from worker.domain.preparation import refuse_operator, refuse_state
from worker.domain.recipients_file import RecipientsFile, RecipientsFileInvalid
from worker.domain.sample import Sample
from worker.domain.states import Move
from worker.domain.timing import TimingInvalid, check_span, timing
from worker.domain.tracked_content import NotTrackable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from pydantic import BaseModel

    from worker.db.pool import Database, Transaction
    from worker.domain.audience import Target
    from worker.domain.delivery_file import ContentTable, DeliveryFile
    from worker.domain.preflight import Found
    from worker.domain.tracked_content import Link
    from worker.operations.preflight import SenderDomains
    from worker.operations.retarget import Source

_NO_TRACKER: Final = (
    "tracking: this installation has no tracker: set SENDOFF_TRACKER_URL and SENDOFF_TRACKER_KEYS, or leave"
    " [tracking] out."
)


class PreparationRefused(Exception):
    """The delivery cannot be prepared, and nothing has changed; the message says why."""


@dataclass(frozen=True, slots=True)
class PreparationRequest:
    """What to prepare, and the operator who asks."""

    file: Path
    """The delivery file."""
    recipients: Path
    """The recipients file."""
    operator: str
    """The operator who asks."""
    delivery_id: int | None
    """The delivery to prepare again; None for a new one."""
    channels: tuple[str, ...]
    """The channels of this installation."""
    partition_period: timedelta = timedelta(days=30)
    """The greatest age of the newest set of partitions for a new delivery to use it."""
    domains: SenderDomains | None = None
    """Asks the DNS about the sender; None to leave that out."""
    source: Source | None = None
    """The earlier delivery that the recipients come from; None if they come from somewhere else."""
    tracker: bool = False
    """Whether the installation has a tracker, for links to it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The result of a preparation."""

    delivery_id: int
    state: State
    """*ready*, or *preparation_failed*."""
    counts: preparation.Counts
    """The counts of the current snapshot: the new one or, if the preparation failed, the one before."""
    problems: tuple[str, ...] = ()
    """Sentences that say why it failed."""


async def prepare(db: Database, request: PreparationRequest) -> Prepared:
    """Prepares a delivery, or prepares it again.

    Raises:
        PreparationRefused: the operator may not prepare, the delivery's state forbids it, another process
            prepares it, or a file is missing or broken. Nothing has changed.
    """
    with _refusing(request.file), request.file.open("rb") as file:
        tables = {name: content_table(name) for name in request.channels}
        definition = parse_delivery_file(file.read(), tables)
        table, authored = tables[definition.channel], definition.content
        content = table.complete(authored, _reader(request.file.parent)) if authored else None
        definition = definition.model_copy(update={"content": content})
    with contextlib.ExitStack() as stack:
        with _refusing(request.recipients):
            text = stack.enter_context(request.recipients.open(encoding="utf-8-sig", newline=""))
            recipients = RecipientsFile(text.readline)
            when = timing(definition, recipients.columns)
        # A fault of the HTML is told once, and not again for the text that is made of it.
        tracked, links, problems = _with_links(definition, authored, table, recipients.columns, request)
        async with db.session() as session:
            async with session.connection.transaction():
                await _guard(session, request)
            if not problems:
                sample = Sample()
                rows = sample.pick(targets(recipients, address_rule(definition.channel), when.due))
                await preparation.stage(session, _refusing_rows(request.recipients, rows))
                if when.by_row:
                    with _refusing(request.recipients):
                        check_span(definition, *await preparation.read_span(session))
                problems = table.try_out(tracked.content, sample.recipients()) if content else []
            found: list[Found] = []
            if content and not problems:
                found = table.look(content, list(sample.recipients()))
                found += await request.domains.ask(content) if request.domains else []
            delivery_id = await _begin(session, request, definition)
            contents = preparation.Contents(tracked, links, found)
            return await _complete(session, request, delivery_id, contents, problems, by_row=when.by_row)


def _with_links(
    definition: DeliveryFile,
    authored: BaseModel | None,
    table: ContentTable,
    columns: Collection[str],
    request: PreparationRequest,
) -> tuple[DeliveryFile, tuple[Link, ...], list[str]]:
    """Returns the definition with tracked links in its content, the links, and what is wrong with either.

    Args:
        definition: The delivery file, with its content completed.
        authored: The content before that. Its faults are told, not those that come of them.
        table: The content's table.
        columns: The columns of the recipients file.
        request: What is prepared.
    """
    channel, tracking = definition.channel, definition.tracking
    asked = tracking.opens or tracking.clicks
    own = channel in CHANNELS  # a foreign sender does not know the links
    if asked and not own:
        return definition, (), [f"tracking: the sender of the channel “{channel}” is not Sendoff's."]
    if asked and not request.tracker:
        return definition, (), [_NO_TRACKER]
    problems = table.problems(authored, columns, tracker=own and request.tracker) if authored else []
    if problems or not asked or definition.content is None:
        return definition, (), problems
    try:
        tracked = table.track(definition.content, tracking)
    except NotTrackable as error:
        return definition, (), [f"{table.name}: {error}."]
    return definition.model_copy(update={"content": tracked.content}), tracked.links, []


async def _guard(tx: Transaction, request: PreparationRequest) -> State:
    operator = await commands.read_operator(tx, request.operator)
    refusal = refuse_operator(operator, request.operator)
    if refusal is not None:
        raise PreparationRefused(refusal)
    if request.delivery_id is None:
        return State.EDITING
    delivery = await deliveries.read_for_update(tx, request.delivery_id)
    if delivery is None:
        raise PreparationRefused(f"There is no delivery {request.delivery_id}.")
    refusal = refuse_state(request.delivery_id, delivery.state, delivery.purged_at)
    if refusal is not None:
        raise PreparationRefused(refusal)
    await _lock(tx, request.delivery_id)
    return delivery.state


async def _lock(tx: Transaction, delivery_id: int) -> None:
    if not await preparation.lock_preparation(tx, delivery_id):
        raise PreparationRefused(
            f"The delivery {delivery_id} is being prepared by another process; wait until that is done."
        )


async def _begin(session: Transaction, request: PreparationRequest, definition: DeliveryFile) -> int:
    async with session.connection.transaction():
        state = await _guard(session, request)
        delivery_id = request.delivery_id
        if delivery_id is None:
            await partitions.open_if_due(session, request.partition_period)
            delivery_id = await preparation.create_delivery(session, definition, request.operator)
            await _lock(session, delivery_id)
        elif state is State.PREPARING:
            reason = "The process that prepared it ended before it was done."
            await deliveries.move(session, delivery_id, Move.PREPARATION_FAILED, reason=reason)
        await deliveries.move(session, delivery_id, Move.PREPARE, operator=request.operator)
    return delivery_id


async def _complete(
    session: Transaction,
    request: PreparationRequest,
    delivery_id: int,
    contents: preparation.Contents,
    problems: list[str],
    *,
    by_row: bool,
) -> Prepared:
    if problems:
        counts = await _fail(session, request, delivery_id, " ".join(problems))
        return Prepared(delivery_id, State.PREPARATION_FAILED, counts, tuple(problems))
    try:
        async with session.connection.transaction():
            counts = await preparation.replace_audience(session, delivery_id, contents, by_row=by_row)
            await preparation.name_source(
                session,
                delivery_id,
                request.source.delivery_id if request.source else None,
                str(request.source.criterion) if request.source else None,
            )
            await deliveries.move(session, delivery_id, Move.PREPARED, operator=request.operator)
    except BaseException as error:
        # We were interrupted, or the database failed. If the database is away, the next preparation handles
        # it.
        try:
            await _fail(session, request, delivery_id, f"It broke off: {str(error) or 'it was interrupted'}.")
        except ERRORS as gone:
            if classify(gone) is Failure.BROKEN:
                raise
        raise
    return Prepared(delivery_id, State.READY, counts)


async def _fail(
    session: Transaction, request: PreparationRequest, delivery_id: int, reason: str
) -> preparation.Counts:
    async with session.connection.transaction():
        await deliveries.move(
            session, delivery_id, Move.PREPARATION_FAILED, operator=request.operator, reason=reason
        )
        return await preparation.read_counts(session, delivery_id)


def _reader(folder: Path) -> Callable[[str, int], bytes]:
    """Returns a function that reads the files that a delivery file names."""

    def read(name: str, most: int) -> bytes:
        path = folder / name
        if path.exists() and not path.is_file():  # a pipe or a device might never end
            raise OSError(errno.EINVAL, "it is not a file")
        with path.open("rb") as file:
            return file.read(most)

    return read


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turns the errors of a file into a refusal."""
    try:
        yield
    except OSError as error:
        raise PreparationRefused(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise PreparationRefused(
            f"{path} is not UTF-8 text: {_fault(path, error)}. Save it as UTF-8."
        ) from None
    except (ContentInvalid, DeliveryFileInvalid, RecipientsFileInvalid, TimingInvalid) as error:
        raise PreparationRefused(f"{path}: {error}.") from None


def _fault(path: Path, error: UnicodeDecodeError) -> str:
    """Returns where the first byte is that is not UTF-8: the decoder knows only its place in a block."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as found:
                return f"line {number} holds the byte 0x{line[found.start]:02x}"
    return error.reason


def _refusing_rows(path: Path, rows: Iterator[Target]) -> Iterator[Target]:
    with _refusing(path):
        yield from rows
