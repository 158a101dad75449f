-- record_death, 1
WITH pupsourcing_free AS (
  SELECT
    consumer_checkpoints.consumer_name AS consumer_name,
    consumer_checkpoints.partition AS partition
  FROM consumer_checkpoints
  JOIN UNNEST(CAST(%(names)s AS TEXT[]), CAST(%(numbers)s AS INT[])) AS wanted(consumer_name, partition)
    ON consumer_checkpoints.consumer_name = wanted.consumer_name
    AND consumer_checkpoints.partition = wanted.partition
  WHERE
    consumer_checkpoints.parked_at IS NULL   FOR UPDATE OF consumer_checkpoints SKIP LOCKED
)
UPDATE consumer_checkpoints SET deaths = (
  consumer_checkpoints.deaths + 1
)
FROM pupsourcing_free
WHERE
  consumer_checkpoints.consumer_name = pupsourcing_free.consumer_name
  AND consumer_checkpoints.partition = pupsourcing_free.partition
RETURNING consumer_checkpoints.consumer_name, consumer_checkpoints.partition, consumer_checkpoints.last_position, consumer_checkpoints.failed_position, consumer_checkpoints.attempts;

-- record_death, 2
UPDATE consumer_checkpoints SET failed_position = 5, attempts = 2, error = 'the worker process died while it handled this event alone: node 00000000-0000-0000-0000-000000000001, host host, pid 4711. The event may exhaust its memory or crash it; look for the reason in the logs of the process and of the operating system', failed_at = CURRENT_TIMESTAMP, retry_at = (
  CURRENT_TIMESTAMP + '0:00:00.875000'
), parked_at = NULL
WHERE
  consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
  AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT);

-- park_after_death, 2
UPDATE consumer_checkpoints SET failed_position = 5, attempts = 2, error = 'the worker process died while it handled this event alone: node 00000000-0000-0000-0000-000000000001, host host, pid 4711. The event may exhaust its memory or crash it; look for the reason in the logs of the process and of the operating system', failed_at = CURRENT_TIMESTAMP, retry_at = NULL, parked_at = CURRENT_TIMESTAMP
WHERE
  consumer_checkpoints.consumer_name = CAST(%(own_consumer)s AS VARCHAR)
  AND consumer_checkpoints.partition = CAST(%(own_partition)s AS INT);
