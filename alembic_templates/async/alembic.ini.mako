# How `alembic` finds the migrations and the database. What is commented out shows the default, or an example.
# All that can be set here: https://alembic.sqlalchemy.org/en/latest/tutorial.html#editing-the-ini-file
# A percent sign is written twice, but in %(here)s, the directory of this file.

[alembic]
# Where env.py and the migrations are.
script_location = ${script_location}

# The application's models are imported from here.
prepend_sys_path = .

# Separates several paths in one value: as the operating system does.
path_separator = os

# The environment variable DATABASE_URL wins over this one, so that no password has to be in a file.
sqlalchemy.url = postgresql+asyncpg://user:password@localhost/database

# Names of new files. With dates in front they sort by age.
# file_template = %%(rev)s_%%(slug)s
# file_template = %%(year)d_%%(month).2d_%%(day).2d_%%(hour).2d%%(minute).2d-%%(rev)s_%%(slug)s

# How much of the message is in the name of the file, in characters.
# truncate_slug_length = 40

# Time zone of the date in new files, such as UTC; the computer's own by default.
# timezone = UTC

# Directories of the migrations, when there are several, and whether those inside of them count.
# version_locations = %(here)s/migrations/versions
# recursive_version_locations = false

# Run env.py for `alembic revision` without --autogenerate as well.
# revision_environment = false


# What is done to each new file.
[post_write_hooks]
# hooks = ruff-check, ruff-format
# ruff-check.type = module
# ruff-check.module = ruff
# ruff-check.options = check --fix REVISION_SCRIPT_FILENAME
# ruff-format.type = module
# ruff-format.module = ruff
# ruff-format.options = format REVISION_SCRIPT_FILENAME


# Logging while `alembic` runs.
[loggers]
keys = root,sqlalchemy,alembic

[handlers]
keys = console

[formatters]
keys = generic

[logger_root]
level = WARNING
handlers = console
qualname =

# INFO shows the statements.
[logger_sqlalchemy]
level = WARNING
handlers =
qualname = sqlalchemy.engine

[logger_alembic]
level = INFO
handlers =
qualname = alembic

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic

[formatter_generic]
format = %(levelname)-5.5s [%(name)s] %(message)s
datefmt = %H:%M:%S
