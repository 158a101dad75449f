-- assignments
SELECT
  jsonb_build_object(
    'consumer_name',
    consumer_assignments.consumer_name,
    'partition',
    consumer_assignments.partition,
    'worker_id',
    consumer_assignments.worker_id,
    'updated_at',
    consumer_assignments.updated_at,
    'log',
    consumer_assignments.log
  ) AS jsonb_build_object_1
FROM consumer_assignments
WHERE
  consumer_assignments.consumer_name = CAST(%(name)s AS VARCHAR)
ORDER BY
  consumer_assignments.partition;

-- audit
INSERT INTO consumer_operations (
  at,
  actor,
  consumer_name,
  operation,
  detail,
  log
)
VALUES
  (
    clock_timestamp(),
    CAST(%(given_actor)s AS VARCHAR),
    CAST(%(name)s AS VARCHAR),
    CAST(%(given_operation)s AS VARCHAR),
    CAST(%(given_detail)s AS JSONB),
    CAST(%(given_log)s AS VARCHAR)
  );

-- checkpoints
SELECT
  jsonb_build_object(
    'consumer_name',
    consumer_checkpoints.consumer_name,
    'partition',
    consumer_checkpoints.partition,
    'last_position',
    consumer_checkpoints.last_position,
    'updated_at',
    consumer_checkpoints.updated_at,
    'failed_position',
    consumer_checkpoints.failed_position,
    'attempts',
    consumer_checkpoints.attempts,
    'failed_at',
    consumer_checkpoints.failed_at,
    'retry_at',
    consumer_checkpoints.retry_at,
    'parked_at',
    consumer_checkpoints.parked_at,
    'log',
    consumer_checkpoints.log,
    'partitions',
    consumer_checkpoints.partitions,
    'done',
    consumer_checkpoints.done,
    'parked_aggregates',
    consumer_checkpoints.parked_aggregates,
    'paused_at',
    consumer_checkpoints.paused_at,
    'paused_reason',
    consumer_checkpoints.paused_reason,
    'renamed_to',
    consumer_checkpoints.renamed_to,
    'deaths',
    consumer_checkpoints.deaths,
    'claim',
    consumer_checkpoints.claim,
    'claimed_by',
    consumer_checkpoints.claimed_by,
    'claim_until',
    consumer_checkpoints.claim_until,
    'start_position',
    consumer_checkpoints.start_position
  ) AS jsonb_build_object_1
FROM consumer_checkpoints
WHERE
  consumer_checkpoints.consumer_name = CAST(%(name)s AS VARCHAR)
ORDER BY
  consumer_checkpoints.partition;

-- consumers
SELECT
  consumer_checkpoints.consumer_name
FROM consumer_checkpoints
UNION
SELECT
  consumer_assignments.consumer_name
FROM consumer_assignments;

-- delete_assignments
DELETE FROM consumer_assignments
WHERE
  consumer_assignments.consumer_name = CAST(%(name)s AS VARCHAR);

-- delete_checkpoints
DELETE FROM consumer_checkpoints
WHERE
  consumer_checkpoints.consumer_name = CAST(%(name)s AS VARCHAR);

-- delete_nodes
DELETE FROM worker_nodes
WHERE
  CAST(%(name)s AS VARCHAR) = ANY(
    worker_nodes.consumers
  );

-- delete_parked_aggregates
DELETE FROM consumer_parked_aggregates
WHERE
  consumer_parked_aggregates.consumer_name = CAST(%(name)s AS VARCHAR);

-- isolation
SELECT
  current_setting('transaction_isolation') AS current_setting_1;

-- lead
SELECT
  pg_advisory_xact_lock(CAST(CAST(CAST('worker_nodes' AS REGCLASS) AS OID) AS INT), 0) IS NOT NULL AS anon_1;

-- lock_checkpoints
SELECT
  jsonb_build_object(
    'consumer_name',
    consumer_checkpoints.consumer_name,
    'partition',
    consumer_checkpoints.partition,
    'last_position',
    consumer_checkpoints.last_position,
    'updated_at',
    consumer_checkpoints.updated_at,
    'failed_position',
    consumer_checkpoints.failed_position,
    'attempts',
    consumer_checkpoints.attempts,
    'failed_at',
    consumer_checkpoints.failed_at,
    'retry_at',
    consumer_checkpoints.retry_at,
    'parked_at',
    consumer_checkpoints.parked_at,
    'log',
    consumer_checkpoints.log,
    'partitions',
    consumer_checkpoints.partitions,
    'done',
    consumer_checkpoints.done,
    'parked_aggregates',
    consumer_checkpoints.parked_aggregates,
    'paused_at',
    consumer_checkpoints.paused_at,
    'paused_reason',
    consumer_checkpoints.paused_reason,
    'renamed_to',
    consumer_checkpoints.renamed_to,
    'deaths',
    consumer_checkpoints.deaths,
    'claim',
    consumer_checkpoints.claim,
    'claimed_by',
    consumer_checkpoints.claimed_by,
    'claim_until',
    consumer_checkpoints.claim_until,
    'start_position',
    consumer_checkpoints.start_position
  ) AS jsonb_build_object_1
FROM consumer_checkpoints
WHERE
  consumer_checkpoints.consumer_name = CAST(%(name)s AS VARCHAR)
ORDER BY
  consumer_checkpoints.partition   FOR UPDATE;

-- live_nodes
SELECT
  worker_nodes.worker_id,
  worker_nodes.hostname,
  worker_nodes.pid
FROM worker_nodes
WHERE
  CAST(%(name)s AS VARCHAR) = ANY(
    worker_nodes.consumers
  )
  AND worker_nodes.heartbeat_at >= clock_timestamp() - '0:00:08'
ORDER BY
  worker_nodes.worker_id;

-- set_log, 1
UPDATE consumer_checkpoints SET log = CAST(%(given_log)s AS VARCHAR)
WHERE
  consumer_checkpoints.consumer_name = CAST(%(name)s AS VARCHAR);

-- set_log, 2
UPDATE consumer_assignments SET log = CAST(%(given_log)s AS VARCHAR)
WHERE
  consumer_assignments.consumer_name = CAST(%(name)s AS VARCHAR);

-- set_log, 3
UPDATE consumer_parked_aggregates SET log = CAST(%(given_log)s AS VARCHAR)
WHERE
  consumer_parked_aggregates.consumer_name = CAST(%(name)s AS VARCHAR);
