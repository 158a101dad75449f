-- checkpoint_locks
WITH pupsourcing_locks AS MATERIALIZED (
  SELECT
    pg_catalog.pg_locks.locktype AS locktype,
    pg_catalog.pg_locks.database AS database,
    pg_catalog.pg_locks.relation AS relation,
    pg_catalog.pg_locks.classid AS classid,
    pg_catalog.pg_locks.objid AS objid,
    pg_catalog.pg_locks.objsubid AS objsubid,
    pg_catalog.pg_locks.transactionid AS transactionid,
    pg_catalog.pg_locks.virtualtransaction AS virtualtransaction,
    pg_catalog.pg_locks.pid AS pid,
    pg_catalog.pg_locks.mode AS mode,
    pg_catalog.pg_locks.granted AS granted
  FROM pg_catalog.pg_locks
  WHERE
    pg_catalog.pg_locks.granted
)
SELECT
  held.consumer_name,
  held.partition,
  GREATEST(CAST(EXTRACT(EPOCH FROM clock_timestamp() - held.updated_at) AS DECIMAL), 0) AS unmoved,
  own.virtualtransaction AS transaction,
  own.pid,
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
FROM consumer_checkpoints AS held
JOIN pupsourcing_locks AS own
  ON own.transactionid = held.xmax
LEFT OUTER JOIN pg_catalog.pg_stat_activity
  ON pg_catalog.pg_stat_activity.pid = own.pid
LEFT OUTER JOIN pg_catalog.pg_prepared_xacts
  ON own.pid IS NULL AND own.transactionid = pg_catalog.pg_prepared_xacts.transaction
WHERE
  own.locktype = 'transactionid'
  AND own.mode = 'ExclusiveLock'
  AND (
    EXISTS(
      SELECT
        *
      FROM pupsourcing_locks AS touched
      WHERE
        touched.locktype = 'relation'
        AND touched.database = (
          SELECT
            pg_catalog.pg_database.oid
          FROM pg_catalog.pg_database
          WHERE
            pg_catalog.pg_database.datname = CURRENT_DATABASE()
        )
        AND touched.relation = CAST(CAST('consumer_checkpoints' AS REGCLASS) AS OID)
        AND touched.mode IN ('RowShareLock', 'RowExclusiveLock')
        AND touched.virtualtransaction = own.virtualtransaction
        AND touched.pid IS NOT DISTINCT FROM own.pid
    )
  )
  AND (
    pg_catalog.pg_stat_activity.pid IS NOT NULL
    OR pg_catalog.pg_prepared_xacts.gid IS NOT NULL
  );

-- find
WITH pupsourcing_locks AS MATERIALIZED (
  SELECT
    pg_catalog.pg_locks.locktype AS locktype,
    pg_catalog.pg_locks.database AS database,
    pg_catalog.pg_locks.relation AS relation,
    pg_catalog.pg_locks.classid AS classid,
    pg_catalog.pg_locks.objid AS objid,
    pg_catalog.pg_locks.objsubid AS objsubid,
    pg_catalog.pg_locks.transactionid AS transactionid,
    pg_catalog.pg_locks.virtualtransaction AS virtualtransaction,
    pg_catalog.pg_locks.pid AS pid,
    pg_catalog.pg_locks.mode AS mode,
    pg_catalog.pg_locks.granted AS granted
  FROM pg_catalog.pg_locks
  WHERE
    pg_catalog.pg_locks.granted
)
SELECT
  held.consumer_name,
  held.partition,
  GREATEST(CAST(EXTRACT(EPOCH FROM clock_timestamp() - held.updated_at) AS DECIMAL), 0) AS unmoved,
  own.virtualtransaction AS transaction,
  own.pid,
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
  END AS query,
  FALSE AS is_terminated
FROM consumer_checkpoints AS held
JOIN pupsourcing_locks AS own
  ON own.transactionid = held.xmax
LEFT OUTER JOIN pg_catalog.pg_stat_activity
  ON pg_catalog.pg_stat_activity.pid = own.pid
LEFT OUTER JOIN pg_catalog.pg_prepared_xacts
  ON own.pid IS NULL AND own.transactionid = pg_catalog.pg_prepared_xacts.transaction
WHERE
  own.locktype = 'transactionid'
  AND own.mode = 'ExclusiveLock'
  AND (
    EXISTS(
      SELECT
        *
      FROM pupsourcing_locks AS touched
      WHERE
        touched.locktype = 'relation'
        AND touched.database = (
          SELECT
            pg_catalog.pg_database.oid
          FROM pg_catalog.pg_database
          WHERE
            pg_catalog.pg_database.datname = CURRENT_DATABASE()
        )
        AND touched.relation = CAST(CAST('consumer_checkpoints' AS REGCLASS) AS OID)
        AND touched.mode IN ('RowShareLock', 'RowExclusiveLock')
        AND touched.virtualtransaction = own.virtualtransaction
        AND touched.pid IS NOT DISTINCT FROM own.pid
    )
  )
  AND (
    pg_catalog.pg_stat_activity.pid IS NOT NULL
    OR pg_catalog.pg_prepared_xacts.gid IS NOT NULL
  )
  AND held.consumer_name = 'orders'
  AND held.partition = 0;

-- find_and_terminate
WITH pupsourcing_locks AS MATERIALIZED (
  SELECT
    pg_catalog.pg_locks.locktype AS locktype,
    pg_catalog.pg_locks.database AS database,
    pg_catalog.pg_locks.relation AS relation,
    pg_catalog.pg_locks.classid AS classid,
    pg_catalog.pg_locks.objid AS objid,
    pg_catalog.pg_locks.objsubid AS objsubid,
    pg_catalog.pg_locks.transactionid AS transactionid,
    pg_catalog.pg_locks.virtualtransaction AS virtualtransaction,
    pg_catalog.pg_locks.pid AS pid,
    pg_catalog.pg_locks.mode AS mode,
    pg_catalog.pg_locks.granted AS granted
  FROM pg_catalog.pg_locks
  WHERE
    pg_catalog.pg_locks.granted
)
SELECT
  held.consumer_name,
  held.partition,
  GREATEST(CAST(EXTRACT(EPOCH FROM clock_timestamp() - held.updated_at) AS DECIMAL), 0) AS unmoved,
  own.virtualtransaction AS transaction,
  own.pid,
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
  END AS query,
  CASE
    WHEN (
      pg_catalog.pg_stat_activity.application_name ~ '^pupsourcing-sa [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
      AND NOT (
        EXISTS(
          SELECT
            *
          FROM worker_nodes
          WHERE
            pg_catalog.pg_stat_activity.application_name = (
              'pupsourcing-sa ' || CAST(worker_nodes.worker_id AS TEXT)
            )
        )
      )
    )
    THEN pg_terminate_backend(own.pid)
    ELSE FALSE
  END AS is_terminated
FROM consumer_checkpoints AS held
JOIN pupsourcing_locks AS own
  ON own.transactionid = held.xmax
LEFT OUTER JOIN pg_catalog.pg_stat_activity
  ON pg_catalog.pg_stat_activity.pid = own.pid
LEFT OUTER JOIN pg_catalog.pg_prepared_xacts
  ON own.pid IS NULL AND own.transactionid = pg_catalog.pg_prepared_xacts.transaction
WHERE
  own.locktype = 'transactionid'
  AND own.mode = 'ExclusiveLock'
  AND (
    EXISTS(
      SELECT
        *
      FROM pupsourcing_locks AS touched
      WHERE
        touched.locktype = 'relation'
        AND touched.database = (
          SELECT
            pg_catalog.pg_database.oid
          FROM pg_catalog.pg_database
          WHERE
            pg_catalog.pg_database.datname = CURRENT_DATABASE()
        )
        AND touched.relation = CAST(CAST('consumer_checkpoints' AS REGCLASS) AS OID)
        AND touched.mode IN ('RowShareLock', 'RowExclusiveLock')
        AND touched.virtualtransaction = own.virtualtransaction
        AND touched.pid IS NOT DISTINCT FROM own.pid
    )
  )
  AND (
    pg_catalog.pg_stat_activity.pid IS NOT NULL
    OR pg_catalog.pg_prepared_xacts.gid IS NOT NULL
  )
  AND held.consumer_name = 'orders'
  AND held.partition = 0;

-- ask_if_lost
SELECT
  1;

-- limit_transaction
SELECT
  set_config('lock_timeout', '500', TRUE) AS set_config_1;
