"""Options, environment variables and the settings in the code."""

from __future__ import annotations

import dataclasses

import click
import pytest

from pupsourcing_sa.cli import _worker
from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._worker_settings import given_settings, replace_settings
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.config import default_text
from tests.fix_command import Result, root_logger, run_in_process

FIELDS = {field.name: field for field in dataclasses.fields(WorkerConfig)}
# These differ from the defaults and from one another, and are valid together.
VALUES = {name: 11 + number for number, name in enumerate(FIELDS)} | {
    "dispatcher": "poll", "poll_interval": 2.5, "retry_delay": 0.25, "heartbeat_interval": 1.5,
    "hide_parameters": False,
}  # fmt: skip


def parse(*arguments: str, **variables: object) -> click.Context:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(f"PUPSOURCING_{name.upper()}", str(value))
        return _worker.worker.make_context("worker", ["myapp:worker", *arguments])


def config(*arguments: str, code: WorkerConfig | None = None, **variables: object) -> WorkerConfig:
    return replace_settings(code or WorkerConfig(), given_settings(parse(*arguments, **variables)))


def worker(*arguments: str, **variables: object) -> Result:
    """Run the command for a module that does not exist: mistakes in settings are reported before that."""
    env = {f"PUPSOURCING_{name.upper()}": str(value) for name, value in variables.items()}
    return run_in_process("worker", "nowhere:worker", *arguments, env=env)


def test_every_field_is_an_option_and_a_variable():
    roomy = WorkerConfig(max_poll_interval=1e3, max_retry_delay=1e3, heartbeat_timeout=1e3)
    for name, value in VALUES.items():
        for found in (
            config("--" + name.replace("_", "-"), str(value), code=roomy),
            config(code=roomy, **{name: value}),
        ):
            assert found == dataclasses.replace(roomy, **{name: value})
            assert type(getattr(found, name)) is type(getattr(WorkerConfig(), name) or "")


def test_help_and_docstring_have_the_text_and_the_default_of_every_field():
    shown = " ".join(run_in_process("worker", "--help").stdout.split())
    documented = " ".join((WorkerConfig.__doc__ or "").split())
    for name, field in FIELDS.items():
        text = field.metadata["help"]
        default = "" if field.default is None else default_text(field.default)
        assert f"{text} [default: {default}]" in shown or (text in shown and not default)
        assert f"{name}: {text}" + (f" Default: {default}." if default else "") in documented
        assert f"{field.metadata['group']}: --" in shown


def test_options_take_precedence_over_variables_and_these_over_the_code():
    code = WorkerConfig(batch_size=1, concurrency=2, batch_time=3.0)
    found = config("--batch-size", "30", code=code, batch_size=20, concurrency=20)
    assert found == dataclasses.replace(code, batch_size=30, concurrency=20)


def test_an_empty_variable_is_unset():
    assert config(batch_size="", dispatcher="") == WorkerConfig()
    assert parse(discover="", processes="", log_level="", log_format="").params == parse().params


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", "many", "must be a whole number, not 'many'"),
        ("batch_size", "1.5", "must be a whole number, not '1.5'"),
        ("batch_size", "0", "must be from 1 to 2,147,483,647, not 0"),
        ("batch_size", "2147483648", "must be from 1 to 2,147,483,647, not 2147483648"),
        ("poll_interval", "soon", "must be a number of seconds, not 'soon'"),
        ("poll_interval", "nan", "must be a number of seconds greater than 0 and at most 1,000,000, not nan"),
        ("poll_interval", "0", "must be a number of seconds greater than 0 and at most 1,000,000, not 0"),
        ("poll_interval", "1e7", "must be a number of seconds greater than 0 and at most 1,000,000, not 1e7"),
        ("dispatcher", "push", "must be poll or notify, not 'push'"),
        ("hide_parameters", "no", "must be True or False, not 'no'"),
        ("processes", "two", "must be a whole number, not 'two'"),
        ("processes", "0", "must be a whole number, 1 or more, not 0"),
        ("log_format", "xml", "must be text or json, not 'xml'"),
        ("log_level", "loud", "must be debug, info, warning or error, not 'loud'"),
    ],
)
def test_a_value_that_is_refused(name: str, value: str, message: str):
    option, variable = "--" + name.replace("_", "-"), f"PUPSOURCING_{name.upper()}"
    hint = "Run 'pupsourcing-sa worker --help' for help.\n"
    assert worker(option, value) == (2, "", f"pupsourcing-sa: {option}: {message}\n{hint}")
    assert worker(**{name: value}) == (2, "", f"pupsourcing-sa: environment variable {variable}: {message}\n{hint}")


def test_settings_that_contradict_each_other():
    with pytest.raises(UsageError) as caught:
        config("--heartbeat-timeout", "3", heartbeat_interval=2)
    assert str(caught.value) == (
        "heartbeat_timeout must be at least twice heartbeat_interval, so that one late heartbeat is tolerated "
        "(given: PUPSOURCING_HEARTBEAT_INTERVAL=2.0, --heartbeat-timeout 3.0)"
    )


def test_a_switch():
    def discover(*arguments: str, **variables: object) -> object:
        return parse(*arguments, **variables).params["discover"]

    assert discover() is True
    assert discover("--no-discover") is False
    assert discover("--discover", discover="0") is True
    for text, expected in {"0": False, "no": False, "False": False, "off": False, "1": True, "YES": True}.items():
        assert discover(discover=text) is expected
    wrong = worker(discover="maybe")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("pupsourcing-sa: environment variable PUPSOURCING_DISCOVER: must be 0 or 1\n")


def test_a_node_gets_the_command_line_of_its_supervisor():
    arguments = ["--no-discover", "--log-format", "json", "--batch-size", "7", "--log-level", "debug"]
    with root_logger():  # parsing the option configures logging
        supervisor = parse("--processes", "3", *arguments)
        command = _worker._node_command(supervisor.meta["arguments"])(5)
        node = _worker.worker.make_context("worker", command[4:])
    assert command[1:4] == ["-m", "pupsourcing_sa", "worker"]
    assert node.params == supervisor.params | {"supervised_by": 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drain", "--processes", "2"], "--drain runs in one process. Leave out --processes"),
        (["--quiet", "--log-level", "info"], "--quiet is the same as --log-level warning. Leave out one of the two"),
    ],
)
def test_options_that_exclude_each_other(arguments: list[str], message: str):
    assert worker(*arguments) == (2, "", f"pupsourcing-sa: {message}\n")


def test_variables_that_an_option_overrides():
    for arguments, variables in ((["--drain"], {"processes": 2}), (["--quiet"], {"log_level": "debug"})):
        assert "there is no module 'nowhere'" in worker(*arguments, **variables).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wroker"], "pupsourcing-sa: there is no command 'wroker'. Did you mean worker?"),
        (["nothing"], "pupsourcing-sa: there is no command 'nothing'. Choose from worker, status, doctor,"),
        (["worker", "a:b", "--batchsize", "5"], "there is no option --batchsize; did you mean --batch-size"),
        (["worker", "a:b", "--batch-si", "5"], "there is no option --batch-si; did you mean --batch-size"),
        (["worker"], "pupsourcing-sa: missing argument MODULE:ATTRIBUTE\nRun 'pupsourcing-sa worker --help' for help."),
        (["worker", "a:b", "c:d"], "pupsourcing-sa: Got unexpected extra argument (c:d)"),
        (["worker", "a:b", "--batch-size"], "pupsourcing-sa: Option '--batch-size' requires an argument"),
        ([], "pupsourcing-sa: missing command\nRun 'pupsourcing-sa --help' for help."),
        (["--versoin"], "pupsourcing-sa: there is no option --versoin; did you mean --version?"),
    ],
)
def test_a_command_line_that_is_refused(arguments: list[str], message: str):
    result = run_in_process(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
