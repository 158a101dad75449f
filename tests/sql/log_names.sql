-- statement
SELECT
  CAST(pg_catalog.pg_namespace.nspname AS TEXT) AS nspname,
  CAST(pg_catalog.pg_class.relname AS TEXT) AS relname,
  CAST(CURRENT_DATABASE() AS TEXT) AS current_database_1,
  CAST(CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000 AS BIGINT) AS TEXT) || '/' || COALESCE(
    CAST(CAST(EXTRACT(EPOCH FROM pg_stat_get_bgwriter_stat_reset_time()) * 1000000 AS BIGINT) AS TEXT),
    ''
  ) || '/' || CAST((
    SELECT
      pg_catalog.pg_database.oid
    FROM pg_catalog.pg_database
    WHERE
      pg_catalog.pg_database.datname = CURRENT_DATABASE()
  ) AS TEXT) AS anon_1
FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace
  ON pg_catalog.pg_namespace.oid = pg_catalog.pg_class.relnamespace
WHERE
  pg_catalog.pg_class.oid = CAST(CAST('events' AS REGCLASS) AS OID);
