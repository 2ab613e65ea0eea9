"""Returned mail with a report for programs: bounces (RFC 3464), complaints (RFC 5965), and what is none."""

from __future__ import annotations

import base64

import pytest

from contracts.results import BounceKind, BounceReason, Fault
from tests.support.returned_mail import ADDRESS, MESSAGE_ID, RETURNED, complaint, mail, multipart, report
from worker.returned.reading import (
    AutomaticAnswer,
    Bounce,
    Complaint,
    Loop,
    NoFailure,
    NothingOfOurs,
    Returned,
    read_mail,
)


def only(data: bytes) -> Returned:
    reading = read_mail(data)
    assert isinstance(reading, Bounce)
    (returned,) = reading.returned
    return returned


UNKNOWN = f"""Final-Recipient: rfc822; {ADDRESS}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 <{ADDRESS}>: Recipient address rejected: User
    unknown in virtual mailbox table
"""


FULL = """Final-Recipient: rfc822; a@x.example
Action: failed
Status: 5.2.2
Diagnostic-Code: smtp; 552 5.2.2 mailbox full
"""
UNKNOWN_B = """Final-Recipient: rfc822; b@x.example
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user
"""


def test_a_report_names_recipient_reply_and_verdict() -> None:
    returned = only(report(UNKNOWN))
    assert returned.address == ADDRESS
    assert returned.final
    assert returned.reply.startswith(f"550 5.1.1 <{ADDRESS}>: Recipient address rejected: User unknown in")
    assert returned.verdict.kind is BounceKind.HARD
    assert returned.verdict.reason is BounceReason.USER_UNKNOWN
    assert returned.verdict.status == "5.1.1"


def test_the_returned_mail_is_referred_to_by_its_ids() -> None:
    reading = read_mail(report(UNKNOWN))
    assert isinstance(reading, Bounce)
    assert reading.references == (MESSAGE_ID, "news@example.org")


@pytest.mark.parametrize(
    "fields",
    [
        f"{FULL}{UNKNOWN_B}",  # without an empty line between the groups
        f"{FULL}\nOriginal-Recipient: rfc822;b@x.example\n{UNKNOWN_B}",  # a field that the first has not
    ],
)
def test_each_recipient_of_a_report_has_its_own_reply(fields: str) -> None:
    reading = read_mail(report(fields))
    assert isinstance(reading, Bounce)
    assert [(one.address, one.verdict.reason) for one in reading.returned] == [
        ("a@x.example", BounceReason.MAILBOX_FULL),
        ("b@x.example", BounceReason.USER_UNKNOWN),
    ]


def test_a_reply_of_several_lines_goes_on_after_an_empty_one() -> None:
    returned = only(
        report(f"""Diagnostic-Code: smtp; 550-Authentication is needed.

550-203.0.113.9 may not
550 relay through this server.
Status: 5.0.0
Action: failed
Final-Recipient: rfc822; {ADDRESS}
""")
    )
    assert returned.reply == "550 Authentication is needed. 203.0.113.9 may not relay through this server."


def test_words_complete_a_report_that_cuts_the_reply() -> None:
    fields = (
        f"Final-Recipient: rfc822; {ADDRESS}\nAction: failed\nStatus: 5.2.1\n"
        "Diagnostic-Code: smtp; 550-5.2.1 The account that you tried to reach is\n"
    )
    words = f"""   ----- Transcript of session follows -----
... while talking to mx.shop.example.:
>>> RCPT To:<{ADDRESS}>
<<< 550-5.2.1 The account that you tried to reach is
<<< 550 5.2.1 disabled.
"""
    assert (
        only(report(fields, words)).reply
        == "550 5.2.1 The account that you tried to reach is 5.2.1 disabled."
    )


def test_a_report_without_a_reply_takes_that_of_the_words() -> None:
    fields = f"Final-Recipient: rfc822; {ADDRESS}\nAction: failed\nStatus: 5.0.0\n"
    returned = only(report(fields, f"{ADDRESS}: 552 5.2.2 <{ADDRESS}>: over quota\n"))
    assert returned.verdict.reason is BounceReason.MAILBOX_FULL
    assert returned.verdict.status == "5.2.2"


def test_the_status_counts_if_the_reply_has_no_code() -> None:
    fields = (
        f"Final-Recipient: rfc822; {ADDRESS}\nAction: failed\nStatus: 4.4.1\n"
        "Diagnostic-Code: X-Postfix; connect to mx.shop.example[192.0.2.1]:25: Connection timed out\n"
    )
    returned = only(report(fields))
    assert returned.final
    assert returned.verdict.kind is BounceKind.SOFT
    assert returned.verdict.reason is BounceReason.UNREACHABLE
    assert returned.verdict.status == "4.4.1"


def test_what_a_directory_says_of_the_recipient() -> None:
    fields = (
        f"Final-Recipient: rfc822;{ADDRESS}\nAction: failed\nStatus: 5.1.1\n"
        f"Diagnostic-Code: X-Notes; User zoe ({ADDRESS}) not listed in the directory\n"
    )
    assert only(report(fields)).verdict.reason is BounceReason.USER_UNKNOWN


def test_a_refusal_of_the_sender_condemns_nobody() -> None:
    fields = f"Final-Recipient: rfc822; {ADDRESS}\nAction: failed\nStatus: 5.0.0\n"
    words = f""">>> MAIL From:<news@example.org>
<<< 550 Unknown user or address
554 {ADDRESS}... Remote protocol error
"""
    verdict = only(report(fields, words)).verdict
    assert verdict.kind is BounceKind.SOFT
    assert verdict.fault is Fault.SENDER


def test_a_delay_is_not_final() -> None:
    fields = f"Final-Recipient: rfc822; {ADDRESS}\nAction: delayed\nStatus: 4.2.2\n"
    assert not only(report(fields)).final


@pytest.mark.parametrize("action", ["delivered", "relayed", "expanded"])
def test_a_report_of_success_is_nothing(action: str) -> None:
    fields = f"Final-Recipient: rfc822; {ADDRESS}\nAction: {action}\nStatus: 2.0.0\n"
    words = f"<{ADDRESS}>: 250 2.0.0 queued as 550 5.1.1"
    assert read_mail(report(fields, words)) == NoFailure()


def test_a_report_in_the_returned_mail_is_not_ours() -> None:
    inner = report("Final-Recipient: rfc822; inner@x.example\nAction: failed\nStatus: 5.1.1\n").decode()
    returned = only(report(UNKNOWN, returned=inner.replace("edge", "inner").replace("\r\n", "\n")))
    assert returned.address == ADDRESS


def test_a_report_that_a_gateway_encoded() -> None:
    encoded = base64.encodebytes(UNKNOWN.encode()).decode()
    data = multipart(
        "delivery-status", ("message/delivery-status\nContent-Transfer-Encoding: base64", encoded)
    )
    assert only(data).address == ADDRESS


def test_fields_in_the_midst_of_words() -> None:
    words = f"An error occurred.\n\nTechnical report:\n\n{UNKNOWN}"
    header = "From: MAILER-DAEMON@relay.example\nSubject: Delivery Status Notification (Failure)"
    assert only(mail(header, words)).address == ADDRESS


def test_a_multipart_without_its_parts_is_read_as_text() -> None:
    header = """From: MAILER-DAEMON@relay.example
Subject: Returned mail
Content-Type: multipart/report; report-type=delivery-status; boundary=missing"""
    assert only(mail(header, UNKNOWN)).address == ADDRESS


SES = r"""{
  "Type" : "Notification",
  "Message" : "{\"notificationType\":\"KIND\",\"kind\":{RECIPIENTS},\"mail\":{
 \"source\":\"bounces+abc@news.example.org\",\"messageId\":\"0102\"}}"
}"""
"""As Amazon SES tells over SNS by mail, with its line broken on the way."""


def notice(recipients: str) -> bytes:
    header = "From: SES <no-reply@sns.amazonaws.example>\nSubject: AWS Notification Message"
    return mail(header, SES.replace("{RECIPIENTS}", recipients.replace('"', r"\"")))


def test_a_notice_in_json_tells_a_bounce() -> None:
    reading = read_mail(
        notice(
            f'"bouncedRecipients":[{{"emailAddress":"{ADDRESS}","action":"failed","status":"5.1.1",'
            '"diagnosticCode":"smtp; 550 5.1.1 user unknown"}]'
        )
    )
    assert isinstance(reading, Bounce)
    assert [(one.address, one.verdict.reason, one.reply) for one in reading.returned] == [
        (ADDRESS, BounceReason.USER_UNKNOWN, "550 5.1.1 user unknown")
    ]
    assert reading.references == ("bounces+abc@news.example.org",)


def test_a_notice_in_json_tells_a_complaint() -> None:
    recipients = f'"complainedRecipients":[{{"emailAddress":"{ADDRESS}"}}],"complaintFeedbackType":"abuse"'
    assert read_mail(notice(recipients)) == Complaint("abuse", ADDRESS, ("bounces+abc@news.example.org",))


def test_a_complaint_names_who_and_about_what() -> None:
    reading = read_mail(
        complaint(f"Feedback-Type: abuse\nOriginal-Rcpt-To: <{ADDRESS}>\nOriginal-Mail-From: <b@e.example>")
    )
    assert reading == Complaint("abuse", ADDRESS, (MESSAGE_ID, "news@example.org", "b@e.example"))


@pytest.mark.parametrize("kind", ["not-spam", "auth-failure", "virus"])
def test_feedback_that_is_no_complaint(kind: str) -> None:
    assert read_mail(complaint(f"Feedback-Type: {kind}\nVersion: 1")) == NoFailure()


@pytest.mark.parametrize(
    "header",
    [
        "Subject: Re: Hello\nAuto-Submitted: auto-replied",
        "Subject: Out of Office: Hello",
        "Subject: =?utf-8?q?R=C3=A9ponse_automatique_=3A_Hello?=",
        "Subject: Hello\nPrecedence: auto_reply",
        "Subject: Hello\nX-Autoreply: yes",
        "Subject: Read\nContent-Type: multipart/report; report-type=disposition-notification; boundary=b",
    ],
)
def test_an_automatic_answer_is_never_a_bounce(header: str) -> None:
    data = mail(
        f"From: Zoe <{ADDRESS}>\nIn-Reply-To: <{MESSAGE_ID}>\n{header}", "I am away. 550 5.1.1 User unknown\n"
    )
    assert read_mail(data) == AutomaticAnswer((MESSAGE_ID,))


def test_a_person_who_writes_is_nothing() -> None:
    data = mail(f"From: Zoe <{ADDRESS}>\nSubject: Re: Hello", "550 5.1.1 Please take me off.\n")
    assert read_mail(data) == NothingOfOurs()


def test_a_mail_that_went_through_too_many_servers_is_looping() -> None:
    header = "From: MAILER-DAEMON@relay.example\n" + "Received: from here by there\n" * 101
    assert read_mail(mail(header, RETURNED)) == Loop()
