"""Benchmarks of the store and the worker against bare psycopg: ``make bench``. pytest collects nothing here."""
