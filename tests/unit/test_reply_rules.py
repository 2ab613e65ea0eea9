"""The table of rules: the replies that were misread before, and what follows from a reading."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.results import BounceKind, BounceReason, Fault
from worker.domain.bounces import classify, may_be_repeated
from worker.domain.reply_rules import Reply, RulesInvalid, own_rules, plain, read_rules

HARD, SOFT, IGNORED = BounceKind.HARD, BounceKind.SOFT, BounceKind.IGNORED
RECIPIENT, SENDER, CONTENT, INFRASTRUCTURE = (
    Fault.RECIPIENT,
    Fault.SENDER,
    Fault.CONTENT,
    Fault.INFRASTRUCTURE,
)
R = BounceReason
RULES = own_rules()

MISREAD = [
    (550, "5.4.4 Invalid domain", HARD, R.INVALID_DOMAIN, RECIPIENT),
    (553, "nowhere.example.org does not exist", HARD, R.INVALID_DOMAIN, RECIPIENT),
    (
        554,
        "The mail was not delivered because the domain is not reachable.",
        SOFT,
        R.UNREACHABLE,
        INFRASTRUCTURE,
    ),
    (521, "5.3.2 This host takes no network messages", HARD, R.INVALID_DOMAIN, RECIPIENT),
    (550, "5.7.1 Message content rejected, UBE, id=0815", SOFT, R.SPAM, CONTENT),
    (550, "5.2.0 Mail rejected. OFR_506 [506]", SOFT, R.SPAM, CONTENT),
    (550, "Connection frequency limited", SOFT, R.RATE_LIMITED, SENDER),
    (554, "Transaction failed: Duplicate header 'DKIM-Signature'", SOFT, R.CONTENT, CONTENT),
    (501, "Rcpt-To failed: 5.7.1 this host is not configured to relay mail", SOFT, R.POLICY, SENDER),
    (550, "5.7.515 Access denied, sending domain too weak", SOFT, R.AUTHENTICATION, SENDER),
    (450, "4.7.1 Error: too much mail from 192.0.2.1", SOFT, R.RATE_LIMITED, SENDER),
    (421, "Too many concurrent SMTP connections", SOFT, R.RATE_LIMITED, SENDER),
    (454, "Throttling failure: Maximum sending rate exceeded.", SOFT, R.RATE_LIMITED, SENDER),
    (421, "4.7.0 mx.example.org Error: too many connections from 192.0.2.1", SOFT, R.RATE_LIMITED, SENDER),
    (550, "5.1.1 User unknown; see barracuda.com", HARD, R.USER_UNKNOWN, RECIPIENT),
    (550, "5.1.1 User unknown; see https://www.spamhaus.org/", HARD, R.USER_UNKNOWN, RECIPIENT),
    (550, "5.1.1 rbl.example.org said: no such user", HARD, R.USER_UNKNOWN, RECIPIENT),
    (550, "No such user; see our anti-spam policy", HARD, R.USER_UNKNOWN, RECIPIENT),
    (550, "5.1.1 Account not found. Report spam to abuse@example.org", HARD, R.USER_UNKNOWN, RECIPIENT),
    (550, "5.7.1 This looks like spam to us", SOFT, R.SPAM, CONTENT),
    (550, "Sender verify failed: it may not exist, or be blacklisted", SOFT, R.REFUSED, SENDER),
    (550, "Domain example.org sends too many: 200 emails per hour", SOFT, R.RATE_LIMITED, SENDER),
    (550, "This host does not accept mail", HARD, R.INVALID_DOMAIN, RECIPIENT),
    (550, "This host does not accept mail from you", SOFT, R.POLICY, SENDER),
    (552, "Your account has been suspended", SOFT, R.POLICY, SENDER),
    (550, "5.7.0 Your e-mail account is restricted", SOFT, R.POLICY, SENDER),
    (530, "5.7.0 Must issue a STARTTLS command first", SOFT, R.POLICY, SENDER),
    (553, "5.1.3 http://www.spamhaus.org/query/bl?ip=192.0.2.9", SOFT, R.SPAM, SENDER),
    (553, "5.1.0 x81 mail.example.org does not exist E99", SOFT, R.REFUSED, None),
    (550, "5.1.1 mailbox temporarily disabled", SOFT, R.ACCOUNT_DISABLED, RECIPIENT),
    (550, "5.4.1 All recipient addresses rejected : Access denied", HARD, R.USER_UNKNOWN, RECIPIENT),
    (452, "4.3.1 Insufficient system storage", SOFT, R.SYSTEM, INFRASTRUCTURE),
    (550, "Rejected", SOFT, R.REFUSED, None),
]

USER_UNKNOWN = {
    "English": "No such user here",
    "French": "Utilisateur inconnu",
    "German": "Benutzer unbekannt",
    "Spanish": "El usuario no existe",
    "Portuguese": "Usuário desconhecido",
    "Italian": "Utente sconosciuto",
    "Romanian": "Utilizator necunoscut",
    "Dutch": "Gebruiker onbekend",
    "Swedish": "Okänd användare",
    "Danish": "Modtageren findes ikke",
    "Norwegian": "Ukjent mottaker",
    "Finnish": "Tuntematon käyttäjä",
    "Polish": "Nieznany użytkownik",
    "Czech": "Uživatel neexistuje",
    "Slovak": "Neznámy používateľ",
    "Hungarian": "Ismeretlen felhasználó",
    "Turkish": "Kullanıcı bulunamadı",
    "Russian": "Пользователь не найден",
    "Ukrainian": "Користувач не існує",
    "Greek": "Άγνωστος χρήστης",
    "Chinese": "收件人不存在",
    "Japanese": "宛先のユーザーが見つかりません",
    "Korean": "수신자를 찾을 수 없습니다",
}
MAILBOX_FULL = {
    "French": "Boîte aux lettres pleine",
    "German": "Das Postfach ist voll",
    "Spanish": "Buzón lleno",
    "Portuguese": "Caixa postal cheia",
    "Italian": "La casella è piena",
    "Dutch": "Mailbox is vol",
    "Polish": "Skrzynka jest pełna",
    "Czech": "Schránka je plná",
    "Turkish": "Posta kutusu dolu",
    "Russian": "Почтовый ящик переполнен",
    "Chinese": "邮箱已满",
    "Japanese": "メールボックスがいっぱいです",
    "Korean": "편지함이 가득 찼습니다",
}
OUR_FAULT = [
    *("Client host [192.0.2.1] blocked using bl.example.org", "your IP is listed at zen.example.org"),
    *("Sender address rejected", "Absender unbekannt", "Expéditeur refusé", "El remitente no existe"),
    *("SPF check failed", "DKIM signature invalid", "does not pass DMARC", "reverse DNS missing"),
    *("Too many messages", "Throttling failure", "Zu viele Verbindungen", "Trop de messages", "发件人被拒绝"),
    *("Your account has been suspended", "Relay access denied", "Must issue a STARTTLS command first"),
    *("Your IP address has been suspended", "Your address is not listed here", "Invalid HELO name"),
    *("client address unknown", "Sender address suspended", "your domain does not exist"),
    *("classified as spam", "virus found", "垃圾邮件", "Duplicate header From", "poor reputation"),
]


@pytest.mark.parametrize(
    ("code", "text", "kind", "reason", "fault"), MISREAD, ids=[text[:50] for _, text, *_ in MISREAD]
)
def test_what_was_misread_before_is_read_by_its_words(
    code: int, text: str, kind: BounceKind, reason: BounceReason, fault: Fault | None
) -> None:
    meaning = classify(code, text)
    assert (meaning.kind, meaning.reason, meaning.fault) == (kind, reason, fault)


@pytest.mark.parametrize("language", USER_UNKNOWN)
def test_an_unknown_user_is_one_in_any_language(language: str) -> None:
    for text in (
        USER_UNKNOWN[language],
        USER_UNKNOWN[language].upper(),
        f"<ana@example.org>: {USER_UNKNOWN[language]}.",
    ):
        meaning = classify(550, text)
        assert (meaning.kind, meaning.reason, meaning.fault) == (HARD, R.USER_UNKNOWN, RECIPIENT), text


@pytest.mark.parametrize("language", MAILBOX_FULL)
def test_a_full_mailbox_is_one_in_any_language_and_is_tried_again(language: str) -> None:
    meaning = classify(550, MAILBOX_FULL[language])
    assert (meaning.kind, meaning.reason, meaning.again) == (SOFT, R.MAILBOX_FULL, True)


def test_octets_of_latin_1_are_read_as_such() -> None:
    text = "Boîte pleine".encode("latin-1").decode("utf-8", "surrogateescape")
    assert classify(550, text).reason is R.MAILBOX_FULL


@given(
    words=st.sampled_from(OUR_FAULT),
    code=st.integers(400, 599),
    detail=st.sampled_from(["", "5.1.1 ", "5.1.2 ", "5.1.6 ", "5.1.10 ", "5.2.1 ", "5.7.17 ", "5.0.0 "]),
    around=st.sampled_from(
        [
            "{}",
            "<ana@example.org>: Recipient address rejected: {}",
            "{} (user@example.org)",
            "{}; mailbox unavailable",
        ]
    ),
)
def test_a_reply_that_blames_us_never_condemns_an_address(
    words: str, code: int, detail: str, around: str
) -> None:
    meaning = classify(code, detail + around.format(words))
    assert meaning.kind is SOFT
    assert meaning.fault in (SENDER, CONTENT)


@given(
    text=st.text(max_size=60),
    code=st.integers(400, 599),
    status=st.sampled_from([None, "5.1.1", "5.7.1", "5.2.2"]),
)
def test_any_reply_has_a_reading_and_only_the_recipients_own_is_hard(
    text: str, code: int, status: str | None
) -> None:
    meaning = classify(code, text, status=status)
    if meaning.kind is HARD:
        assert (meaning.fault, meaning.again) == (RECIPIENT, False)


@pytest.mark.parametrize(
    ("kind", "reason", "status", "again"),
    [
        (SOFT, R.SPAM, "5.7.1", False),
        (SOFT, R.SPAM, "4.7.1", True),
        (SOFT, R.REFUSED, "5.0.0", False),
        (SOFT, R.MAILBOX_FULL, "5.2.2", True),
        (SOFT, R.RATE_LIMITED, "5.7.28", True),
        (SOFT, R.GREYLISTED, "5.7.1", True),
        (SOFT, R.NOT_DEFINED, None, True),
        (HARD, R.USER_UNKNOWN, "5.1.1", False),
        (HARD, R.USER_UNKNOWN, "4.1.1", False),
        (IGNORED, R.AUTO_REPLY, None, False),
    ],
)
def test_whether_to_try_again_follows_from_the_class_and_the_reason(
    kind: BounceKind, reason: BounceReason, status: str | None, *, again: bool
) -> None:
    assert may_be_repeated(kind, reason, status) is again


def test_every_word_of_the_table_can_be_found_and_no_rule_but_the_last_fits_everything() -> None:
    nothing = Reply.read(299, "0.0", "")
    for rule in RULES.rules[:-1]:
        assert rule.words or rule.links or rule.codes or rule.basic, rule.name
        assert RULES.judge(nothing) is RULES.rules[-1]
        for pattern in rule.words + rule.links:
            assert not re.search(pattern, ""), f"{rule.name}: {pattern!r} is found in nothing"


def test_accents_and_cases_make_no_difference_and_kana_keep_their_marks() -> None:
    assert plain(" PEŁNA\r\n Größe  Ü İ ") == "pelna grosse u i"
    assert plain("がぎ") == "がぎ"
    assert plain("ＵＳＥＲ") == "user"


RULE = '[[rule]]\nname = "a"\nwhy = "b"\nreason = "spam"\n'


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("again = [", "no TOML"),
        ("again = []", "rule"),
        (f"again = []\n{RULE}{RULE}", "same name"),
        (f"again = []\n{RULE}words = ['(']", "no regular expression"),
        (f"again = []\n{RULE}codes = ['1']", "no subject and detail"),
        (f"again = []\n{RULE}hard = true", "fault is not the recipient's"),
        (f"again = []\n{RULE}words = ['x']", "does not fit every reply"),
        (f"again = []\n{RULE.replace('spam', 'sulk')}", "no reason of a bounce"),
        (f"again = []\n{RULE}sort = 'x'", "sort"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_fault(table: str, words: str) -> None:
    with pytest.raises(RulesInvalid, match=re.escape(words)):
        read_rules(table)
