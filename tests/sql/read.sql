-- aggregate_version
SELECT
  aggregate_heads.aggregate_version
FROM aggregate_heads
WHERE
  aggregate_heads.aggregate_type = CAST(%(stream_type)s AS VARCHAR)
  AND aggregate_heads.aggregate_id = CAST(%(stream_id)s AS VARCHAR);

-- by_id
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.event_id = ANY(
    CAST(%(event_ids)s AS UUID[])
  )
ORDER BY
  events.global_position;

-- by_position
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.global_position = ANY(
    CAST(%(positions)s AS BIGINT[])
  )
ORDER BY
  events.global_position;

-- following
SELECT
  MIN(events.global_position) AS min_1
FROM events
WHERE
  events.global_position > CAST(%(after)s AS BIGINT);

-- latest_global_position
SELECT
  MAX(events.global_position) AS max_1
FROM events;

-- sample
SELECT
  pupsourcing_ranked.event_type,
  pupsourcing_ranked.event_version,
  pupsourcing_ranked.events,
  pupsourcing_ranked.key,
  pupsourcing_ranked.global_position,
  pupsourcing_ranked.last
FROM (
  SELECT
    pupsourcing_part.event_type AS event_type,
    pupsourcing_part.event_version AS event_version,
    COUNT(*) OVER (PARTITION BY pupsourcing_part.event_type, pupsourcing_part.event_version) AS events,
    pupsourcing_part.key AS key,
    pupsourcing_part.global_position AS global_position,
    MAX(pupsourcing_part.global_position) OVER () AS last,
    ROW_NUMBER() OVER (
      PARTITION BY pupsourcing_part.event_type, pupsourcing_part.event_version
      ORDER BY pupsourcing_part.key
    ) AS number
  FROM (
    SELECT
      events.event_type AS event_type,
      events.event_version AS event_version,
      events.global_position AS global_position,
      CAST(RANDOM() * 9007199254740992 AS BIGINT) AS key
    FROM events
    WHERE
      events.global_position > (
        SELECT
          CAST(%(after)s AS BIGINT) AS anon_1
      )
      AND events.global_position <= (
        SELECT
          CAST(%(up_to)s AS BIGINT) AS anon_2
      )
    ORDER BY
      events.global_position
    LIMIT (
      SELECT
        CAST(%(limit)s AS BIGINT) AS anon_3
    )
  ) AS pupsourcing_part
) AS pupsourcing_ranked
WHERE
  pupsourcing_ranked.number <= CAST(%(size)s AS BIGINT);

-- aggregate_stream: forwards
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.aggregate_type = CAST(%(stream_type)s AS VARCHAR)
  AND events.aggregate_id = CAST(%(stream_id)s AS VARCHAR)
  AND events.aggregate_version BETWEEN (
    SELECT
      CAST(%(from_version)s AS BIGINT) AS anon_1
  ) AND (
    SELECT
      CAST(%(to_version)s AS BIGINT) AS anon_2
  )
ORDER BY
  events.aggregate_version
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_3
);

-- aggregate_stream: backwards
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.aggregate_type = CAST(%(stream_type)s AS VARCHAR)
  AND events.aggregate_id = CAST(%(stream_id)s AS VARCHAR)
  AND events.aggregate_version BETWEEN (
    SELECT
      CAST(%(from_version)s AS BIGINT) AS anon_1
  ) AND (
    SELECT
      CAST(%(to_version)s AS BIGINT) AS anon_2
  )
ORDER BY
  events.aggregate_version DESC
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_3
);

-- page: all events
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.global_position > (
    SELECT
      CAST(%(after)s AS BIGINT) AS anon_1
  )
  AND events.global_position <= (
    SELECT
      CAST(%(up_to)s AS BIGINT) AS anon_2
  )
ORDER BY
  events.global_position
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_3
);

-- page: event_types
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.global_position > (
    SELECT
      CAST(%(after)s AS BIGINT) AS anon_1
  )
  AND events.global_position <= (
    SELECT
      CAST(%(up_to)s AS BIGINT) AS anon_2
  )
  AND COALESCE(events.event_type = ANY(
    CAST(%(event_types)s AS TEXT[])
  ), FALSE)
ORDER BY
  events.global_position
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_3
);

-- page: correlation_id
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.correlation_id IS NOT NULL
  AND (events.correlation_id, events.global_position) > (
    (
      SELECT
        CAST(%(correlation)s AS VARCHAR) AS anon_1
    ),
    (
      SELECT
        CAST(%(after)s AS BIGINT) AS anon_2
    )
  )
  AND (events.correlation_id, events.global_position) <= (
    (
      SELECT
        CAST(%(correlation)s AS VARCHAR) AS anon_1
    ),
    (
      SELECT
        CAST(%(up_to)s AS BIGINT) AS anon_3
    )
  )
  AND events.correlation_id BETWEEN (
    SELECT
      CAST(%(correlation)s AS VARCHAR) AS anon_1
  ) AND (
    SELECT
      CAST(%(correlation)s AS VARCHAR) AS anon_1
  )
  AND events.global_position > (
    SELECT
      CAST(%(after)s AS BIGINT) AS anon_2
  )
  AND events.global_position <= (
    SELECT
      CAST(%(up_to)s AS BIGINT) AS anon_3
  )
ORDER BY
  events.correlation_id,
  events.global_position
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_4
);

-- page: partitions
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.global_position > (
    SELECT
      CAST(%(after)s AS BIGINT) AS anon_1
  )
  AND events.global_position <= (
    SELECT
      CAST(%(up_to)s AS BIGINT) AS anon_2
  )
  AND COALESCE(
    (
      hashtextextended(events.aggregate_id, 0) & 9223372036854775807
    ) % CAST(%(partitions)s AS BIGINT) = CAST(%(partition)s AS BIGINT),
    FALSE
  )
ORDER BY
  events.global_position
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_3
);

-- page: aggregate_types
SELECT
  pupsourcing_page.global_position,
  pupsourcing_row.aggregate_type,
  pupsourcing_row.aggregate_id,
  pupsourcing_row.aggregate_version,
  pupsourcing_row.uuid_send_1,
  pupsourcing_row.event_type,
  pupsourcing_row.event_version,
  pupsourcing_row.payload,
  pupsourcing_row.trace_id,
  pupsourcing_row.correlation_id,
  pupsourcing_row.causation_id,
  pupsourcing_row.metadata,
  pupsourcing_row.timestamptz_send_1
FROM (
  SELECT
    pupsourcing_of_type.global_position AS global_position
  FROM UNNEST(CAST(%(aggregate_types)s AS TEXT[])) AS anon_1(aggregate_type)
  JOIN LATERAL (
    SELECT
      candidates.global_position AS global_position
    FROM events AS candidates
    WHERE
      (candidates.aggregate_type, candidates.global_position) > (anon_1.aggregate_type, (
          SELECT
            CAST(%(after)s AS BIGINT) AS anon_2
      ))
      AND (candidates.aggregate_type, candidates.global_position) <= (anon_1.aggregate_type, (
          SELECT
            CAST(%(up_to)s AS BIGINT) AS anon_3
      ))
      AND candidates.aggregate_type BETWEEN anon_1.aggregate_type AND anon_1.aggregate_type
      AND candidates.global_position > (
        SELECT
          CAST(%(after)s AS BIGINT) AS anon_2
      )
      AND candidates.global_position <= (
        SELECT
          CAST(%(up_to)s AS BIGINT) AS anon_3
      )
    ORDER BY
      candidates.aggregate_type,
      candidates.global_position
    LIMIT (
      SELECT
        CAST(%(limit)s AS BIGINT) AS anon_4
    )
  ) AS pupsourcing_of_type
    ON TRUE
  ORDER BY
    pupsourcing_of_type.global_position
  LIMIT (
    SELECT
      CAST(%(limit)s AS BIGINT) AS anon_4
  )
) AS pupsourcing_page
JOIN LATERAL (
  SELECT
    events.global_position AS global_position,
    events.aggregate_type AS aggregate_type,
    events.aggregate_id AS aggregate_id,
    events.aggregate_version AS aggregate_version,
    uuid_send(events.event_id) AS uuid_send_1,
    events.event_type AS event_type,
    events.event_version AS event_version,
    events.payload AS payload,
    events.trace_id AS trace_id,
    events.correlation_id AS correlation_id,
    events.causation_id AS causation_id,
    CAST(events.metadata AS TEXT) AS metadata,
    timestamptz_send(events.created_at) AS timestamptz_send_1
  FROM events
  WHERE
    events.global_position = pupsourcing_page.global_position
  LIMIT 1
) AS pupsourcing_row
  ON TRUE
ORDER BY
  pupsourcing_page.global_position;

-- page: aggregate_types, correlation_id
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.correlation_id IS NOT NULL
  AND (events.correlation_id, events.global_position) > (
    (
      SELECT
        CAST(%(correlation)s AS VARCHAR) AS anon_1
    ),
    (
      SELECT
        CAST(%(after)s AS BIGINT) AS anon_2
    )
  )
  AND (events.correlation_id, events.global_position) <= (
    (
      SELECT
        CAST(%(correlation)s AS VARCHAR) AS anon_1
    ),
    (
      SELECT
        CAST(%(up_to)s AS BIGINT) AS anon_3
    )
  )
  AND events.correlation_id BETWEEN (
    SELECT
      CAST(%(correlation)s AS VARCHAR) AS anon_1
  ) AND (
    SELECT
      CAST(%(correlation)s AS VARCHAR) AS anon_1
  )
  AND events.global_position > (
    SELECT
      CAST(%(after)s AS BIGINT) AS anon_2
  )
  AND events.global_position <= (
    SELECT
      CAST(%(up_to)s AS BIGINT) AS anon_3
  )
  AND COALESCE(events.aggregate_type = ANY(
    CAST(%(aggregate_types)s AS TEXT[])
  ), FALSE)
ORDER BY
  events.correlation_id,
  events.global_position
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_4
);

-- page: aggregate_types, event_types, partitions
SELECT
  pupsourcing_page.global_position,
  pupsourcing_row.aggregate_type,
  pupsourcing_row.aggregate_id,
  pupsourcing_row.aggregate_version,
  pupsourcing_row.uuid_send_1,
  pupsourcing_row.event_type,
  pupsourcing_row.event_version,
  pupsourcing_row.payload,
  pupsourcing_row.trace_id,
  pupsourcing_row.correlation_id,
  pupsourcing_row.causation_id,
  pupsourcing_row.metadata,
  pupsourcing_row.timestamptz_send_1
FROM (
  SELECT
    pupsourcing_of_type.global_position AS global_position
  FROM UNNEST(CAST(%(aggregate_types)s AS TEXT[])) AS anon_1(aggregate_type)
  JOIN LATERAL (
    SELECT
      candidates.global_position AS global_position
    FROM events AS candidates
    WHERE
      (candidates.aggregate_type, candidates.global_position) > (anon_1.aggregate_type, (
          SELECT
            CAST(%(after)s AS BIGINT) AS anon_2
      ))
      AND (candidates.aggregate_type, candidates.global_position) <= (anon_1.aggregate_type, (
          SELECT
            CAST(%(up_to)s AS BIGINT) AS anon_3
      ))
      AND candidates.aggregate_type BETWEEN anon_1.aggregate_type AND anon_1.aggregate_type
      AND candidates.global_position > (
        SELECT
          CAST(%(after)s AS BIGINT) AS anon_2
      )
      AND candidates.global_position <= (
        SELECT
          CAST(%(up_to)s AS BIGINT) AS anon_3
      )
      AND COALESCE(candidates.event_type = ANY(
        CAST(%(event_types)s AS TEXT[])
      ), FALSE)
      AND COALESCE(
        (
          hashtextextended(candidates.aggregate_id, 0) & 9223372036854775807
        ) % CAST(%(partitions)s AS BIGINT) = CAST(%(partition)s AS BIGINT),
        FALSE
      )
    ORDER BY
      candidates.aggregate_type,
      candidates.global_position
    LIMIT (
      SELECT
        CAST(%(limit)s AS BIGINT) AS anon_4
    )
  ) AS pupsourcing_of_type
    ON TRUE
  ORDER BY
    pupsourcing_of_type.global_position
  LIMIT (
    SELECT
      CAST(%(limit)s AS BIGINT) AS anon_4
  )
) AS pupsourcing_page
JOIN LATERAL (
  SELECT
    events.global_position AS global_position,
    events.aggregate_type AS aggregate_type,
    events.aggregate_id AS aggregate_id,
    events.aggregate_version AS aggregate_version,
    uuid_send(events.event_id) AS uuid_send_1,
    events.event_type AS event_type,
    events.event_version AS event_version,
    events.payload AS payload,
    events.trace_id AS trace_id,
    events.correlation_id AS correlation_id,
    events.causation_id AS causation_id,
    CAST(events.metadata AS TEXT) AS metadata,
    timestamptz_send(events.created_at) AS timestamptz_send_1
  FROM events
  WHERE
    events.global_position = pupsourcing_page.global_position
  LIMIT 1
) AS pupsourcing_row
  ON TRUE
ORDER BY
  pupsourcing_page.global_position;

-- page: correlation_id, aggregate
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.aggregate_type = CAST(%(stream_type)s AS VARCHAR)
  AND events.aggregate_id = CAST(%(stream_id)s AS VARCHAR)
  AND events.aggregate_version > (
    SELECT
      0
  )
  AND events.aggregate_version <= (
    SELECT
      9223372036854775807
  )
  AND COALESCE(
    events.global_position > (
      SELECT
        CAST(%(after)s AS BIGINT) AS anon_1
    )
    AND events.global_position <= (
      SELECT
        CAST(%(up_to)s AS BIGINT) AS anon_2
    ),
    FALSE
  )
  AND COALESCE(events.correlation_id = CAST(%(correlation)s AS VARCHAR), FALSE)
ORDER BY
  events.aggregate_version
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_3
);

-- page: since, until
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.global_position > (
    SELECT
      CAST(%(after)s AS BIGINT) AS anon_1
  )
  AND events.global_position <= (
    SELECT
      CAST(%(up_to)s AS BIGINT) AS anon_2
  )
  AND COALESCE(events.created_at >= CAST(%(since)s AS TIMESTAMPTZ), FALSE)
  AND COALESCE(events.created_at < CAST(%(until)s AS TIMESTAMPTZ), FALSE)
ORDER BY
  events.global_position
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_3
);

-- page: byte limit by each
SELECT
  pupsourcing_rows.global_position,
  pupsourcing_rows.aggregate_type,
  pupsourcing_rows.aggregate_id,
  pupsourcing_rows.aggregate_version,
  pupsourcing_rows.uuid_send_1,
  pupsourcing_rows.event_type,
  pupsourcing_rows.event_version,
  CASE
    WHEN (
      octet_length(pupsourcing_rows.payload) + COALESCE(octet_length(pupsourcing_rows.metadata), 0) <= CAST(%(max_bytes)s AS BIGINT)
    )
    THEN pupsourcing_rows.payload
  END AS payload,
  pupsourcing_rows.trace_id,
  pupsourcing_rows.correlation_id,
  pupsourcing_rows.causation_id,
  CASE
    WHEN (
      octet_length(pupsourcing_rows.payload) + COALESCE(octet_length(pupsourcing_rows.metadata), 0) <= CAST(%(max_bytes)s AS BIGINT)
    )
    THEN pupsourcing_rows.metadata
  END AS metadata,
  pupsourcing_rows.timestamptz_send_1
FROM (
  SELECT
    events.global_position AS global_position,
    events.aggregate_type AS aggregate_type,
    events.aggregate_id AS aggregate_id,
    events.aggregate_version AS aggregate_version,
    uuid_send(events.event_id) AS uuid_send_1,
    events.event_type AS event_type,
    events.event_version AS event_version,
    events.payload AS payload,
    events.trace_id AS trace_id,
    events.correlation_id AS correlation_id,
    events.causation_id AS causation_id,
    CAST(events.metadata AS TEXT) AS metadata,
    timestamptz_send(events.created_at) AS timestamptz_send_1
  FROM events
  WHERE
    events.global_position > (
      SELECT
        CAST(%(after)s AS BIGINT) AS anon_1
    )
    AND events.global_position <= (
      SELECT
        CAST(%(up_to)s AS BIGINT) AS anon_2
    )
  ORDER BY
    events.global_position
  LIMIT (
    SELECT
      CAST(%(limit)s AS BIGINT) AS anon_3
  )
) AS pupsourcing_rows
ORDER BY
  pupsourcing_rows.global_position;

-- page: byte limit by total
SELECT
  pupsourcing_measured.global_position,
  pupsourcing_measured.aggregate_type,
  pupsourcing_measured.aggregate_id,
  pupsourcing_measured.aggregate_version,
  uuid_send(pupsourcing_measured.event_id) AS uuid_send_1,
  pupsourcing_measured.event_type,
  pupsourcing_measured.event_version,
  CASE
    WHEN (
      pupsourcing_measured.total <= CAST(%(max_bytes)s AS BIGINT)
    )
    THEN pupsourcing_measured.payload
  END AS payload,
  pupsourcing_measured.trace_id,
  pupsourcing_measured.correlation_id,
  pupsourcing_measured.causation_id,
  CASE
    WHEN (
      pupsourcing_measured.total <= CAST(%(max_bytes)s AS BIGINT)
    )
    THEN CAST(pupsourcing_measured.metadata AS TEXT)
  END AS metadata,
  timestamptz_send(pupsourcing_measured.created_at) AS timestamptz_send_1
FROM (
  SELECT
    pupsourcing_rows.global_position AS global_position,
    pupsourcing_rows.aggregate_type AS aggregate_type,
    pupsourcing_rows.aggregate_id AS aggregate_id,
    pupsourcing_rows.aggregate_version AS aggregate_version,
    pupsourcing_rows.event_id AS event_id,
    pupsourcing_rows.event_type AS event_type,
    pupsourcing_rows.event_version AS event_version,
    pupsourcing_rows.payload AS payload,
    pupsourcing_rows.trace_id AS trace_id,
    pupsourcing_rows.correlation_id AS correlation_id,
    pupsourcing_rows.causation_id AS causation_id,
    pupsourcing_rows.metadata AS metadata,
    pupsourcing_rows.created_at AS created_at,
    pupsourcing_rows.size AS size,
    SUM(pupsourcing_rows.size) OVER (
      ORDER BY pupsourcing_rows.global_position
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS total
  FROM (
    SELECT
      events.global_position AS global_position,
      events.aggregate_type AS aggregate_type,
      events.aggregate_id AS aggregate_id,
      events.aggregate_version AS aggregate_version,
      events.event_id AS event_id,
      events.event_type AS event_type,
      events.event_version AS event_version,
      events.payload AS payload,
      events.trace_id AS trace_id,
      events.correlation_id AS correlation_id,
      events.causation_id AS causation_id,
      events.metadata AS metadata,
      events.created_at AS created_at,
      LEAST(
        octet_length(events.payload) + COALESCE(octet_length(CAST(events.metadata AS TEXT)), 0),
        CAST(%(max_bytes)s AS BIGINT)
      ) AS size
    FROM events
    WHERE
      events.global_position > (
        SELECT
          CAST(%(after)s AS BIGINT) AS anon_1
      )
      AND events.global_position <= (
        SELECT
          CAST(%(up_to)s AS BIGINT) AS anon_2
      )
    ORDER BY
      events.global_position
    LIMIT (
      SELECT
        CAST(%(limit)s AS BIGINT) AS anon_3
    )
  ) AS pupsourcing_rows
) AS pupsourcing_measured
WHERE
  pupsourcing_measured.total - pupsourcing_measured.size <= CAST(%(max_bytes)s AS BIGINT)
ORDER BY
  pupsourcing_measured.global_position;

-- page: JSONB, byte limit by total
SELECT
  pupsourcing_measured.global_position,
  pupsourcing_measured.aggregate_type,
  pupsourcing_measured.aggregate_id,
  pupsourcing_measured.aggregate_version,
  uuid_send(pupsourcing_measured.event_id) AS uuid_send_1,
  pupsourcing_measured.event_type,
  pupsourcing_measured.event_version,
  CASE
    WHEN (
      pupsourcing_measured.total <= CAST(%(max_bytes)s AS BIGINT)
    )
    THEN convert_to(CAST(pupsourcing_measured.payload AS TEXT), 'UTF8')
  END AS payload,
  pupsourcing_measured.trace_id,
  pupsourcing_measured.correlation_id,
  pupsourcing_measured.causation_id,
  CASE
    WHEN (
      pupsourcing_measured.total <= CAST(%(max_bytes)s AS BIGINT)
    )
    THEN CAST(pupsourcing_measured.metadata AS TEXT)
  END AS metadata,
  timestamptz_send(pupsourcing_measured.created_at) AS timestamptz_send_1
FROM (
  SELECT
    pupsourcing_rows.global_position AS global_position,
    pupsourcing_rows.aggregate_type AS aggregate_type,
    pupsourcing_rows.aggregate_id AS aggregate_id,
    pupsourcing_rows.aggregate_version AS aggregate_version,
    pupsourcing_rows.event_id AS event_id,
    pupsourcing_rows.event_type AS event_type,
    pupsourcing_rows.event_version AS event_version,
    pupsourcing_rows.payload AS payload,
    pupsourcing_rows.trace_id AS trace_id,
    pupsourcing_rows.correlation_id AS correlation_id,
    pupsourcing_rows.causation_id AS causation_id,
    pupsourcing_rows.metadata AS metadata,
    pupsourcing_rows.created_at AS created_at,
    pupsourcing_rows.size AS size,
    SUM(pupsourcing_rows.size) OVER (
      ORDER BY pupsourcing_rows.global_position
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS total
  FROM (
    SELECT
      events.global_position AS global_position,
      events.aggregate_type AS aggregate_type,
      events.aggregate_id AS aggregate_id,
      events.aggregate_version AS aggregate_version,
      events.event_id AS event_id,
      events.event_type AS event_type,
      events.event_version AS event_version,
      events.payload AS payload,
      events.trace_id AS trace_id,
      events.correlation_id AS correlation_id,
      events.causation_id AS causation_id,
      events.metadata AS metadata,
      events.created_at AS created_at,
      LEAST(
        octet_length(convert_to(CAST(events.payload AS TEXT), 'UTF8')) + COALESCE(octet_length(CAST(events.metadata AS TEXT)), 0),
        CAST(%(max_bytes)s AS BIGINT)
      ) AS size
    FROM events
    WHERE
      events.global_position > (
        SELECT
          CAST(%(after)s AS BIGINT) AS anon_1
      )
      AND events.global_position <= (
        SELECT
          CAST(%(up_to)s AS BIGINT) AS anon_2
      )
    ORDER BY
      events.global_position
    LIMIT (
      SELECT
        CAST(%(limit)s AS BIGINT) AS anon_3
    )
  ) AS pupsourcing_rows
) AS pupsourcing_measured
WHERE
  pupsourcing_measured.total - pupsourcing_measured.size <= CAST(%(max_bytes)s AS BIGINT)
ORDER BY
  pupsourcing_measured.global_position;

-- page: backwards
SELECT
  events.global_position,
  events.aggregate_type,
  events.aggregate_id,
  events.aggregate_version,
  uuid_send(events.event_id) AS uuid_send_1,
  events.event_type,
  events.event_version,
  events.payload,
  events.trace_id,
  events.correlation_id,
  events.causation_id,
  CAST(events.metadata AS TEXT) AS metadata,
  timestamptz_send(events.created_at) AS timestamptz_send_1
FROM events
WHERE
  events.global_position > (
    SELECT
      CAST(%(after)s AS BIGINT) AS anon_1
  )
  AND events.global_position <= (
    SELECT
      CAST(%(up_to)s AS BIGINT) AS anon_2
  )
ORDER BY
  events.global_position DESC
LIMIT (
  SELECT
    CAST(%(limit)s AS BIGINT) AS anon_3
);

-- page: aggregate types, backwards
SELECT
  pupsourcing_page.global_position,
  pupsourcing_row.aggregate_type,
  pupsourcing_row.aggregate_id,
  pupsourcing_row.aggregate_version,
  pupsourcing_row.uuid_send_1,
  pupsourcing_row.event_type,
  pupsourcing_row.event_version,
  pupsourcing_row.payload,
  pupsourcing_row.trace_id,
  pupsourcing_row.correlation_id,
  pupsourcing_row.causation_id,
  pupsourcing_row.metadata,
  pupsourcing_row.timestamptz_send_1
FROM (
  SELECT
    pupsourcing_of_type.global_position AS global_position
  FROM UNNEST(CAST(%(aggregate_types)s AS TEXT[])) AS anon_1(aggregate_type)
  JOIN LATERAL (
    SELECT
      candidates.global_position AS global_position
    FROM events AS candidates
    WHERE
      (candidates.aggregate_type, candidates.global_position) > (anon_1.aggregate_type, (
          SELECT
            CAST(%(after)s AS BIGINT) AS anon_2
      ))
      AND (candidates.aggregate_type, candidates.global_position) <= (anon_1.aggregate_type, (
          SELECT
            CAST(%(up_to)s AS BIGINT) AS anon_3
      ))
      AND candidates.aggregate_type BETWEEN anon_1.aggregate_type AND anon_1.aggregate_type
      AND candidates.global_position > (
        SELECT
          CAST(%(after)s AS BIGINT) AS anon_2
      )
      AND candidates.global_position <= (
        SELECT
          CAST(%(up_to)s AS BIGINT) AS anon_3
      )
    ORDER BY
      candidates.aggregate_type DESC,
      candidates.global_position DESC
    LIMIT (
      SELECT
        CAST(%(limit)s AS BIGINT) AS anon_4
    )
  ) AS pupsourcing_of_type
    ON TRUE
  ORDER BY
    pupsourcing_of_type.global_position DESC
  LIMIT (
    SELECT
      CAST(%(limit)s AS BIGINT) AS anon_4
  )
) AS pupsourcing_page
JOIN LATERAL (
  SELECT
    events.global_position AS global_position,
    events.aggregate_type AS aggregate_type,
    events.aggregate_id AS aggregate_id,
    events.aggregate_version AS aggregate_version,
    uuid_send(events.event_id) AS uuid_send_1,
    events.event_type AS event_type,
    events.event_version AS event_version,
    events.payload AS payload,
    events.trace_id AS trace_id,
    events.correlation_id AS correlation_id,
    events.causation_id AS causation_id,
    CAST(events.metadata AS TEXT) AS metadata,
    timestamptz_send(events.created_at) AS timestamptz_send_1
  FROM events
  WHERE
    events.global_position = pupsourcing_page.global_position
  LIMIT 1
) AS pupsourcing_row
  ON TRUE
ORDER BY
  pupsourcing_page.global_position DESC;
