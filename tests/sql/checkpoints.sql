-- adopt
UPDATE consumer_checkpoints SET log = COALESCE(consumer_checkpoints.log, CAST(%(own_log)s AS VARCHAR)), partitions = COALESCE(consumer_checkpoints.partitions, CAST(%(own_partitions)s AS INT))
WHERE
  consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
  AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT);

-- create
INSERT INTO consumer_checkpoints (
  consumer_name,
  partition,
  log,
  partitions,
  start_position,
  last_position
)
SELECT
  CAST(%(own_consumer)s AS VARCHAR) AS anon_1,
  CAST(%(own_partition)s AS INT) AS anon_2,
  CAST(%(own_log)s AS VARCHAR) AS anon_3,
  CAST(%(own_partitions)s AS INT) AS anon_4,
  CAST(%(own_start)s AS BIGINT) AS anon_5,
  COALESCE(CAST(%(own_start)s AS BIGINT), 0) AS coalesce_1
WHERE
  NOT (
    EXISTS(
      SELECT
        *
      FROM consumer_checkpoints
      WHERE
        consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
        AND (
          consumer_checkpoints.partition = CAST(%(own_partition)s AS INT)
          OR consumer_checkpoints.partitions <> CAST(%(own_partitions)s AS INT)
        )
    )
  ) ON CONFLICT DO NOTHING
RETURNING consumer_checkpoints.partition;

-- create_assigned
INSERT INTO consumer_checkpoints (
  consumer_name,
  partition,
  log,
  partitions,
  start_position,
  last_position
)
SELECT
  CAST(%(own_consumer)s AS VARCHAR) AS anon_1,
  CAST(%(own_partition)s AS INT) AS anon_2,
  CAST(%(own_log)s AS VARCHAR) AS anon_3,
  CAST(%(own_partitions)s AS INT) AS anon_4,
  CAST(%(own_start)s AS BIGINT) AS anon_5,
  COALESCE(CAST(%(own_start)s AS BIGINT), 0) AS coalesce_1
FROM consumer_assignments
WHERE
  NOT (
    EXISTS(
      SELECT
        *
      FROM consumer_checkpoints
      WHERE
        consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
        AND (
          consumer_checkpoints.partition = CAST(%(own_partition)s AS INT)
          OR consumer_checkpoints.partitions <> CAST(%(own_partitions)s AS INT)
        )
    )
  )
  AND consumer_assignments.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
  AND consumer_assignments.partition = CAST(%(own_partition)s AS INT)
  AND (
    consumer_assignments.log IS NULL
    OR consumer_assignments.log = CAST(%(own_log)s AS VARCHAR)
  )   FOR KEY SHARE OF consumer_assignments ON CONFLICT DO NOTHING
RETURNING consumer_checkpoints.partition;

-- failed_before
SELECT
  consumer_checkpoints.failed_at < CAST(%(time)s AS TIMESTAMPTZ) AS anon_1
FROM consumer_checkpoints
WHERE
  consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
  AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT);

-- lock
SELECT
  locked.last_position,
  locked.failed_position,
  locked.attempts,
  locked.parked_at IS NOT NULL AS anon_1,
  GREATEST(CAST(EXTRACT(EPOCH FROM locked.retry_at - CURRENT_TIMESTAMP) AS DECIMAL), 0) AS greatest_1,
  locked.deaths,
  txid_current() AS txid_current_1,
  CAST(CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000 AS BIGINT) AS TEXT) || '/' || COALESCE(
    CAST(CAST(EXTRACT(EPOCH FROM pg_stat_get_bgwriter_stat_reset_time()) * 1000000 AS BIGINT) AS TEXT),
    ''
  ) || '/' || CAST((
    SELECT
      pg_catalog.pg_database.oid
    FROM pg_catalog.pg_database
    WHERE
      pg_catalog.pg_database.datname = CURRENT_DATABASE()
  ) AS TEXT) AS anon_2,
  locked."table",
  current_setting('transaction_isolation') AS current_setting_1,
  locked.log,
  locked.partitions,
  CAST(to_regclass('events') AS OID) AS to_regclass_1
FROM (
  SELECT
    consumer_checkpoints.last_position AS last_position,
    consumer_checkpoints.failed_position AS failed_position,
    consumer_checkpoints.attempts AS attempts,
    consumer_checkpoints.deaths AS deaths,
    consumer_checkpoints.parked_at AS parked_at,
    consumer_checkpoints.retry_at AS retry_at,
    consumer_checkpoints.log AS log,
    consumer_checkpoints.partitions AS partitions,
    tableoid AS "table"
  FROM consumer_checkpoints
  WHERE
    consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
    AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT)   FOR UPDATE SKIP LOCKED
) AS locked;

-- lock_by_name
SELECT
  locked.last_position,
  locked.failed_position,
  locked.attempts,
  locked.parked_at IS NOT NULL AS anon_1,
  GREATEST(CAST(EXTRACT(EPOCH FROM locked.retry_at - CURRENT_TIMESTAMP) AS DECIMAL), 0) AS greatest_1,
  locked.deaths,
  txid_current() AS txid_current_1,
  CAST(CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000 AS BIGINT) AS TEXT) || '/' || COALESCE(
    CAST(CAST(EXTRACT(EPOCH FROM pg_stat_get_bgwriter_stat_reset_time()) * 1000000 AS BIGINT) AS TEXT),
    ''
  ) || '/' || CAST((
    SELECT
      pg_catalog.pg_database.oid
    FROM pg_catalog.pg_database
    WHERE
      pg_catalog.pg_database.datname = CURRENT_DATABASE()
  ) AS TEXT) AS anon_2,
  locked."table",
  current_setting('transaction_isolation') AS current_setting_1,
  locked.log,
  locked.partitions,
  CAST(to_regclass('events') AS OID) AS to_regclass_1,
  set_config('application_name', %(application_name)s, TRUE) AS set_config_1
FROM (
  SELECT
    consumer_checkpoints.last_position AS last_position,
    consumer_checkpoints.failed_position AS failed_position,
    consumer_checkpoints.attempts AS attempts,
    consumer_checkpoints.deaths AS deaths,
    consumer_checkpoints.parked_at AS parked_at,
    consumer_checkpoints.retry_at AS retry_at,
    consumer_checkpoints.log AS log,
    consumer_checkpoints.partitions AS partitions,
    tableoid AS "table"
  FROM consumer_checkpoints
  WHERE
    consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
    AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT)   FOR UPDATE SKIP LOCKED
) AS locked;

-- move
UPDATE consumer_checkpoints SET last_position = CAST(%(position)s AS BIGINT), updated_at = CURRENT_TIMESTAMP, failed_position = NULL, attempts = 0, error = NULL, failed_at = NULL, retry_at = NULL, parked_at = NULL, deaths = CAST(%(deaths)s AS INT)
WHERE
  consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
  AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT)
  AND txid_current() = CAST(%(own_transaction)s AS BIGINT)
  AND tableoid = %(own_table)s
RETURNING consumer_checkpoints.partition;

-- park
UPDATE consumer_checkpoints SET failed_position = CAST(%(position)s AS BIGINT), attempts = CAST(%(failed_attempts)s AS INT), error = CAST(%(error_text)s AS VARCHAR), failed_at = CURRENT_TIMESTAMP, retry_at = NULL, parked_at = CURRENT_TIMESTAMP
WHERE
  consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
  AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT);

-- read
SELECT
  consumer_checkpoints.last_position
FROM consumer_checkpoints
WHERE
  consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
  AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT);

-- record_failure
UPDATE consumer_checkpoints SET failed_position = CAST(%(position)s AS BIGINT), attempts = CAST(%(failed_attempts)s AS INT), error = CAST(%(error_text)s AS VARCHAR), failed_at = CURRENT_TIMESTAMP, retry_at = (
  CURRENT_TIMESTAMP + %(delay)s
), parked_at = NULL
WHERE
  consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
  AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT);

-- status
SELECT
  CASE
    WHEN (
      (
        CAST(CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000 AS BIGINT) AS TEXT) || '/' || COALESCE(
          CAST(CAST(EXTRACT(EPOCH FROM pg_stat_get_bgwriter_stat_reset_time()) * 1000000 AS BIGINT) AS TEXT),
          ''
        ) || '/' || CAST((
          SELECT
            pg_catalog.pg_database.oid
          FROM pg_catalog.pg_database
          WHERE
            pg_catalog.pg_database.datname = CURRENT_DATABASE()
        ) AS TEXT)
      ) = CAST(%(own_server)s AS VARCHAR)
    )
    THEN txid_status(CAST(%(transaction)s AS BIGINT))
  END AS anon_1;
