"""Options, environment variables and the code's settings."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from pupsourcing_sa.cli import _parser
from pupsourcing_sa.cli._settings import _GROUPS, DISCOVER, PROCESSES, changed, given_arguments, given_settings
from pupsourcing_sa.cli._usage import UsageError
from pupsourcing_sa.cli._worker import _node_command
from pupsourcing_sa.worker import WorkerConfig

FIELDS = [field.name for field in dataclasses.fields(WorkerConfig)]
# Different from the defaults, and from one another; they go together.
VALUES = {name: 11 + number for number, name in enumerate(FIELDS)} | {
    "dispatcher": "poll", "poll_interval": 2.5, "retry_delay": 0.25, "heartbeat_interval": 1.5,
}  # fmt: skip


def parse(*arguments: str) -> argparse.Namespace:
    return _parser().parse_args(["worker", "myapp:worker", *arguments])


def config(*arguments: str, code: WorkerConfig | None = None, **environment: object) -> WorkerConfig:
    variables = {f"PUPSOURCING_{name.upper()}": str(value) for name, value in environment.items()}
    return changed(code or WorkerConfig(), given_settings(parse(*arguments), variables))


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_an_option_and_a_variable(name: str):
    option, value = "--" + name.replace("_", "-"), str(VALUES[name])
    roomy = WorkerConfig(max_poll_interval=1e3, max_retry_delay=1e3, heartbeat_timeout=1e3)
    for found in (config(option, value, code=roomy), config(code=roomy, **{name: value})):
        assert found == dataclasses.replace(roomy, **{name: VALUES[name]})
        assert type(getattr(found, name)) is type(getattr(WorkerConfig(), name) or "")


def test_every_field_has_a_place_in_the_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert sorted(name for names in _GROUPS.values() for name in names) == sorted(FIELDS)
    monkeypatch.setenv("COLUMNS", "1000")  # a paragraph is a line
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    for field in dataclasses.fields(WorkerConfig):
        _, _, after = shown.partition(f"\n  --{field.name.replace('_', '-')} ")
        text, _, _ = after.partition("\n  --")
        assert len(text.split()) > 3, "there is something to read"
        assert field.default is None or f"Default: {field.default}.\n" in f"{text}\n"
    assert "`" not in shown


def test_options_win_over_variables_and_these_over_the_code():
    code = WorkerConfig(batch_size=1, concurrency=2, batch_time=3.0)
    found = config("--batch-size", "30", code=code, batch_size=20, concurrency=20)
    assert found == dataclasses.replace(code, batch_size=30, concurrency=20)


def test_an_empty_variable_is_unset():
    assert config(batch_size="", dispatcher="") == WorkerConfig()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", "many", "must be a whole number, not 'many'"),
        ("batch_size", "1.5", "must be a whole number, not '1.5'"),
        ("poll_interval", "soon", "must be a number of seconds, not 'soon'"),
        ("dispatcher", "push", "must be poll or notify, not 'push'"),
        ("processes", "two", "must be a whole number, not 'two'"),
        ("processes", "0", "must be 1 or more"),
        ("log_format", "xml", "must be text or json, not 'xml'"),
    ],
)
def test_a_text_that_is_no_value(name: str, value: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    option, variable = "--" + name.replace("_", "-"), f"PUPSOURCING_{name.upper()}"
    with pytest.raises(SystemExit) as exited:
        parse(option, value)
    assert exited.value.code == 2
    assert f"argument {option}: {message}" in capsys.readouterr().err
    monkeypatch.setenv(variable, value)
    options = parse()
    with pytest.raises(UsageError, match=f"^environment variable {variable}: {message}$"):
        options.call(options)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--batch-size", "0"], {}, "batch_size must be between 1 and 2147483647, not 0 (given: --batch-size 0)"),
        (
            [],
            {"poll_interval": "nan"},
            "poll_interval must be greater than 0 and at most 1,000,000 seconds, not nan (given: ",
        ),
        (
            ["--heartbeat-timeout", "3"],
            {"heartbeat_interval": 2},
            "heartbeat_timeout must be at least twice heartbeat_interval: one late beat is not a death "
            "(given: PUPSOURCING_HEARTBEAT_INTERVAL=2, --heartbeat-timeout 3.0)",
        ),
    ],
)
def test_an_impossible_value(arguments: list[str], environment: dict[str, object], message: str):
    with pytest.raises(UsageError) as caught:
        config(*arguments, **environment)
    assert str(caught.value).startswith(message)


def test_a_switch():
    def discover(*arguments: str, **environment: str) -> object:
        given = DISCOVER.given(parse(*arguments), environment)
        return given and given.value

    assert discover() is None
    assert discover("--no-discover") is False
    assert discover("--discover", PUPSOURCING_DISCOVER="0") is True
    for text, expected in {"0": False, "no": False, "False": False, "off": False, "1": True, "YES": True}.items():
        assert discover(PUPSOURCING_DISCOVER=text) is expected
    with pytest.raises(UsageError, match="environment variable PUPSOURCING_DISCOVER: must be 1 or 0, not 'maybe'"):
        discover(PUPSOURCING_DISCOVER="maybe")


def test_a_node_gets_the_options_of_its_supervisor():
    arguments = ["--no-discover", "--log-format", "json", "--batch-size", "7", "--poll-interval", "0.001", "--quiet"]
    options = parse("--processes", "3", *arguments)
    assert sorted(given_arguments(options)) == sorted(arguments[:-1])
    node = _parser().parse_args([*_node_command(options)[3:], "5"])
    assert vars(node) == vars(options) | {"processes": None, "supervised_by": 5}


def test_a_drain_is_one_process(monkeypatch: pytest.MonkeyPatch):
    options = parse("--drain", "--processes", "2")
    with pytest.raises(UsageError, match="--drain runs in one process; leave out --processes"):
        options.call(options)
    assert PROCESSES.given(parse("--processes", "1"), {"PUPSOURCING_PROCESSES": "4"}).value == 1


def test_an_option_is_written_in_full(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("--batch-si", "5")
    assert "unrecognized arguments" in capsys.readouterr().err
