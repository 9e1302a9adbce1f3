"""What clients accept, and what they get."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from creatify_exporter.web.negotiation import OPENMETRICS, TEXT, accepts_gzip, content_type

NAME = "application/openmetrics-text"
PROMETHEUS_3 = (
    f"{NAME};version=1.0.0;escaping=allow-utf-8;q=0.6,{NAME};version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/*", TEXT),
        ("text/html", TEXT),
        (NAME, OPENMETRICS),
        (f"{NAME.upper()};VERSION=1.0.0", OPENMETRICS),
        (f'{NAME}; version="1.0.0"', OPENMETRICS),
        (f"{NAME};version=2.0.0", OPENMETRICS),
        (f"{NAME};version=x", TEXT),
        (f"{NAME};q=0", TEXT),
        (f"{NAME};q=0.000, */*", TEXT),
        (f"{NAME};Q=0,text/plain", TEXT),
        (f"{NAME};q=0.5,text/plain;version=0.0.4;q=0.6", TEXT),
        (f"{NAME};q=0.6,text/plain;version=0.0.4;q=0.5", OPENMETRICS),
        (f"text/plain, {NAME}", OPENMETRICS),
        (f"{NAME};q=0.5, */*;q=0.9", TEXT),
        (f"{NAME};q=oops, text/plain;q=0.1", TEXT),
        (f"{NAME};version=0.0.1;q=0.3,{NAME};version=1.0.0;q=0.8,text/plain;q=0.5", OPENMETRICS),
        (f"{NAME};version=1.0.0;q=0,{NAME};q=0.5,text/plain;q=0.1", TEXT),
        (f"{NAME};version=2.0.0;q=0.9,{NAME};version=1.0.0;q=0.1,text/plain;q=0.5", TEXT),
        (f"{NAME};version=2.0.0;q=0,{NAME};q=0.5,text/plain;q=0.1", OPENMETRICS),
        (f"text/plain;version=0.0.4;q=0,text/plain;q=1,{NAME};q=0.1", OPENMETRICS),
        (f"{NAME};version=,text/plain", OPENMETRICS),
        ("application/*", OPENMETRICS),
        ("application/*;q=0.1, text/*;q=0.2", TEXT),
        ("text/plain;q=0, */*", OPENMETRICS),
        (f'text/html;title="a,{NAME}"', TEXT),
        (f"{NAME};escaping=values", f"{OPENMETRICS}; escaping=values"),
        (f"{NAME};escaping=unheard-of", OPENMETRICS),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", f"{TEXT}; escaping=allow-utf-8"),
        (PROMETHEUS_3, f"{OPENMETRICS}; escaping=allow-utf-8"),
        (f"{NAME};version=2.0.0;escaping=allow-utf-8;q=0.7,{PROMETHEUS_3}", f"{OPENMETRICS}; escaping=allow-utf-8"),
    ],
)
def test_a_client_gets_the_format_that_it_prefers(accept: str, expected: str) -> None:
    assert content_type(accept) == expected


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("", False),
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("br, zstd", False),
        ("identity", False),
        ("deflate, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; Q=0.0", False),
        ("gzip;q=0, *", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0.1, identity", False),
        ("gzip;q=0.5, identity;q=0.5", True),
        ("not-gzip", False),
    ],
)
def test_an_answer_is_compressed_if_the_client_prefers_it(accepted: str, compressed: bool) -> None:
    assert accepts_gzip(accepted) is compressed


WORDS = f"""
{NAME} text/plain text/html */* ; , = version q escaping 1.0.0 0.0.1 0.0.4 2 999.9.9 -1 1.x allow-utf-8 dots values "
"""
words = st.sampled_from([*WORDS.split(), " ", "\xff", "\\"])


@example(header=f"{NAME};version=x")
@example(header='"' * 10_000)
@example(header=",;=" * 5000)
@given(header=st.lists(words, max_size=12).map("".join))
def test_no_header_breaks_it(header: str) -> None:
    assert content_type(header).startswith((TEXT, OPENMETRICS))
    assert accepts_gzip(header) in (True, False)
