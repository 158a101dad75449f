"""How fast the store is beside bare psycopg: ``make bench``. pytest collects nothing here."""
