"""Returned mail in words for people: where it names the recipient, and which reply it quotes."""

from __future__ import annotations

import pytest

from contracts.results import BounceKind, BounceReason
from tests.support.returned_mail import ADDRESS, MESSAGE_ID, RETURNED, failure_notice
from worker.returned.prose import split_returned
from worker.returned.reading import Bounce, read_mail

FORMS = {
    "an address on its own line": f"""Hi. This is the mail program at relay.example.
I was not able to deliver your message to the following addresses.

<{ADDRESS}>:
192.0.2.25 does not like recipient.
Remote host said: 550 5.1.1 <{ADDRESS}>: no such user
Giving up on 192.0.2.25.

--- Below this line is a copy of the message.

{RETURNED}""",
    "an indented address, and the command": f"""A message that you sent could not be delivered.

  {ADDRESS}
    SMTP error from remote mail server after RCPT TO:<{ADDRESS}>:
    host mx.shop.example [192.0.2.20]: 550-5.1.1 no such user
    550 5.1.1 here

------ This is a copy of the message, including all the headers. ------

{RETURNED}""",
    "a transcript": f"""   ----- The following addresses had permanent fatal errors -----
<{ADDRESS}>
    (reason: 550 5.1.1 <{ADDRESS}>... no such user)

   ----- Transcript of session follows -----
... while talking to mx.shop.example.:
>>> RCPT To:<{ADDRESS}>
<<< 550 5.1.1 <{ADDRESS}>... no such user

   ----- Unsent message follows -----
{RETURNED}""",
    "a sentence": f"""There was an error delivering your mail to <{ADDRESS}>.

mx.shop.example [192.0.2.25] did not like our RCPT TO:
550 5.1.1 <{ADDRESS}>: no such user

Message headers follow.

{RETURNED}""",
    "a quoted reply": f"""Delivery has failed to these recipients:

{ADDRESS}<mailto:{ADDRESS}>
Your mail could not be delivered.

Remote Server returned '550 5.1.1 no such user'

Original message headers:

{RETURNED}""",
    "address and reply in one line": f"""{ADDRESS}: 550 5.1.1 no such user

Below is a copy of the original message:

{RETURNED}""",
    "a reply at the end of a long line": f"""Delivery to the following recipient failed permanently:

     {ADDRESS}

It was refused. The error that the other server returned was: 550 550 5.1.1 no such user (state 14).

----- Original message -----

{RETURNED}""",
    "a session": f"""Each of the following recipients was rejected by a remote server.

    Recipient: <{ADDRESS}>
    >>> RCPT TO:<{ADDRESS}>
    <<< 550 5.1.1 <{ADDRESS}>: no such user
""",
    "words without a reply": f"""Your message was not delivered to:

  {ADDRESS}

because: no such user (#5.1.1)
""",
    "words before the address": f"""------- Failure Reasons -------

no such user (#5.1.1)
{ADDRESS}

------- Returned Message -------

{RETURNED}""",
}


@pytest.mark.parametrize("words", FORMS.values(), ids=FORMS.keys())
def test_every_form_names_the_recipient_and_the_reply(words: str) -> None:
    reading = read_mail(failure_notice(words))
    assert isinstance(reading, Bounce)
    (returned,) = reading.returned
    assert returned.address == ADDRESS
    assert "no such user" in returned.reply
    assert returned.verdict.kind is BounceKind.HARD
    assert returned.verdict.reason is BounceReason.USER_UNKNOWN
    assert returned.verdict.status == "5.1.1"
    assert returned.final
    if RETURNED in words:
        assert MESSAGE_ID in reading.references


def test_every_recipient_has_its_own_reply() -> None:
    words = """<a@x.example>:
192.0.2.25 does not like recipient.
Remote host said: 550 5.1.1 <a@x.example>: no such user
Giving up on 192.0.2.25.

<b@x.example>:
192.0.2.25 does not like recipient.
Remote host said: 552 5.2.2 <b@x.example>: Mailbox full
Giving up on 192.0.2.25.
"""
    reading = read_mail(failure_notice(words))
    assert isinstance(reading, Bounce)
    assert [(one.address, one.verdict.reason) for one in reading.returned] == [
        ("a@x.example", BounceReason.USER_UNKNOWN),
        ("b@x.example", BounceReason.MAILBOX_FULL),
    ]


def test_the_sender_in_a_transcript_is_not_the_recipient() -> None:
    words = f"""  {ADDRESS}
    SMTP error from remote mail server after MAIL FROM:<news@example.org> SIZE=1543:
    host mx.shop.example [192.0.2.20]: 550 5.1.0 <news@example.org>... user unknown
"""
    reading = read_mail(failure_notice(words))
    assert isinstance(reading, Bounce)
    assert [(one.address, one.verdict.kind) for one in reading.returned] == [(ADDRESS, BounceKind.SOFT)]


def test_a_warning_is_not_final() -> None:
    words = f"""A message that you sent has not yet been delivered.

  {ADDRESS}
    Delay reason: host mx.shop.example [192.0.2.222]: 450 4.2.2 mailbox full

No action is required on your part. Delivery attempts will continue.
"""
    reading = read_mail(failure_notice(words))
    assert isinstance(reading, Bounce)
    assert [(one.final, one.verdict.reason) for one in reading.returned] == [
        (False, BounceReason.MAILBOX_FULL)
    ]


def test_a_header_names_who_the_words_do_not() -> None:
    reading = read_mail(
        failure_notice("Remote host said: 550 5.1.1 no such user\n", X_Failed_Recipients=ADDRESS)
    )
    assert isinstance(reading, Bounce)
    assert [one.address for one in reading.returned] == [ADDRESS]


def test_what_cannot_be_read_is_a_bounce_of_nobody() -> None:
    reading = read_mail(failure_notice(f"Something went wrong.\n\n--- Original message ---\n\n{RETURNED}"))
    assert isinstance(reading, Bounce)
    assert reading.returned == ()
    assert MESSAGE_ID in reading.references


@pytest.mark.parametrize(
    "rule",
    [
        "------ This is a copy of the message, including all the headers. ------",
        "--- The header of the original message is following. ---",
        "-------original message",
        "   ----- Unsent message follows -----",
        "Original message follows.",
        "Included is a copy of the message header:",
        "--- Enclosed is a copy of the message.",
        "",
    ],
)
def test_the_returned_mail_begins_below_a_rule_or_with_its_header(rule: str) -> None:
    before, rest = split_returned(f"It failed.\n\n{rule}\n\n{RETURNED}")
    assert before.strip() == "It failed."
    assert rest.strip() == RETURNED.strip()


def test_a_sentence_about_the_original_message_is_no_rule() -> None:
    text = f"Your original message\nwas refused by {ADDRESS}.\n550 5.1.1 no such user\n"
    assert split_returned(text) == (text, "")
