"""Sizes and times: what people write, what is refused, what reads back."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolejka.common import units
from kolejka.common.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 67108864), ("64MB", 67108864), ("64MiB", 67108864), ("64m", 67108864), ("64 M", 67108864),
        ("67108864b", 67108864), ("67108864B", 67108864), ("67108864", 67108864), (67108864, 67108864),
        ("512KiB", 524288), ("512k", 524288), ("1.5G", 1610612736), ("0.5K", 512), ("2T", 2 << 40), ("1P", 1 << 50),
        ("0", 0), (0, 0), (4096.0, 4096), (" 1K ", 1024), ("1024P", 2**60),
    ],
)  # fmt: skip
def test_a_size_is_read_in_binary_multiples_whatever_the_spelling(text: object, size: int) -> None:
    parsed = units.parse_size(text)
    assert parsed == size
    assert isinstance(parsed, int)


@pytest.mark.parametrize(
    "text",
    ["", " ", "M", "1MM", "-1", "-64M", -1, "nan", "inf", float("nan"), float("inf"), "1e3", "1.M", ".5M", "0x10",
     "64 Mega",
     "64Mi B", "1,5G", "1_000", "١", "64M\nx", None, True, False, [], {}, b"64M", "1025P", 2**60 + 1, "9" * 400],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_text_and_cure(text: object) -> None:
    with pytest.raises(InputError) as caught:
        units.parse_size(text)
    assert repr(text) in caught.value.message
    assert "64M" in caught.value.message or "largest size" in caught.value.message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0), ("1.0s", 1.0), ("100ms", 0.1), ("2min", 120.0), ("1.5h", 5400.0), ("1d", 86400.0), ("90", 90.0),
        (90, 90.0), (0.25, 0.25), ("2M", 120.0), ("100m", 0.1), ("10us", 1e-5), ("10µs", 1e-5), ("5ns", 5e-9),
        ("1 s", 1.0),
        ("0", 0.0), (1e-6, 1e-6), ("3650d", 3650 * 86400.0),
    ],
)  # fmt: skip
def test_a_time_is_read_in_seconds(text: object, seconds: float) -> None:
    parsed = units.parse_time(text)
    assert parsed == pytest.approx(seconds, rel=1e-9)
    assert isinstance(parsed, float)


@pytest.mark.parametrize(
    "text",
    ["", "s", "-3s", -3, "nan", "NaN", "inf", float("nan"), float("-inf"), "1MM", "1ss", "1S", "1H", "1 minute", "1:30",
     "1e3s",
     None, True, [], "3651d", 1e12, "9" * 400],
)  # fmt: skip
def test_what_is_no_time_is_refused_with_text_and_cure(text: object) -> None:
    with pytest.raises(InputError) as caught:
        units.parse_time(text)
    assert repr(text) in caught.value.message
    assert "100ms" in caught.value.message or "longest time" in caught.value.message


@pytest.mark.parametrize(("text", "count"), [("4", 4), (4, 4), ("0", 0), (0, 0), (" 7 ", 7)])
def test_a_count_is_a_whole_number(text: object, count: int) -> None:
    assert units.parse_count(text) == count


@pytest.mark.parametrize("text", ["", "4.0", 4.0, "-1", -1, True, None, "1e3", "four", "1" * 19, "٤"])
def test_what_is_no_count_is_refused(text: object) -> None:
    with pytest.raises(InputError, match="not a whole number"):
        units.parse_count(text)


@pytest.mark.parametrize("text", [True, "true", "True", "yes", "on", "1", 1, " YES "])
def test_words_for_yes(text: object) -> None:
    assert units.parse_flag(text) is True


@pytest.mark.parametrize("text", [False, "false", "no", "off", "0", 0])
def test_words_for_no(text: object) -> None:
    assert units.parse_flag(text) is False


@pytest.mark.parametrize("text", ["", "maybe", None, 2, "2", [], "truee"])
def test_what_is_no_flag_is_refused(text: object) -> None:
    with pytest.raises(InputError, match="neither true nor false"):
        units.parse_flag(text)


@given(st.integers(0, units.MAX_SIZE))
def test_a_formatted_size_reads_back(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@given(st.floats(0.001, units.MAX_TIME))
def test_a_formatted_time_reads_back(seconds: float) -> None:
    assert units.parse_time(units.format_time(seconds)) == pytest.approx(seconds, rel=1e-8)


@given(st.floats(0, 1e8, allow_nan=False))
def test_a_time_survives_json(seconds: float) -> None:
    assert units.parse_time(json.loads(json.dumps(seconds))) == pytest.approx(seconds, rel=1e-6, abs=1e-9)


@given(st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.none(), st.booleans(), st.binary(max_size=3)))
def test_any_value_is_read_or_refused_never_more(value: object) -> None:
    for parse in (units.parse_size, units.parse_time, units.parse_count, units.parse_flag):
        try:
            parsed = parse(value)
        except InputError:
            continue
        assert parsed >= 0
        assert parsed == parsed  # noqa: PLR0124  # a NaN is not itself


@given(st.text(alphabet="0123456789.kKmMgGtTpPiIbB sdhnuµ\n", max_size=10).map(str.strip))
def test_schema_patterns_accept_just_what_the_parsers_read(text: str) -> None:
    for parse, pattern in ((units.parse_size, units.SIZE_PATTERN), (units.parse_time, units.TIME_PATTERN)):
        matches = re.search(pattern, text) is not None
        try:
            parse(text)
            reads = True
        except InputError as error:
            reads = "largest" in str(error) or "longest" in str(error)  # of the right form, only too much
        assert matches == reads


def test_sizes_and_times_are_spelled_shortest() -> None:
    assert [units.format_size(n) for n in (0, 1, 1023, 1024, 67108864, 1610612736)] == [
        "0", "1", "1023", "1K", "64M", "1536M",
    ]  # fmt: skip
    assert [units.format_time(n) for n in (0.0, 0.1, 1.0, 90.0, 7200.0, 172800.0)] == [
        "0s", "100ms", "1s", "90s", "2h", "2d",
    ]  # fmt: skip


def test_a_size_is_shown_rounded() -> None:
    assert [units.show_size(n) for n in (0, 1023, 1234567, 5 << 30, 3 << 50, 5000 << 50)] == [
        "0 B", "1023 B", "1.2 MiB", "5.0 GiB", "3.0 PiB", "5000.0 PiB",
    ]  # fmt: skip
