"""Options and environment variables for the settings of a worker.

They are derived from the fields of `WorkerConfig`: a new field adds an option, a variable and a line of ``--help``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._help import option
from pupsourcing_sa.cli._values import one_of, seconds, true_or_false, whole_number
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.config import default_text

__all__ = ["SettingValue", "given_settings", "replace_settings", "variable", "worker_settings"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class SettingValue(NamedTuple):
    """A value, and its source as the user wrote it: ``--batch-size 500``, or ``PUPSOURCING_BATCH_SIZE=500``."""

    value: Any
    source: str


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"PUPSOURCING_{name.upper()}"


def worker_settings(function: _Function) -> _Function:
    """Add an option for each field of `WorkerConfig`. The value of an option that is not given is None."""
    for field in reversed(dataclasses.fields(WorkerConfig)):
        parse, metavar = _parser(field)
        function = option(
            _option_name(field.name),
            group=field.metadata["group"],
            metavar=metavar,
            type=parse,
            envvar=variable(field.name),
            help=field.metadata["help"],
            default_text=None if field.default is None else default_text(field.default),
        )(function)
    return function


def given_settings(context: click.Context) -> dict[str, SettingValue]:
    """Return the settings that have an option on the command line or an environment variable."""
    found = {}
    for field in dataclasses.fields(WorkerConfig):
        value = context.params[field.name]
        if value is not None:
            is_variable = context.get_parameter_source(field.name) is ParameterSource.ENVIRONMENT
            name = f"{variable(field.name)}=" if is_variable else f"{_option_name(field.name)} "
            found[field.name] = SettingValue(value, f"{name}{value}")
    return found


def replace_settings(config: WorkerConfig, settings: Mapping[str, SettingValue]) -> WorkerConfig:
    """Return the application's config with the given settings.

    Raises:
        UsageError: two settings contradict each other.
    """
    try:
        return dataclasses.replace(config, **{name: setting.value for name, setting in settings.items()})
    except ValueError as error:
        sources = ", ".join(setting.source for setting in settings.values())
        raise UsageError(f"{error} (given: {sources})") from error


def _option_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parser(field: dataclasses.Field[Any]) -> tuple[Callable[[str], Any], str]:
    if "choices" in field.metadata:
        return one_of(*field.metadata["choices"]), "|".join(field.metadata["choices"])
    if field.type == "bool":
        return true_or_false, "True|False"
    if field.type == "int":
        return whole_number(1, field.metadata["max"]), "N"
    return seconds(field.metadata["max"]), "S"
