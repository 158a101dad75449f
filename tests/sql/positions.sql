-- blocking
SELECT
  CASE
    WHEN (
      CAST(pg_catalog.pg_locks.objid AS BIGINT) = 4294967295
    )
    THEN 0
    ELSE issued.position - (
      (
        issued.position - CAST(pg_catalog.pg_locks.objid AS BIGINT)
      ) & 2147483647
    )
  END AS mark,
  pg_catalog.pg_locks.pid,
  pg_catalog.pg_prepared_xacts.gid,
  COALESCE(pg_catalog.pg_stat_activity.usename, pg_catalog.pg_prepared_xacts.owner) AS "user",
  pg_catalog.pg_stat_activity.application_name,
  COALESCE(
    pg_catalog.pg_stat_activity.state,
    CASE WHEN (
      pg_catalog.pg_prepared_xacts.gid IS NOT NULL
    ) THEN 'prepared' END
  ) AS state,
  CAST(EXTRACT(EPOCH FROM clock_timestamp() - COALESCE(pg_catalog.pg_stat_activity.xact_start, pg_catalog.pg_prepared_xacts.prepared)) AS DECIMAL) AS age,
  CASE
    WHEN (
      pg_catalog.pg_stat_activity.state IS NOT NULL
    )
    THEN pg_catalog.pg_stat_activity.query
  END AS query
FROM (
  SELECT
    COALESCE(
      pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)),
      COALESCE((
        SELECT
          MAX(events.global_position) AS max_1
        FROM events
      ), 0)
    ) AS position,
    pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) AS last_issued,
    COALESCE((
      SELECT
        MAX(events.global_position) AS max_1
      FROM events
    ), 0) AS in_log,
    has_sequence_privilege(
      CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS),
      'USAGE, SELECT'
    ) AS is_readable,
    (
      SELECT
        pg_catalog.pg_sequence.seqcache = 1
        AND pg_catalog.pg_sequence.seqincrement > 0
        AND NOT pg_catalog.pg_sequence.seqcycle AS anon_1
      FROM pg_catalog.pg_sequence
      WHERE
        pg_catalog.pg_sequence.seqrelid = CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)
    ) AS is_in_order
) AS issued
JOIN pg_catalog.pg_locks
  ON pg_catalog.pg_locks.locktype = 'advisory'
  AND pg_catalog.pg_locks.database = (
    SELECT
      pg_catalog.pg_database.oid
    FROM pg_catalog.pg_database
    WHERE
      pg_catalog.pg_database.datname = CURRENT_DATABASE()
  )
  AND pg_catalog.pg_locks.classid = CAST(CAST('events' AS REGCLASS) AS OID)
  AND pg_catalog.pg_locks.objsubid = 2
  AND (
    CAST(pg_catalog.pg_locks.objid AS BIGINT) = 4294967295
    OR (
      issued.position - CAST(pg_catalog.pg_locks.objid AS BIGINT)
    ) & 2147483647 < 1073741824
  )
LEFT OUTER JOIN pg_catalog.pg_stat_activity
  ON pg_catalog.pg_stat_activity.pid = pg_catalog.pg_locks.pid
LEFT OUTER JOIN pg_catalog.pg_locks AS own
  ON pg_catalog.pg_locks.pid IS NULL
  AND own.pid IS NULL
  AND own.locktype = 'transactionid'
  AND own.virtualtransaction = pg_catalog.pg_locks.virtualtransaction
LEFT OUTER JOIN pg_catalog.pg_prepared_xacts
  ON pg_catalog.pg_prepared_xacts.transaction = own.transactionid
ORDER BY
  CASE
    WHEN (
      CAST(pg_catalog.pg_locks.objid AS BIGINT) = 4294967295
    )
    THEN 0
    ELSE issued.position - (
      (
        issued.position - CAST(pg_catalog.pg_locks.objid AS BIGINT)
      ) & 2147483647
    )
  END,
  pg_catalog.pg_locks.pid;

-- last_issued
SELECT
  pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) AS last_issued;

-- replicated
SELECT
  EXISTS(
    SELECT
      *
    FROM pg_catalog.pg_subscription_rel
    WHERE
      pg_catalog.pg_subscription_rel.srrelid = CAST(CAST('events' AS REGCLASS) AS OID)
      OR pg_catalog.pg_subscription_rel.srrelid IN (
        SELECT
          pg_catalog.pg_inherits.inhrelid
        FROM pg_catalog.pg_inherits
        WHERE
          pg_catalog.pg_inherits.inhparent = CAST(CAST('events' AS REGCLASS) AS OID)
      )
  ) AS is_replicated;

-- sequence
SELECT
  CAST(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS) AS TEXT) AS name,
  has_sequence_privilege(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS), 'SELECT') AS is_readable;

-- server_identity
SELECT
  CAST(CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000 AS BIGINT) AS TEXT) || '/' || COALESCE(
    CAST(CAST(EXTRACT(EPOCH FROM pg_stat_get_bgwriter_stat_reset_time()) * 1000000 AS BIGINT) AS TEXT),
    ''
  ) || '/' || CAST((
    SELECT
      pg_catalog.pg_database.oid
    FROM pg_catalog.pg_database
    WHERE
      pg_catalog.pg_database.datname = CURRENT_DATABASE()
  ) AS TEXT) AS anon_1;

-- stable
SELECT
  LEAST(
    issued.in_log,
    (
      SELECT
        MIN(
          CASE
            WHEN (
              CAST(pg_catalog.pg_locks.objid AS BIGINT) = 4294967295
            )
            THEN 0
            ELSE issued.position - (
              (
                issued.position - CAST(pg_catalog.pg_locks.objid AS BIGINT)
              ) & 2147483647
            )
          END
        ) AS min_1
      FROM pg_catalog.pg_locks
      WHERE
        pg_catalog.pg_locks.locktype = 'advisory'
        AND pg_catalog.pg_locks.database = (
          SELECT
            pg_catalog.pg_database.oid
          FROM pg_catalog.pg_database
          WHERE
            pg_catalog.pg_database.datname = CURRENT_DATABASE()
        )
        AND pg_catalog.pg_locks.classid = CAST(CAST('events' AS REGCLASS) AS OID)
        AND pg_catalog.pg_locks.objsubid = 2
        AND (
          CAST(pg_catalog.pg_locks.objid AS BIGINT) = 4294967295
          OR (
            issued.position - CAST(pg_catalog.pg_locks.objid AS BIGINT)
          ) & 2147483647 < 1073741824
        )
    )
  ) AS stable,
  issued.in_log AS last,
  issued.is_readable,
  issued.is_in_order,
  issued.last_issued,
  EXISTS(
    SELECT
      *
    FROM pg_catalog.pg_subscription_rel
    WHERE
      pg_catalog.pg_subscription_rel.srrelid = CAST(CAST('events' AS REGCLASS) AS OID)
      OR pg_catalog.pg_subscription_rel.srrelid IN (
        SELECT
          pg_catalog.pg_inherits.inhrelid
        FROM pg_catalog.pg_inherits
        WHERE
          pg_catalog.pg_inherits.inhparent = CAST(CAST('events' AS REGCLASS) AS OID)
      )
  ) AS is_replicated,
  current_setting('transaction_isolation') AS isolation,
  pg_is_in_recovery() AS is_in_recovery,
  CAST(CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000 AS BIGINT) AS TEXT) || '/' || COALESCE(
    CAST(CAST(EXTRACT(EPOCH FROM pg_stat_get_bgwriter_stat_reset_time()) * 1000000 AS BIGINT) AS TEXT),
    ''
  ) || '/' || CAST((
    SELECT
      pg_catalog.pg_database.oid
    FROM pg_catalog.pg_database
    WHERE
      pg_catalog.pg_database.datname = CURRENT_DATABASE()
  ) AS TEXT) AS server_identity
FROM (
  SELECT
    COALESCE(
      pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)),
      COALESCE((
        SELECT
          MAX(events.global_position) AS max_1
        FROM events
      ), 0)
    ) AS position,
    pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) AS last_issued,
    COALESCE((
      SELECT
        MAX(events.global_position) AS max_1
      FROM events
    ), 0) AS in_log,
    has_sequence_privilege(
      CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS),
      'USAGE, SELECT'
    ) AS is_readable,
    (
      SELECT
        pg_catalog.pg_sequence.seqcache = 1
        AND pg_catalog.pg_sequence.seqincrement > 0
        AND NOT pg_catalog.pg_sequence.seqcycle AS anon_1
      FROM pg_catalog.pg_sequence
      WHERE
        pg_catalog.pg_sequence.seqrelid = CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)
    ) AS is_in_order
) AS issued;
