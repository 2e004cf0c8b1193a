"""Image names: read and written as Docker does (cases from distribution/reference's own tests)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.engine.oci import reference
from skep.errors import Invalid, SkepError

SHA = "sha256:" + "0f" * 32


@pytest.mark.parametrize(
    ("text", "domain", "path", "tag", "digest", "familiar"),
    [
        ("nginx", "docker.io", "library/nginx", "", "", "nginx"),
        ("nginx:1.27", "docker.io", "library/nginx", "1.27", "", "nginx:1.27"),
        ("docker.io/nginx", "docker.io", "library/nginx", "", "", "nginx"),
        ("index.docker.io/library/nginx", "docker.io", "library/nginx", "", "", "nginx"),
        ("library/nginx", "docker.io", "library/nginx", "", "", "nginx"),
        ("library/a/b", "docker.io", "library/a/b", "", "", "library/a/b"),
        ("gihyodocker/echo:latest", "docker.io", "gihyodocker/echo", "latest", "", "gihyodocker/echo:latest"),
        ("registry:5000/example/echo", "registry:5000", "example/echo", "", "", "registry:5000/example/echo"),
        ("localhost/x", "localhost", "x", "", "", "localhost/x"),
        ("Upper/x", "Upper", "x", "", "", "Upper/x"),
        (f"nginx@{SHA}", "docker.io", "library/nginx", "", SHA, f"nginx@{SHA}"),
        (f"quay.io/a/b:1@{SHA}", "quay.io", "a/b", "1", SHA, f"quay.io/a/b:1@{SHA}"),
        ("[2001:db8::1]:5000/x:y", "[2001:db8::1]:5000", "x", "y", "", "[2001:db8::1]:5000/x:y"),
        ("a__b/c--d.e_f", "docker.io", "a__b/c--d.e_f", "", "", "a__b/c--d.e_f"),
        ("test:5000/repo", "test:5000", "repo", "", "", "test:5000/repo"),
        ("test:5000", "docker.io", "library/test", "5000", "", "test:5000"),
    ],
)
def test_a_name_is_read_and_written(text: str, domain: str, path: str, tag: str, digest: str, familiar: str) -> None:
    found = reference.parse(text)
    assert (found.domain, found.path, found.tag, found.digest) == (domain, path, tag, digest)
    assert found.familiar == familiar


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "invalid reference format"),
        (":1", "invalid reference format"),
        ("a b", "invalid reference format"),
        ("nginx:", "invalid reference format"),
        ("nginx\n", "invalid reference format"),
        ("a/", "invalid reference format"),
        ("-x", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("nginx:.1", "invalid reference format"),
        ("nginx:" + "a" * 129, "invalid reference format"),
        ("nginx@sha256:abc", "invalid reference format"),
        ("٣", "invalid reference format"),
        ("UPPER", "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ("UPPER:1", "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ("reg.io/A/b:1", "invalid reference format: repository name (A/b) must be lowercase"),
        ("a" * 64, f"invalid repository name ({'a' * 64}), cannot specify 64-byte hexadecimal strings"),
        ("reg.io/" + "a" * 256, "repository name must not be more than 255 characters"),
        ("nginx@sha256:" + "a" * 40, "invalid checksum digest length"),
        ("nginx@sha256:" + "A" * 64, "invalid checksum digest format"),
        ("nginx@md5:" + "a" * 32, "unsupported digest algorithm"),
        ("x" * 5000, "invalid reference format"),
    ],
)
def test_a_bad_name_is_refused_in_dockers_words(text: str, error: str) -> None:
    with pytest.raises(Invalid) as caught:
        reference.parse(text)
    assert caught.value.message == error
    assert caught.value.status == 400


def test_what_the_registry_is_asked_for() -> None:
    assert reference.parse("nginx").target == "latest"
    assert reference.parse("nginx").tagged().familiar == "nginx:latest"
    assert reference.parse("nginx:1").tagged().target == "1"
    assert reference.parse(f"nginx:1@{SHA}").target == SHA
    assert reference.parse(f"nginx@{SHA}").tagged().tag == ""


@given(st.text(alphabet="abcXYZ019.:/@_-[] \n", max_size=60))
def test_any_text_is_a_name_or_a_clear_refusal(text: str) -> None:
    try:
        found = reference.parse(text)
    except SkepError as error:
        assert error.message and "\n" not in error.message.replace(text, "")
        return
    assert reference.parse(found.familiar) == found
    assert reference.parse(found.full) == found
