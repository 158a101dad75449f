# All that can be set here: https://alembic.sqlalchemy.org/en/latest/tutorial.html#editing-the-ini-file

[alembic]
# Where env.py and the migrations are; %(here)s is the directory of this file.
script_location = ${script_location}

# The application's models are imported from here.
prepend_sys_path = .

# Separates several paths in one value: as the operating system does.
path_separator = os

# The environment variable DATABASE_URL wins over this one, so that no password has to be in a file.
# A percent sign is written twice here, once there.
sqlalchemy.url = postgresql+psycopg://user:password@localhost/database


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
