"""The keys of a server: how they are read, compared, counted, and traded for a cookie."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.errors import UsageError
from vidqa.server import keys as module
from vidqa.server.keys import COOKIE_SECONDS, NOBODY, Keys, Rates, read_keys

ALICE, BOB = "0123456789abcdef-alice", "0123456789abcdef-bob"
TWO = Keys({"alice": ALICE, "bob": BOB})

names = st.text("abcXYZ019_.-", min_size=1, max_size=40)
secrets = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=",:"),
    min_size=16,
    max_size=80,
)


# ---------------------------------------------------------------- reading


def test_keys_come_from_flags_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n  carol:{ALICE}  \n")
    found = read_keys([f"alice:{ALICE}"], {"VIDQA_SERVE_KEYS": f"bob:{BOB}, {ALICE}"}, file)
    assert set(found.by_name) == {"alice", "bob", "carol", "default"}


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(ALICE)
    found = read_keys([], {"VIDQA_SERVE_KEY_FILE": str(tmp_path / "keys")}, None)
    assert found.by_name == {"default": ALICE}


def test_a_file_of_another_system_is_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfalice:" + ALICE.encode() + b"\r\n")
    assert read_keys([], {}, tmp_path / "keys").by_name == {"alice": ALICE}


@given(names, secrets)
def test_a_named_key_is_read_as_it_was_written(name: str, key: str) -> None:
    assert read_keys([f"{name}:{key}"], {}, None).by_name == {name: key}
    assert read_keys([], {"VIDQA_SERVE_KEYS": f"{name}:{key}"}, None).by_name == {name: key}


@given(st.text(st.characters(max_codepoint=0x17F), max_size=60))
def test_any_text_is_a_key_or_an_error_that_does_not_show_it(text: str) -> None:
    said = ""
    try:
        assert len(read_keys([text], {}, None).by_name) == 1
    except UsageError as error:
        said = str(error)
    assert len(text) < 8 or text not in said


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["alice:short"], "this key has 5 characters; at least 16"),
        (["short"], "this key has 5 characters; at least 16"),
        ([""], "this key has 0 characters"),
        (["al ice:" + ALICE], "a key is written NAME:KEY"),
        ([":" + ALICE], "a key is written NAME:KEY"),
        (["alice:0123456789 abcdef"], "printable ASCII"),
        (["alice:0123456789abcdé"], "printable ASCII"),
        (["alice:0123456789,abcdef"], "without a comma"),
        ([f"alice:{ALICE}", f"alice:{BOB}"], "two keys named alice"),
        ([ALICE, BOB], "two keys named default; write NAME:KEY"),
    ],
)
def test_what_is_no_key_is_an_error_that_says_why(flags: list[str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        read_keys(flags, {}, None)


def test_the_same_key_twice_is_one(tmp_path: Path) -> None:
    assert read_keys([ALICE], {"VIDQA_SERVE_KEYS": ALICE}, None).by_name == {"default": ALICE}


def test_a_key_written_before_its_name_is_not_shown() -> None:
    with pytest.raises(UsageError) as error:
        read_keys([f"{ALICE}:alice"], {}, None)
    assert ALICE not in str(error.value)


def test_a_file_without_a_key_opens_no_server(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(UsageError, match="holds no key"):
        read_keys([], {}, tmp_path / "keys")


def test_a_malformed_line_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice:{ALICE}\n\nbob:x\n")
    with pytest.raises(UsageError, match="keys, line 3: this key has 1 characters"):
        read_keys([], {}, tmp_path / "keys")


@pytest.mark.parametrize(("content", "match"), [(None, "No such file"), (b"\xff\xfe", "UTF-8")])
def test_a_file_that_cannot_be_read_is_a_wrong_usage(
    tmp_path: Path, content: bytes | None, match: str
) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(UsageError, match=match):
        read_keys([], {}, tmp_path / "keys")


def test_a_key_is_not_in_what_is_shown_of_the_keys() -> None:
    assert ALICE not in repr(TWO)


# ---------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (f"Bearer {ALICE}", "alice"),
        (f"bearer  {BOB} ", "bob"),
        (ALICE, None),
        (f"Basic {ALICE}", None),
        (f"Bearer {ALICE[:-1]}", None),
        (f"Bearer {ALICE}x", None),
        (f"Bearer {ALICE.upper()}", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
    ],
)
def test_a_header_is_whose_key_it_carries(header: str, name: str | None) -> None:
    assert TWO.name_of(header.encode()) == name


def test_bytes_that_are_no_text_are_nobodys_key() -> None:
    assert TWO.name_of(b"Bearer \xff\x00") is None


def test_a_server_without_keys_admits_everybody() -> None:
    assert Keys().name_of(b"") == NOBODY
    assert not Keys()


# ---------------------------------------------------------------- the cookie


def test_a_cookie_is_of_whoever_had_the_key() -> None:
    assert TWO.name_of_cookie(TWO.cookie("bob")) == "bob"


def test_a_cookie_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = TWO.cookie("bob")
    later = module.time.time() + COOKIE_SECONDS
    monkeypatch.setattr(module.time, "time", lambda: later - 2)
    assert TWO.name_of_cookie(cookie) == "bob"
    monkeypatch.setattr(module.time, "time", lambda: later + 2)
    assert TWO.name_of_cookie(cookie) is None


def test_a_cookie_cannot_be_made_to_last_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now)
    name, until, signature = TWO.cookie("bob").split(".")
    assert TWO.name_of_cookie(f"{name}.{int(until) + 1}.{signature}") is None


def test_a_cookie_cannot_be_passed_off_as_anothers() -> None:
    _, until, signature = TWO.cookie("bob").split(".")
    assert TWO.name_of_cookie(f"alice.{until}.{signature}") is None


def test_a_cookie_ends_with_its_key() -> None:
    cookie = TWO.cookie("bob")
    assert Keys({"alice": ALICE}).name_of_cookie(cookie) is None
    assert Keys({"bob": ALICE}).name_of_cookie(cookie) is None


def test_a_cookie_does_not_tell_the_key() -> None:
    assert BOB not in TWO.cookie("bob")


@given(names, secrets)
def test_every_name_gets_a_cookie_that_holds(name: str, key: str) -> None:
    found = Keys({name: key})
    assert found.name_of_cookie(found.cookie(name)) == name


@given(
    st.text(st.characters(max_codepoint=0x17F))
    | st.from_regex(r"(alice|bob)\.[0-9]{1,20}\.[0-9a-f]{64}", fullmatch=True)
    | st.integers(5000, 9000).map(lambda digits: "bob." + "9" * digits + ".x")
)
def test_no_made_up_cookie_is_anybodys(value: str) -> None:
    assert TWO.name_of_cookie(value) is None


# ---------------------------------------------------------------- rates


def test_a_minutes_worth_may_come_at_once() -> None:
    rates = Rates(3)
    assert [rates.admit("a", now=0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert rates.admit("a", now=0.0) == pytest.approx(20)


def test_after_the_wait_that_was_told_one_more_may_pass() -> None:
    rates = Rates(3)
    for _ in range(3):
        rates.admit("a", now=0.0)
    wait = rates.admit("a", now=5.0)
    assert wait == pytest.approx(15)
    assert rates.admit("a", now=5.0 + wait) == 0.0
    assert rates.admit("a", now=5.0 + wait) > 0


def test_a_rest_saves_up_no_more_than_a_minutes_worth() -> None:
    rates = Rates(2)
    rates.admit("a", now=0.0)
    assert [rates.admit("a", now=3600.0) > 0 for _ in range(3)] == [False, False, True]


def test_one_name_does_not_use_up_anothers_share() -> None:
    rates = Rates(1)
    rates.admit("a", now=0.0)
    assert rates.admit("a", now=0.0) > 0
    assert rates.admit("b", now=0.0) == 0.0


def test_no_limit_admits_everything() -> None:
    rates = Rates(0)
    assert not any(rates.admit("a", now=0.0) for _ in range(1000))


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 20))
def test_no_minute_sees_more_than_twice_the_rate(gaps: list[float], per_minute: int) -> None:
    rates, now, passed = Rates(per_minute), 0.0, []
    for gap in gaps:
        now += gap
        if not rates.admit("a", now=now):
            passed.append(now)
    for start in passed:
        assert sum(start <= one < start + 60 for one in passed) <= 2 * per_minute
