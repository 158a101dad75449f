"""The layout of ``--help``: options in groups, then examples and exit statuses, in lines of up to 80 characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

__all__ = ["Command", "Group", "option"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Options that belong to no group, such as ``--help``.
_OTHER: Final = "Other"
#: Maximum width of the first column. Longer options have a line of their own.
_MAX_WIDTH: Final = 27


class Option(click.Option):
    """An option with a group and a default text for ``--help``.

    Args:
        group: title of the group in ``--help``.
        default_text: default to show in ``--help``.
    """

    def __init__(
        self,
        *declarations: Any,
        group: str = _OTHER,
        default_text: str | None = None,
        **options: Any,
    ) -> None:
        if default_text is not None:
            options["help"] += f"  [default: {default_text}]"
        super().__init__(*declarations, **options)
        self.group = group


def option(*declarations: str, **options: Any) -> Callable[[_Function], _Function]:
    """Add an option to a command. The arguments are those of `click.option` and of `Option`."""
    return click.option(*declarations, cls=Option, **options)


class _Sections(click.Command):
    """A command with sections in its help.

    Args:
        examples: command lines, shown without line breaks.
        exit_status: meaning of each exit status.
    """

    def __init__(
        self, *names: Any, examples: Sequence[str] = (), exit_status: Mapping[int, str] | None = None, **options: Any
    ) -> None:
        super().__init__(*names, **options)
        self.examples = examples
        self.exit_status = exit_status or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, in the order in which the groups are first used."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", _OTHER), []).append(record)
        groups |= {_OTHER: groups.pop(_OTHER)}
        width = min(max(len(names) for records in groups.values() for names, _ in records), _MAX_WIDTH)
        for title, records in groups.items():
            with formatter.section(title if len(groups) > 1 else "Options"):
                formatter.write_dl([(names.ljust(width), text) for names, text in records], col_max=_MAX_WIDTH)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the text at the end, the examples and the exit statuses."""
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        if self.exit_status:
            with formatter.section("Exit status"):
                formatter.write_dl([(f"{status:<3}", meaning) for status, meaning in self.exit_status.items()])


class Command(_Sections):
    """A command."""


class Group(_Sections, click.Group):
    """A group of commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order in which they were added."""
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)
