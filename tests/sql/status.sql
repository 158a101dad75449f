-- locked
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
  pg_stat_clear_snapshot() AS cleared
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
  AND NOT (
    EXISTS(
      SELECT
        *
      FROM consumer_assignments
      WHERE
        consumer_assignments.consumer_name = held.consumer_name
        AND consumer_assignments.partition = held.partition
        AND pg_catalog.pg_stat_activity.application_name = (
          'pupsourcing-sa ' || CAST(consumer_assignments.worker_id AS TEXT)
        )
    )
  );

-- log
SELECT
  timestamptz_send(clock_timestamp()) AS taken_at,
  COALESCE((
    SELECT
      MAX(events.global_position) AS max_1
    FROM events
  ), 0) AS last_position,
  pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) AS last_issued,
  COALESCE(
    (
      SELECT
        CASE
          WHEN isfinite(events.created_at)
          THEN GREATEST(CAST(EXTRACT(EPOCH FROM clock_timestamp() - events.created_at) AS DECIMAL), 0)
          ELSE 0
        END AS anon_1
      FROM events
      WHERE
        events.global_position > CAST(%(stable)s AS BIGINT)
      ORDER BY
        events.global_position
      LIMIT 1
    ),
    0
  ) AS waiting,
  pg_stat_clear_snapshot() AS cleared;

-- nodes
SELECT
  worker_nodes.worker_id,
  worker_nodes.hostname,
  worker_nodes.pid,
  worker_nodes.consumers,
  timestamptz_send(worker_nodes.created_at) AS started_at,
  GREATEST(
    CAST(EXTRACT(EPOCH FROM clock_timestamp() - worker_nodes.heartbeat_at) AS DECIMAL),
    0
  ) AS heartbeat_age,
  jsonb_extract_path_text(worker_nodes.running, 'batches') AS batches
FROM worker_nodes
ORDER BY
  worker_nodes.created_at,
  worker_nodes.worker_id;

-- partitions
WITH pupsourcing_partitions AS (
  SELECT
    COALESCE(consumer_assignments.consumer_name, consumer_checkpoints.consumer_name) AS consumer_name,
    COALESCE(consumer_assignments.partition, consumer_checkpoints.partition) AS partition,
    consumer_assignments.partition IS NOT NULL AS is_assigned,
    consumer_assignments.worker_id AS worker_id,
    COALESCE(consumer_checkpoints.last_position, 0) AS position,
    COALESCE(consumer_checkpoints.attempts, 0) AS attempts,
    COALESCE(consumer_checkpoints.deaths, 0) AS deaths,
    consumer_checkpoints.failed_position AS failed_position,
    consumer_checkpoints.error AS error,
    timestamptz_send(consumer_checkpoints.failed_at) AS failed_at,
    timestamptz_send(consumer_checkpoints.retry_at) AS retry_at,
    timestamptz_send(consumer_checkpoints.parked_at) AS parked_at
  FROM consumer_assignments
  FULL OUTER JOIN consumer_checkpoints
    ON consumer_assignments.consumer_name = consumer_checkpoints.consumer_name
    AND consumer_assignments.partition = consumer_checkpoints.partition
  WHERE
    COALESCE(consumer_assignments.log, consumer_checkpoints.log, CAST(%(own_log)s AS VARCHAR)) = CAST(%(own_log)s AS VARCHAR)
), pupsourcing_reached AS (
  SELECT
    pupsourcing_partitions.position AS position,
    LEAD(pupsourcing_partitions.position, 1, 9223372036854775807) OVER (ORDER BY pupsourcing_partitions.position) AS following
  FROM pupsourcing_partitions
  GROUP BY
    pupsourcing_partitions.position
), pupsourcing_lag AS (
  SELECT
    pupsourcing_reached.position AS position,
    CAST(SUM(
      (
        SELECT
          COUNT(*) AS count_1
        FROM (
          SELECT
            1 AS one
          FROM events
          WHERE
            events.global_position > pupsourcing_reached.position
            AND events.global_position <= pupsourcing_reached.following
          ORDER BY
            events.global_position
          LIMIT (
            SELECT
              CAST(%(max_counted)s AS BIGINT) AS anon_1
          )
        ) AS "between"
      )
    ) OVER (ORDER BY pupsourcing_reached.position DESC) AS BIGINT) AS lag_events,
    COALESCE(
      (
        SELECT
          CASE
            WHEN isfinite(events.created_at)
            THEN GREATEST(CAST(EXTRACT(EPOCH FROM clock_timestamp() - events.created_at) AS DECIMAL), 0)
            ELSE 0
          END AS anon_2
        FROM events
        WHERE
          events.global_position > pupsourcing_reached.position
        ORDER BY
          events.global_position
        LIMIT 1
      ),
      0
    ) AS lag_seconds
  FROM pupsourcing_reached
)
SELECT
  pupsourcing_partitions.consumer_name,
  pupsourcing_partitions.partition,
  pupsourcing_partitions.is_assigned,
  pupsourcing_partitions.worker_id,
  pupsourcing_partitions.position,
  pupsourcing_partitions.attempts,
  pupsourcing_partitions.deaths,
  pupsourcing_partitions.failed_position,
  pupsourcing_partitions.error,
  pupsourcing_partitions.failed_at,
  pupsourcing_partitions.retry_at,
  pupsourcing_partitions.parked_at,
  pupsourcing_lag.lag_events,
  pupsourcing_lag.lag_seconds,
  failed.event_id,
  failed.event_type
FROM pupsourcing_partitions
JOIN pupsourcing_lag
  ON pupsourcing_lag.position = pupsourcing_partitions.position
LEFT OUTER JOIN LATERAL (
  SELECT
    events.event_id AS event_id,
    events.event_type AS event_type
  FROM events
  WHERE
    events.global_position = pupsourcing_partitions.failed_position
  LIMIT 1
) AS failed
  ON TRUE
ORDER BY
  pupsourcing_partitions.consumer_name,
  pupsourcing_partitions.partition;
