"""skepd's settings: flags win over the file, the file over the defaults; what cannot be used is said in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from skep import config
from skep.config import BadSetting, Settings


def load(*argv: str) -> Settings:
    return config.load(argv, default="/nowhere/none.toml")


def written(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "skepd.toml"
    file.write_text(text)
    return ["--config", str(file)]


def test_defaults() -> None:
    assert load() == Settings()


def test_every_setting_has_a_flag_with_its_default_in_the_help() -> None:
    shown = " ".join(config.parser().format_help().split())
    for field in dataclasses.fields(Settings):
        default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
        assert f"--{field.name.replace('_', '-')} " in shown
        assert field.metadata["help"].split(";")[0].split(":")[0] in shown
        assert f"(default: {default or 'none'})" in shown


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = written(tmp_path, 'runtime = "runc"\nhostname = "from-file"\ninsecure-registry = ["a:5000", "b:5000"]\n')
    settings = load(*file, "--hostname", "from-flag", "--label", "a=b", "--label", "c=d")
    assert (settings.runtime, settings.hostname) == ("runc", "from-flag")
    assert settings.insecure_registry == ("a:5000", "b:5000")
    assert settings.label == ("a=b", "c=d")
    assert settings.log_level == "info"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runtim = 'runc'", "unknown setting 'runtim'; known are: "),
        ("runtime = 'docker'", "runtime = 'docker': must be one of auto, crun, runc"),
        ("hostname = 5", 'hostname must be a string, write hostname = "5"'),
        ("label = 'a=b'", "label must be an array of strings"),
        ("label = [1]", "label must be an array of strings"),
        ("a b", "not TOML: "),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_what(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadSetting) as caught:
        load(*written(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "skepd.toml")) and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config", "/nowhere/skepd.toml"], "/nowhere/skepd.toml: No such file or directory"),
        (["--data-root", "data"], "data_root = 'data': must be an absolute path"),
        (["--host", "tcp://0.0.0.0:2375"], "host = 'tcp://0.0.0.0:2375': TCP is served with mutual TLS only: set tlscert to a file"),
        (["--host", "tcp://localhost:2376"], "host = 'tcp://localhost:2376': must be tcp://ADDRESS:PORT"),
        (["--host", "tcp://0.0.0.0:99999"], "host = 'tcp://0.0.0.0:99999': must be tcp://ADDRESS:PORT"),
        (["--host", "unix://relative"], "host = 'unix://relative': must be unix:///PATH"),
        (["--host", "unix:///" + "x" * 120], "a socket's path may have 107 characters"),
        (["--label", "nothing"], "'nothing': must be KEY=VALUE"),
        (["--generic-resource", "gpu"], "'gpu': must be KEY=VALUE"),
    ],
)
def test_a_flag_that_cannot_be_used(flags: list[str], said: str) -> None:
    with pytest.raises(BadSetting, match="^[^\n]*$") as caught:
        load(*flags)
    assert said in str(caught.value)
