"""The tables: what each error of each library means, and that whatever is not listed is broken."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import aiormq.exceptions as aiormq
import aiosmtplib
import asyncpg
import pytest
from aio_pika.exceptions import MessageProcessError
from asyncpg import exceptions
from asyncpg.exceptions._base import DataError as Unencodable
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.exceptions import UnmarshalingException

from worker.amqp.bulk import failures as bulk
from worker.amqp.bulk.errors import AmqpChannelClosed, ConnectionClosed, ConnectionLost, ProtocolError
from worker.amqp.errors import BrokerUnreachable
from worker.amqp.pika import failures as pika
from worker.channels.email import failures as email
from worker.channels.email.session import SessionLost
from worker.db import failures as db
from worker.domain.failures import Failure

AWAY, BUSY, BROKEN = Failure.AWAY, Failure.BUSY, Failure.BROKEN

NETWORK = [
    (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), AWAY),
    (ConnectionResetError(errno.ECONNRESET, "reset"), AWAY),
    (BrokenPipeError(errno.EPIPE, "broken"), AWAY),
    (OSError(errno.EHOSTUNREACH, "unreachable"), AWAY),
    (TimeoutError(errno.ETIMEDOUT, "the network gave up"), AWAY),
    (FileNotFoundError(errno.ENOENT, "no such socket"), AWAY),
    (socket.gaierror(socket.EAI_NONAME, "no such host"), AWAY),
    (ssl.SSLError("the peer hung up"), AWAY),
    (ssl.SSLCertVerificationError("self-signed"), BROKEN),
    (KeyError("ours"), BROKEN),
    (ValueError("ours"), BROKEN),
]


def postgres(state: str) -> BaseException:
    """The error that asyncpg makes of what the server says."""
    made: BaseException = asyncpg.PostgresError.new({"C": state, "M": "a sentence", "S": "ERROR"})
    return made


@pytest.mark.parametrize(
    ("state", "failure"),
    [
        ("08000", AWAY),
        ("08003", AWAY),
        ("08006", AWAY),
        ("08P01", BROKEN),
        ("22003", BROKEN),
        ("22P02", BROKEN),
        ("23505", BROKEN),
        ("23514", BROKEN),
        ("25006", AWAY),
        ("25P02", BROKEN),
        ("25P03", BUSY),
        ("25P04", BUSY),
        ("28000", BROKEN),
        ("28P01", BROKEN),
        ("3D000", BROKEN),
        ("40001", BUSY),
        ("40P01", BUSY),
        ("42501", BROKEN),
        ("42601", BROKEN),
        ("42P01", BROKEN),
        ("53000", BUSY),
        ("53100", AWAY),
        ("53200", BUSY),
        ("53300", BUSY),
        ("53400", BUSY),
        ("54000", BROKEN),
        ("55006", BROKEN),
        ("55P03", BUSY),
        ("57000", BROKEN),
        ("57014", BUSY),
        ("57P01", AWAY),
        ("57P02", AWAY),
        ("57P03", AWAY),
        ("57P04", BROKEN),
        ("57P05", AWAY),
        ("58000", BROKEN),
        ("58030", AWAY),
        ("P0001", BROKEN),
        ("XX000", BROKEN),
        ("XX001", BROKEN),
    ],
)
def test_what_postgres_says(state: str, failure: Failure) -> None:
    assert db.classify(postgres(state)) is failure


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        *NETWORK,
        (TimeoutError(), BUSY),  # asyncpg's own: the command timeout
        (db.NoConnection("none within 10 s"), AWAY),
        (asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"), AWAY),
        (asyncpg.InterfaceError("connection is closed"), AWAY),
        (asyncpg.InterfaceError("cannot perform operation: connection is closed"), AWAY),
        (
            asyncpg.InterfaceError(
                "cannot call Connection.fetch(): connection has been released back to the pool"
            ),
            AWAY,
        ),
        (
            asyncpg.InterfaceError("cannot call Transaction.rollback(): the underlying connection is closed"),
            AWAY,
        ),
        (asyncpg.InternalClientError("connection was closed during pool initialization"), AWAY),
        (
            asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
            AWAY,
        ),
        (asyncpg.TargetServerAttributeNotMatched("none of the hosts is a primary"), AWAY),
        (asyncpg.InterfaceError("the server expects 2 arguments for this query, 3 were passed"), BROKEN),
        (asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), BROKEN),
        (asyncpg.InterfaceError("pool is closed"), BROKEN),
        (asyncpg.InternalClientError("got result for unknown protocol state 3"), BROKEN),
        (Unencodable("invalid input for query argument $1"), BROKEN),
        (exceptions.InvalidCachedStatementError("the plan is invalid"), BUSY),
        (exceptions.OutdatedSchemaCacheError("the schema has changed"), BUSY),
    ],
    ids=repr,
)
def test_what_asyncpg_says(error: BaseException, failure: Failure) -> None:
    assert db.classify(error) is failure


@given(st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=5, max_size=5))
def test_only_the_classes_of_values_are_about_the_data_and_they_are_broken(state: str) -> None:
    error = postgres(state)
    about = db.is_about_the_data(error)
    assert about is (state[:2] in {"22", "23"})
    if about:
        assert db.classify(error) is BROKEN


def test_a_value_that_asyncpg_cannot_encode_is_about_the_data_and_a_wrong_call_is_not() -> None:
    assert db.is_about_the_data(Unencodable("invalid input for query argument $1"))
    assert not db.is_about_the_data(asyncpg.InterfaceError("the server expects 2 arguments"))
    assert not db.is_about_the_data(ValueError("ours"))


def delivery(kind: type[aiormq.DeliveryError], frame: Any) -> BaseException:
    error = kind.__new__(kind)
    error.frame = frame
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        *NETWORK,
        (TimeoutError(), AWAY),
        (aiormq.AMQPConnectionError("hung up"), AWAY),
        (aiormq.ConnectionClosed(320, "CONNECTION_FORCED"), AWAY),
        (aiormq.ConnectionInternalError("541"), AWAY),
        (aiormq.ConnectionNotAllowed("530 the virtual host is down"), AWAY),
        (aiormq.ConnectionChannelError("504"), AWAY),
        (aiormq.ConnectionUnexpectedFrame("505"), AWAY),
        (aiormq.ConnectionCommandInvalid("503"), AWAY),
        (aiormq.ConnectionResourceError("506"), BUSY),
        (aiormq.ConnectionFrameError("501"), BROKEN),
        (aiormq.ConnectionSyntaxError("502"), BROKEN),
        (aiormq.ConnectionNotImplemented("540"), BROKEN),
        (aiormq.AuthenticationError("PLAIN"), BROKEN),
        (aiormq.ProbableAuthenticationError("refused"), BROKEN),
        (aiormq.IncompatibleProtocolError("0-8"), BROKEN),
        (aiormq.ChannelClosed(None, None), AWAY),
        (aiormq.ChannelInvalidStateError("closed"), AWAY),
        (aiormq.ChannelLockedResource("405"), BUSY),
        (aiormq.ChannelAccessRefused("403"), BROKEN),
        (aiormq.ChannelNotFoundEntity("404"), BROKEN),
        (aiormq.ChannelPreconditionFailed("406"), BROKEN),
        (aiormq.DuplicateConsumerTag("t"), BROKEN),
        (delivery(aiormq.DeliveryError, commands.Basic.Nack(1)), BUSY),
        (delivery(aiormq.PublishError, commands.Basic.Return(312, "NO_ROUTE", "x", "k")), BROKEN),
        (aiormq.InvalidFrameError("nonsense"), BROKEN),
        (aiormq.MethodNotImplemented(), BROKEN),
        (MessageProcessError("ours"), BROKEN),
        (UnmarshalingException("Basic.Deliver", "nonsense"), BROKEN),
        (Exception(), AWAY),  # aiormq's word to a call that waits when the connection is closed
        (RuntimeError("Connection was not opened"), AWAY),
        (RuntimeError("Connection is not ready"), AWAY),
        (RuntimeError("Can't initialize closed channel"), AWAY),
        (RuntimeError("No active transport for connection"), AWAY),
        (RuntimeError("dictionary changed size during iteration"), BROKEN),
        (RecursionError("closed"), BROKEN),
    ],
    ids=repr,
)
def test_what_aio_pika_says(error: BaseException, failure: Failure) -> None:
    assert pika.classify(error) is failure


@pytest.mark.parametrize("error", [aiormq.AMQPError("new"), RuntimeError("new")])
def test_an_error_of_aio_pika_that_no_table_has_is_broken(error: BaseException) -> None:
    assert pika.classify(error) is BROKEN


CODES = {320: AWAY, 404: AWAY, 405: BUSY, 506: BUSY, 530: AWAY, 541: AWAY}


@given(st.one_of(st.sampled_from(sorted(CODES)), st.integers(200, 600)))
def test_what_the_broker_says_when_it_closes(code: int) -> None:
    expected = CODES.get(code, BROKEN)
    assert bulk.classify(ConnectionClosed(code, "a sentence")) is expected
    assert bulk.classify(AmqpChannelClosed(code, "a sentence", (60, 20))) is expected


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        *NETWORK,
        (TimeoutError(), AWAY),
        (ConnectionLost("the broker hung up"), AWAY),
        (ProtocolError("HTTP/1.1 400"), BROKEN),
    ],
    ids=repr,
)
def test_what_the_bulk_transport_says(error: Exception, failure: Failure) -> None:
    assert bulk.classify(error) is failure
    wrapped = BrokerUnreachable("The broker is out of reach.")
    wrapped.__cause__ = error
    assert bulk.classify(wrapped) is failure


def smtp_over_tls(error: Exception) -> BaseException:
    wrapped = aiosmtplib.SMTPConnectError("Error connecting")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        *NETWORK,
        (TimeoutError(), AWAY),
        (SessionLost("the server closed it"), AWAY),
        (aiosmtplib.SMTPConnectError("refused"), AWAY),
        (aiosmtplib.SMTPConnectTimeoutError("timed out"), AWAY),
        (aiosmtplib.SMTPReadTimeoutError("timed out"), AWAY),
        (aiosmtplib.SMTPServerDisconnected("hung up"), AWAY),
        (aiosmtplib.SMTPConnectResponseError(421, "shutting down"), AWAY),
        (aiosmtplib.SMTPConnectResponseError(451, "later"), BUSY),
        (aiosmtplib.SMTPAuthenticationError(454, "the directory does not answer"), BUSY),
        (aiosmtplib.SMTPConnectResponseError(554, "no service for you"), BROKEN),
        (aiosmtplib.SMTPAuthenticationError(535, "wrong password"), BROKEN),
        (aiosmtplib.SMTPHeloError(504, "no"), BROKEN),
        (aiosmtplib.SMTPNotSupported("no STARTTLS"), BROKEN),
        (aiosmtplib.SMTPException("new"), BROKEN),
        (smtp_over_tls(ssl.SSLCertVerificationError("self-signed")), BROKEN),
        (smtp_over_tls(ConnectionRefusedError("refused")), AWAY),
    ],
    ids=repr,
)
def test_what_the_smtp_client_says(error: BaseException, failure: Failure) -> None:
    assert email.classify(error) is failure
