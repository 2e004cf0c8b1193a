"""What clients send beside an image's name: a platform, and credentials that may be none."""

from __future__ import annotations

import pytest

from skep.engine.oci.auth import credentials
from skep.engine.oci.manifest import parse_platform
from skep.errors import Invalid


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("", "linux/amd64"),
        ("linux", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("armhf", "linux/arm/v7"),
        ("Linux/ARM/v6", "linux/arm/v6"),
        ("linux/new", "linux/new"),
    ],
)
def test_platforms(given: str, shown: str) -> None:
    assert str(parse_platform(given, "x86_64")) == shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("foo", '"foo": unknown operating system or architecture: invalid argument'),
        ("a/b/c/d", '"a/b/c/d": cannot parse platform specifier: invalid argument'),
        (
            "linux/ä",
            '"ä" is an invalid component of "linux/ä": platform specifier component must match "^[A-Za-z0-9_.-]+$": invalid argument',
        ),
    ],
)
def test_platforms_that_are_none(given: str, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_platform(given, "x86_64")
    assert refused.value.message == said


@pytest.mark.parametrize("header", ["", "FOOBAR", "é", "W10=", "e30=", "bnVsbA==", "eyJhdXRoIjoiISEifQ==", "A" * 100_000, "Ww" * 9000])
def test_what_is_no_credentials_is_anonymous(header: str) -> None:
    assert not credentials(header)


def test_credentials() -> None:
    # {"auth":"dGVzdHVzZXI6dGVzdHBhc3N3b3Jk"}
    found = credentials("eyJhdXRoIjoiZEdWemRIVnpaWEk2ZEdWemRIQmhjM04zYjNKayJ9")
    assert (found.username, found.password) == ("testuser", "testpassword")
