-- all
SELECT
  consumer_assignments.consumer_name,
  consumer_assignments.partition,
  consumer_assignments.worker_id,
  consumer_assignments.log
FROM consumer_assignments;

-- assign
UPDATE consumer_assignments SET worker_id = CAST(%(node)s AS UUID), updated_at = CURRENT_TIMESTAMP
WHERE
  consumer_assignments.consumer_name = CAST(%(name)s AS VARCHAR)
  AND consumer_assignments.partition = CAST(%(number)s AS INT);

-- declare, 1
SELECT
  anon_1.consumer_name,
  GREATEST(MAX(anon_1.partition) + 1, MAX(anon_1.partitions)) AS greatest_1,
  MAX(anon_1.log) FILTER(WHERE
    anon_1.log <> CAST(%(own_log)s AS VARCHAR)) AS anon_2,
  BOOL_OR(anon_1.is_unmarked) AS bool_or_1,
  MAX(anon_1.start_position) AS max_2
FROM (
  SELECT
    consumer_checkpoints.consumer_name AS consumer_name,
    consumer_checkpoints.partition AS partition,
    consumer_checkpoints.partitions AS partitions,
    consumer_checkpoints.log AS log,
    consumer_checkpoints.log IS NULL OR consumer_checkpoints.partitions IS NULL AS is_unmarked,
    COALESCE(consumer_checkpoints.start_position, 0) AS start_position
  FROM consumer_checkpoints
  UNION ALL
  SELECT
    consumer_assignments.consumer_name AS consumer_name,
    consumer_assignments.partition AS partition,
    CAST(NULL AS INT) AS anon_3,
    consumer_assignments.log AS log,
    consumer_assignments.log IS NULL AS anon_4,
    CAST(NULL AS BIGINT) AS anon__1
  FROM consumer_assignments
) AS anon_1
WHERE
  anon_1.consumer_name = ANY(
    CAST(%(names)s AS TEXT[])
  )
GROUP BY
  anon_1.consumer_name
ORDER BY
  anon_1.consumer_name;

-- declare, 2
SELECT
  consumer_checkpoints.consumer_name,
  consumer_checkpoints.partition
FROM consumer_checkpoints;

-- declare, 3
INSERT INTO consumer_checkpoints (
  consumer_name,
  partition,
  last_position,
  updated_at,
  failed_position,
  attempts,
  error,
  failed_at,
  retry_at,
  parked_at,
  log,
  partitions,
  done,
  parked_aggregates,
  paused_at,
  paused_reason,
  renamed_to,
  deaths,
  claim,
  claimed_by,
  claim_until,
  start_position
)
VALUES
  (
    CAST(%(consumer_name)s AS VARCHAR),
    CAST(%(partition)s AS INT),
    CAST(%(last_position)s AS BIGINT),
    CAST(%(updated_at)s AS TIMESTAMPTZ),
    CAST(%(failed_position)s AS BIGINT),
    CAST(%(attempts)s AS INT),
    CAST(%(error)s AS VARCHAR),
    CAST(%(failed_at)s AS TIMESTAMPTZ),
    CAST(%(retry_at)s AS TIMESTAMPTZ),
    CAST(%(parked_at)s AS TIMESTAMPTZ),
    CAST(%(log)s AS VARCHAR),
    CAST(%(partitions)s AS INT),
    CAST(%(done)s AS BIGINT[]),
    CAST(%(parked_aggregates)s AS INT),
    CAST(%(paused_at)s AS TIMESTAMPTZ),
    CAST(%(paused_reason)s AS VARCHAR),
    CAST(%(renamed_to)s AS VARCHAR),
    CAST(%(deaths)s AS INT),
    CAST(%(claim)s AS BIGINT),
    CAST(%(claimed_by)s AS UUID),
    CAST(%(claim_until)s AS TIMESTAMPTZ),
    CAST(%(start_position)s AS BIGINT)
  ) ON CONFLICT DO NOTHING;

-- declare, 4
SELECT
  consumer_assignments.consumer_name,
  consumer_assignments.partition
FROM consumer_assignments;

-- declare, 5
INSERT INTO consumer_assignments (
  consumer_name,
  partition,
  worker_id,
  updated_at,
  log
)
VALUES
  (
    CAST(%(consumer_name)s AS VARCHAR),
    CAST(%(partition)s AS INT),
    CAST(%(worker_id)s AS UUID),
    CAST(%(updated_at)s AS TIMESTAMPTZ),
    CAST(%(log)s AS VARCHAR)
  ) ON CONFLICT DO NOTHING;

-- retire
DELETE FROM consumer_assignments
WHERE
  consumer_assignments.consumer_name = ANY(
    CAST(%(names)s AS TEXT[])
  )
  AND (
    consumer_assignments.log IS NULL
    OR consumer_assignments.log = CAST(%(own_log)s AS VARCHAR)
  )
  AND NOT (
    EXISTS(
      SELECT
        *
      FROM worker_nodes
      WHERE
        consumer_assignments.consumer_name = ANY(
          worker_nodes.consumers
        )
    )
  );

-- runnable
SELECT
  consumer_assignments.consumer_name,
  consumer_assignments.partition,
  COALESCE(consumer_checkpoints.last_position, 0) AS coalesce_1,
  consumer_checkpoints.retry_at IS NOT NULL AS anon_1,
  consumer_checkpoints.partitions
FROM consumer_assignments
LEFT OUTER JOIN consumer_checkpoints
  ON consumer_checkpoints.consumer_name = consumer_assignments.consumer_name
  AND consumer_checkpoints.partition = consumer_assignments.partition
WHERE
  consumer_assignments.worker_id = CAST(%(node)s AS UUID)
  AND (
    consumer_assignments.log IS NULL
    OR consumer_assignments.log = CAST(%(own_log)s AS VARCHAR)
  )
  AND consumer_checkpoints.parked_at IS NULL;
