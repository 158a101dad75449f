"""What a deployment may set without touching the code: by options, or else by environment variables.

The settings of a worker are the fields of `WorkerConfig`, and what is said of them is what its documentation says: a
new field is an option, a variable and a line of ``--help`` without a line here.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from pupsourcing_sa.cli._usage import UsageError, count
from pupsourcing_sa.worker import WorkerConfig

__all__ = [
    "DISCOVER",
    "LOG_FORMAT",
    "PROCESSES",
    "Given",
    "Setting",
    "add_worker_settings",
    "changed",
    "given_arguments",
    "given_settings",
]

#: How the options of ``--help`` are grouped; a field that is in no group here is among the others.
_GROUPS = {
    "batches": ("batch_size", "batch_time", "concurrency"),
    "looking at the log": (
        "dispatcher",
        "poll_interval",
        "max_poll_interval",
        "reconcile_interval",
        "stall_warning",
    ),
    "nodes": ("heartbeat_interval", "heartbeat_timeout", "rebalance_interval"),
    "failures and shutdown": ("retry_delay", "max_retry_delay", "shutdown_timeout"),
}


class Given(NamedTuple):
    """A value, and where it was given: ``--batch-size 500``, or ``PUPSOURCING_BATCH_SIZE=500``."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value that an option gives, or else an environment variable.

    Attributes:
        name: ``batch_size`` is the option ``--batch-size`` and the variable ``PUPSOURCING_BATCH_SIZE``.
        parse: makes a value of a text, or raises `argparse.ArgumentTypeError` with "must be …".
        metavar: stands for the value in ``--help``; without one, the option is a switch, ``--discover`` or ``--no-…``.
        help: what it does.
    """

    name: str
    parse: Callable[[str], Any]
    metavar: str | None = None
    help: str

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return f"PUPSOURCING_{self.name.upper()}"

    def add_to(self, group: Any) -> None:
        """Add the option to a parser's group; ``None`` is what it has when it is not given."""
        if self.metavar is None:
            group.add_argument(self.option, dest=self.name, action=argparse.BooleanOptionalAction, help=self.help)
        else:
            group.add_argument(self.option, dest=self.name, type=self.parse, metavar=self.metavar, help=self.help)

    def given(self, options: argparse.Namespace, environment: Mapping[str, str]) -> Given | None:
        """What was given, the option first. An empty variable is an unset one: a compose file cannot say it otherwise.

        Raises:
            UsageError: the variable's value is wrong.
        """
        value = getattr(options, self.name)
        if value is not None:
            return Given(value, " ".join(self.arguments(value)))
        text = environment.get(self.variable)
        if not text:
            return None
        try:
            return Given(self.parse(text), f"{self.variable}={text}")
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"environment variable {self.variable}: {error}") from error

    def arguments(self, value: Any) -> list[str]:
        """The option with this value, as it is written on a command line."""
        if self.metavar is None:
            return [self.option if value else self.option.replace("--", "--no-", 1)]
        return [self.option, str(value)]


def add_worker_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `WorkerConfig`."""
    left = {setting.name: setting for setting in _worker_settings()}
    for title, names in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            left.pop(name).add_to(group)
    if left:
        others = parser.add_argument_group("other settings")
        for setting in left.values():
            setting.add_to(others)


def given_settings(options: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Given]:
    """Those fields of `WorkerConfig` that options or variables give.

    Raises:
        UsageError: the value of a variable is wrong.
    """
    found = {setting.name: setting.given(options, environment) for setting in _worker_settings()}
    return {name: given for name, given in found.items() if given is not None}


def given_arguments(options: argparse.Namespace) -> list[str]:
    """The options that were given, as a node of a supervisor gets them; variables it inherits."""
    settings = [DISCOVER, LOG_FORMAT, *_worker_settings()]
    values = [(setting, getattr(options, setting.name)) for setting in settings]
    return [word for setting, value in values if value is not None for word in setting.arguments(value)]


def changed(config: WorkerConfig, settings: Mapping[str, Given]) -> WorkerConfig:
    """The code's settings with what was given instead.

    Raises:
        UsageError: a value is impossible, or two do not go together.
    """
    try:
        return dataclasses.replace(config, **{name: given.value for name, given in settings.items()})
    except ValueError as error:
        sources = ", ".join(given.source for given in settings.values())
        raise UsageError(f"{error} (given: {sources})") from error


def _worker_settings() -> list[Setting]:
    types, documentation = get_type_hints(WorkerConfig), _documentation()
    settings = []
    for field in dataclasses.fields(WorkerConfig):
        parse, metavar = _parser_for(types[field.name])
        text = documentation.get(field.name, "")
        if field.default is not None:
            text = f"{text} Default: {field.default}.".lstrip()
        settings.append(Setting(name=field.name, parse=parse, metavar=metavar, help=text.replace("%", "%%")))
    return settings


def _documentation() -> dict[str, str]:
    """What `WorkerConfig` says of its attributes; nothing under ``python -OO``, which removes it."""
    _, _, attributes = (inspect.getdoc(WorkerConfig) or "").partition("\nAttributes:\n")
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()) for name, text in found}


def _parser_for(hint: Any) -> tuple[Callable[[str], Any], str]:
    if hint is int:
        return _whole_number, "N"
    if hint is float:
        return _seconds, "SECONDS"
    for each in (hint, *get_args(hint)):  # Literal, or Literal | None
        if get_origin(each) is Literal:
            return one_of(*get_args(each)), "|".join(get_args(each))
    raise NotImplementedError(f"WorkerConfig has a field of type {hint}, which cannot be given on a command line")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}") from None


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser of one of these words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be {' or '.join(choices)}, not {text!r}")
        return text

    return parse


def _processes(text: str) -> int:
    try:
        return count(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def _is_on(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return known[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"must be 1 or 0, not {text!r}") from None


PROCESSES = Setting(
    name="processes",
    parse=_processes,
    metavar="N",
    help="run N nodes, each a process of its own, under a supervisor that starts again those that crash (default: 1)",
)
DISCOVER = Setting(
    name="discover",
    parse=_is_on,
    help="also run the consumers that installed distributions offer as entry points of the group "
    "pupsourcing_sa.consumers (default: they run)",
)
LOG_FORMAT = Setting(
    name="log_format",
    parse=one_of("text", "json"),
    metavar="text|json",
    help="how to log, on standard error: lines of text, or one JSON object a line. Without it, an application that "
    "configures logging itself keeps its own, and others get text",
)
