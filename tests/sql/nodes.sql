-- all
SELECT
  worker_nodes.worker_id,
  worker_nodes.consumers
FROM worker_nodes
ORDER BY
  worker_nodes.worker_id;

-- beat
UPDATE worker_nodes SET heartbeat_at = clock_timestamp(), running = (
  COALESCE(worker_nodes.running, CAST('{}' AS JSONB)) || CAST(CAST(%(running)s AS VARCHAR) AS JSONB)
)
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
RETURNING worker_nodes.worker_id, worker_nodes.hostname, worker_nodes.pid, worker_nodes.consumers, CAST(EXTRACT(EPOCH FROM clock_timestamp() - worker_nodes.heartbeat_at) AS DECIMAL) AS anon_1, CAST(worker_nodes.running AS TEXT) AS running;

-- try_to_lead
SELECT
  pg_try_advisory_xact_lock(CAST(CAST(CAST('worker_nodes' AS REGCLASS) AS OID) AS INT), 0) AS pg_try_advisory_xact_lock_1;

-- write
INSERT INTO worker_nodes (
  worker_id,
  hostname,
  pid,
  consumers,
  heartbeat_at,
  running
)
VALUES
  (
    CAST(%(worker_id)s AS UUID),
    'host',
    4711,
    CAST(%(consumers)s AS TEXT[]),
    clock_timestamp(),
    CAST('{"process": null}' AS JSONB)
  ) ON CONFLICT(worker_id) DO UPDATE SET hostname = 'host', pid = 4711, consumers = CAST(%(param_3)s AS TEXT[]), heartbeat_at = clock_timestamp(), running = CAST('{"process": null}' AS JSONB)
RETURNING timestamptz_send(worker_nodes.heartbeat_at) AS timestamptz_send_1;

-- remove_ended, 1
SELECT
  worker_nodes.worker_id,
  jsonb_extract_path_text(worker_nodes.running, 'process') AS jsonb_extract_path_text_1
FROM worker_nodes
WHERE
  jsonb_extract_path_text(worker_nodes.running, 'process', 'host') = CAST(%(host)s AS VARCHAR);

-- remove_ended, 2
DELETE FROM worker_nodes
WHERE
  worker_nodes.worker_id = ANY(
    CAST(%(ended)s AS UUID[])
  )
RETURNING worker_nodes.worker_id, worker_nodes.hostname, worker_nodes.pid, worker_nodes.consumers, CAST(EXTRACT(EPOCH FROM clock_timestamp() - worker_nodes.heartbeat_at) AS DECIMAL) AS anon_1, CAST(worker_nodes.running AS TEXT) AS running;

-- announce
UPDATE worker_nodes SET running = (
  COALESCE(worker_nodes.running, CAST('{}' AS JSONB)) || CAST(CAST(%(running)s AS VARCHAR) AS JSONB)
)
WHERE
  worker_nodes.worker_id = CAST(%(worker_id_1)s AS UUID);
