-- all
SELECT
  worker_nodes.worker_id,
  worker_nodes.consumers
FROM worker_nodes
ORDER BY
  worker_nodes.worker_id;

-- beat
UPDATE worker_nodes SET heartbeat_at = clock_timestamp()
WHERE
  worker_nodes.worker_id = CAST(%(worker_id_1)s AS UUID);

-- lead
SELECT
  pg_advisory_xact_lock(CAST(CAST(CAST('worker_nodes' AS REGCLASS) AS OID) AS INT), 0) IS NOT NULL AS anon_1;

-- limit_idleness
SELECT
  set_config('idle_in_transaction_session_timeout', '8000', TRUE) AS set_config_1,
  set_config('lock_timeout', '8000', TRUE) AS set_config_4;

-- remove
DELETE FROM worker_nodes
WHERE
  worker_nodes.worker_id = CAST(%(worker_id_1)s AS UUID);

-- remove_silent
WITH pupsourcing_future AS (
  UPDATE worker_nodes SET heartbeat_at = clock_timestamp()
  WHERE
    worker_nodes.heartbeat_at > clock_timestamp()
)
DELETE FROM worker_nodes
WHERE
  worker_nodes.heartbeat_at < clock_timestamp() - '0:00:08'
RETURNING worker_nodes.worker_id, CAST(EXTRACT(EPOCH FROM clock_timestamp() - worker_nodes.heartbeat_at) AS DECIMAL) AS anon_1;

-- try_to_lead
SELECT
  pg_try_advisory_xact_lock(CAST(CAST(CAST('worker_nodes' AS REGCLASS) AS OID) AS INT), 0) AS pg_try_advisory_xact_lock_1;

-- write
INSERT INTO worker_nodes (
  worker_id,
  hostname,
  pid,
  consumers,
  heartbeat_at
)
VALUES
  (
    CAST(%(worker_id)s AS UUID),
    'host',
    4711,
    CAST(%(consumers)s AS TEXT[]),
    clock_timestamp()
  ) ON CONFLICT(worker_id) DO UPDATE SET hostname = 'host', pid = 4711, consumers = CAST(%(param_3)s AS TEXT[]), heartbeat_at = clock_timestamp()
RETURNING worker_nodes.heartbeat_at;
