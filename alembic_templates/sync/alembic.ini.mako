# Settings of `alembic`. A line that is commented out shows the default or an example.
# All settings: https://alembic.sqlalchemy.org/en/latest/tutorial.html#editing-the-ini-file
# Write a percent sign twice, except in %(here)s, the directory of this file.

[alembic]
# The directory of env.py and the migrations.
script_location = ${script_location}

# The directory from which the application's models are imported.
prepend_sys_path = .

# Separator of several paths in one value: that of the operating system.
path_separator = os

# The environment variable DATABASE_URL overrides this URL. Use it to keep the password out of this file.
sqlalchemy.url = postgresql+psycopg://user:password@localhost/database

# Names of new files. With a date first, they are sorted by age.
# file_template = %%(rev)s_%%(slug)s
# file_template = %%(year)d_%%(month).2d_%%(day).2d_%%(hour).2d%%(minute).2d-%%(rev)s_%%(slug)s

# Maximum length of the message in a file name, in characters.
# truncate_slug_length = 40

# Time zone of the date in new files, such as UTC. The default is local time.
# timezone = UTC

# Directories of the migrations if there are several. recursive_version_locations includes their subdirectories.
# version_locations = %(here)s/migrations/versions
# recursive_version_locations = false

# Run env.py even for `alembic revision` without --autogenerate.
# revision_environment = false


# Commands to run on each new file.
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

# INFO logs the statements.
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
