-- one: NoStream()
WITH pupsourcing_mark AS (
  SELECT
    CASE
      WHEN pupsourcing_issued.is_held
      THEN TRUE
      WHEN CASE
        WHEN (
          pupsourcing_issued.last >= CAST(NULLIF(
            current_setting(
              'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) AS BIGINT)
          AND pg_relation_size(CAST(CAST('events' AS REGCLASS) AS OID)) > 131072
        )
        THEN FALSE
        WHEN (
          pupsourcing_issued.last IS NOT NULL
        )
        THEN (
          SELECT
            MIN(events.global_position) AS min_1
          FROM events
          WHERE
            events.global_position > pupsourcing_issued.last
        ) IS NOT NULL
        WHEN (
          NOT has_sequence_privilege(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS), 'USAGE')
        )
        THEN TRUE
        WHEN (
          (
            SELECT
              MAX(events.global_position) AS max_1
            FROM events
          ) IS NULL
        )
        THEN FALSE
        ELSE nextval(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) < (
          SELECT
            MAX(events.global_position) AS max_1
          FROM events
        )
      END
      THEN FALSE
      ELSE pg_advisory_xact_lock_shared(
        CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS INT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS INT)
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS TEXT),
        TRUE
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        COALESCE(CAST(pupsourcing_issued.last AS TEXT), ''),
        FALSE
      ) IS NOT NULL
    END AS is_taken
  FROM (
    SELECT
      NULLIF(
        current_setting(
          'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
          TRUE
        ),
        ''
      ) IS NOT NULL AS is_held,
      CASE
        WHEN (
          NULLIF(
            current_setting(
              'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) IS NOT NULL
        )
        THEN NULL
        ELSE pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS))
      END AS last
  ) AS pupsourcing_issued
), pupsourcing_head AS (
  INSERT INTO aggregate_heads (
    aggregate_type,
    aggregate_id,
    aggregate_version
  )
  SELECT
    CAST(%(stream_type)s AS VARCHAR) AS anon_1,
    CAST(%(stream_id)s AS VARCHAR) AS anon_2,
    CAST(%(count)s AS BIGINT) AS anon_4
  FROM pupsourcing_mark
  WHERE
    pupsourcing_mark.is_taken ON CONFLICT DO NOTHING
  RETURNING aggregate_heads.aggregate_version
)
INSERT INTO events (
  aggregate_type,
  aggregate_id,
  aggregate_version,
  event_id,
  event_type,
  event_version,
  trace_id,
  correlation_id,
  causation_id,
  created_at,
  metadata,
  payload
)
SELECT
  CAST(%(stream_type)s AS VARCHAR) AS anon_1,
  CAST(%(stream_id)s AS VARCHAR) AS anon_2,
  (
    pupsourcing_head.aggregate_version - CAST(%(count)s AS BIGINT)
  ) + given_events.number AS anon_3,
  given_events.event_id,
  given_events.event_type,
  given_events.event_version,
  given_events.trace_id,
  given_events.correlation_id,
  given_events.causation_id,
  given_events.created_at,
  CAST(given_events.metadata AS JSONB) AS metadata,
  SUBSTRING(CAST(%(payloads)s AS BYTEA) FROM given_events.start FOR given_events.size) AS substring_1
FROM pupsourcing_head
JOIN json_to_recordset(CAST(CAST(%(events)s AS VARCHAR) AS JSON)) AS given_events(number BIGINT, event_id UUID, event_type TEXT, event_version INT, trace_id TEXT, correlation_id TEXT, causation_id TEXT, metadata JSON, created_at TIMESTAMPTZ, start INT, size INT)
  ON TRUE
ORDER BY
  given_events.number
RETURNING events.global_position, events.aggregate_version;

-- one: Exact(3)
WITH pupsourcing_mark AS (
  SELECT
    CASE
      WHEN pupsourcing_issued.is_held
      THEN TRUE
      WHEN CASE
        WHEN (
          pupsourcing_issued.last >= CAST(NULLIF(
            current_setting(
              'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) AS BIGINT)
          AND pg_relation_size(CAST(CAST('events' AS REGCLASS) AS OID)) > 131072
        )
        THEN FALSE
        WHEN (
          pupsourcing_issued.last IS NOT NULL
        )
        THEN (
          SELECT
            MIN(events.global_position) AS min_1
          FROM events
          WHERE
            events.global_position > pupsourcing_issued.last
        ) IS NOT NULL
        WHEN (
          NOT has_sequence_privilege(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS), 'USAGE')
        )
        THEN TRUE
        WHEN (
          (
            SELECT
              MAX(events.global_position) AS max_1
            FROM events
          ) IS NULL
        )
        THEN FALSE
        ELSE nextval(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) < (
          SELECT
            MAX(events.global_position) AS max_1
          FROM events
        )
      END
      THEN FALSE
      ELSE pg_advisory_xact_lock_shared(
        CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS INT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS INT)
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS TEXT),
        TRUE
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        COALESCE(CAST(pupsourcing_issued.last AS TEXT), ''),
        FALSE
      ) IS NOT NULL
    END AS is_taken
  FROM (
    SELECT
      NULLIF(
        current_setting(
          'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
          TRUE
        ),
        ''
      ) IS NOT NULL AS is_held,
      CASE
        WHEN (
          NULLIF(
            current_setting(
              'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) IS NOT NULL
        )
        THEN NULL
        ELSE pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS))
      END AS last
  ) AS pupsourcing_issued
), pupsourcing_head AS (
  UPDATE aggregate_heads SET aggregate_version = (
    aggregate_heads.aggregate_version + CAST(%(count)s AS BIGINT)
  ), updated_at = CURRENT_TIMESTAMP
  FROM pupsourcing_mark
  WHERE
    aggregate_heads.aggregate_type = CAST(%(stream_type)s AS VARCHAR)
    AND aggregate_heads.aggregate_id = CAST(%(stream_id)s AS VARCHAR)
    AND aggregate_heads.aggregate_version = CASE WHEN pupsourcing_mark.is_taken THEN CAST(%(expected_version)s AS BIGINT) END
  RETURNING aggregate_heads.aggregate_version
)
INSERT INTO events (
  aggregate_type,
  aggregate_id,
  aggregate_version,
  event_id,
  event_type,
  event_version,
  trace_id,
  correlation_id,
  causation_id,
  created_at,
  metadata,
  payload
)
SELECT
  CAST(%(stream_type)s AS VARCHAR) AS anon_1,
  CAST(%(stream_id)s AS VARCHAR) AS anon_2,
  (
    pupsourcing_head.aggregate_version - CAST(%(count)s AS BIGINT)
  ) + given_events.number AS anon_3,
  given_events.event_id,
  given_events.event_type,
  given_events.event_version,
  given_events.trace_id,
  given_events.correlation_id,
  given_events.causation_id,
  given_events.created_at,
  CAST(given_events.metadata AS JSONB) AS metadata,
  SUBSTRING(CAST(%(payloads)s AS BYTEA) FROM given_events.start FOR given_events.size) AS substring_1
FROM pupsourcing_head
JOIN json_to_recordset(CAST(CAST(%(events)s AS VARCHAR) AS JSON)) AS given_events(number BIGINT, event_id UUID, event_type TEXT, event_version INT, trace_id TEXT, correlation_id TEXT, causation_id TEXT, metadata JSON, created_at TIMESTAMPTZ, start INT, size INT)
  ON TRUE
ORDER BY
  given_events.number
RETURNING events.global_position, events.aggregate_version;

-- one: AnyVersion()
WITH pupsourcing_mark AS (
  SELECT
    CASE
      WHEN pupsourcing_issued.is_held
      THEN TRUE
      WHEN CASE
        WHEN (
          pupsourcing_issued.last >= CAST(NULLIF(
            current_setting(
              'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) AS BIGINT)
          AND pg_relation_size(CAST(CAST('events' AS REGCLASS) AS OID)) > 131072
        )
        THEN FALSE
        WHEN (
          pupsourcing_issued.last IS NOT NULL
        )
        THEN (
          SELECT
            MIN(events.global_position) AS min_1
          FROM events
          WHERE
            events.global_position > pupsourcing_issued.last
        ) IS NOT NULL
        WHEN (
          NOT has_sequence_privilege(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS), 'USAGE')
        )
        THEN TRUE
        WHEN (
          (
            SELECT
              MAX(events.global_position) AS max_1
            FROM events
          ) IS NULL
        )
        THEN FALSE
        ELSE nextval(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) < (
          SELECT
            MAX(events.global_position) AS max_1
          FROM events
        )
      END
      THEN FALSE
      ELSE pg_advisory_xact_lock_shared(
        CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS INT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS INT)
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS TEXT),
        TRUE
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        COALESCE(CAST(pupsourcing_issued.last AS TEXT), ''),
        FALSE
      ) IS NOT NULL
    END AS is_taken
  FROM (
    SELECT
      NULLIF(
        current_setting(
          'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
          TRUE
        ),
        ''
      ) IS NOT NULL AS is_held,
      CASE
        WHEN (
          NULLIF(
            current_setting(
              'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) IS NOT NULL
        )
        THEN NULL
        ELSE pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS))
      END AS last
  ) AS pupsourcing_issued
), pupsourcing_head AS (
  INSERT INTO aggregate_heads (
    aggregate_type,
    aggregate_id,
    aggregate_version
  )
  SELECT
    CAST(%(stream_type)s AS VARCHAR) AS anon_1,
    CAST(%(stream_id)s AS VARCHAR) AS anon_2,
    CAST(%(count)s AS BIGINT) AS anon_4
  FROM pupsourcing_mark
  WHERE
    pupsourcing_mark.is_taken ON CONFLICT(aggregate_type, aggregate_id) DO UPDATE SET aggregate_version = (
    aggregate_heads.aggregate_version + CAST(%(count)s AS BIGINT)
  ), updated_at = CURRENT_TIMESTAMP
  RETURNING aggregate_heads.aggregate_version
)
INSERT INTO events (
  aggregate_type,
  aggregate_id,
  aggregate_version,
  event_id,
  event_type,
  event_version,
  trace_id,
  correlation_id,
  causation_id,
  created_at,
  metadata,
  payload
)
SELECT
  CAST(%(stream_type)s AS VARCHAR) AS anon_1,
  CAST(%(stream_id)s AS VARCHAR) AS anon_2,
  (
    pupsourcing_head.aggregate_version - CAST(%(count)s AS BIGINT)
  ) + given_events.number AS anon_3,
  given_events.event_id,
  given_events.event_type,
  given_events.event_version,
  given_events.trace_id,
  given_events.correlation_id,
  given_events.causation_id,
  given_events.created_at,
  CAST(given_events.metadata AS JSONB) AS metadata,
  SUBSTRING(CAST(%(payloads)s AS BYTEA) FROM given_events.start FOR given_events.size) AS substring_1
FROM pupsourcing_head
JOIN json_to_recordset(CAST(CAST(%(events)s AS VARCHAR) AS JSON)) AS given_events(number BIGINT, event_id UUID, event_type TEXT, event_version INT, trace_id TEXT, correlation_id TEXT, causation_id TEXT, metadata JSON, created_at TIMESTAMPTZ, start INT, size INT)
  ON TRUE
ORDER BY
  given_events.number
RETURNING events.global_position, events.aggregate_version;

-- many
WITH pupsourcing_wanted AS (
  SELECT
    given_streams.stream AS stream,
    given_streams.stream_type AS stream_type,
    given_streams.stream_id AS stream_id,
    given_streams.expected AS expected,
    given_streams.count AS count
  FROM json_to_recordset(CAST(CAST(%(streams)s AS VARCHAR) AS JSON)) AS given_streams(stream INT, stream_type TEXT, stream_id TEXT, expected BIGINT, count BIGINT)
), pupsourcing_mark AS (
  SELECT
    CASE
      WHEN pupsourcing_issued.is_held
      THEN TRUE
      WHEN CASE
        WHEN (
          pupsourcing_issued.last >= CAST(NULLIF(
            current_setting(
              'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) AS BIGINT)
          AND pg_relation_size(CAST(CAST('events' AS REGCLASS) AS OID)) > 131072
        )
        THEN FALSE
        WHEN (
          pupsourcing_issued.last IS NOT NULL
        )
        THEN (
          SELECT
            MIN(events.global_position) AS min_1
          FROM events
          WHERE
            events.global_position > pupsourcing_issued.last
        ) IS NOT NULL
        WHEN (
          NOT has_sequence_privilege(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS), 'USAGE')
        )
        THEN TRUE
        WHEN (
          (
            SELECT
              MAX(events.global_position) AS max_1
            FROM events
          ) IS NULL
        )
        THEN FALSE
        ELSE nextval(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) < (
          SELECT
            MAX(events.global_position) AS max_1
          FROM events
        )
      END
      THEN FALSE
      ELSE pg_advisory_xact_lock_shared(
        CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS INT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS INT)
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS TEXT),
        TRUE
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        COALESCE(CAST(pupsourcing_issued.last AS TEXT), ''),
        FALSE
      ) IS NOT NULL
    END AS is_taken
  FROM (
    SELECT
      NULLIF(
        current_setting(
          'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
          TRUE
        ),
        ''
      ) IS NOT NULL AS is_held,
      CASE
        WHEN (
          NULLIF(
            current_setting(
              'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) IS NOT NULL
        )
        THEN NULL
        ELSE pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS))
      END AS last
  ) AS pupsourcing_issued
), pupsourcing_fits AS (
  SELECT
    TRUE AS fits
  FROM pupsourcing_mark
  WHERE
    pupsourcing_mark.is_taken
    AND NOT (
      EXISTS(
        SELECT
          pupsourcing_wanted.count
        FROM pupsourcing_wanted
        LEFT OUTER JOIN aggregate_heads
          ON aggregate_heads.aggregate_type = pupsourcing_wanted.stream_type
          AND aggregate_heads.aggregate_id = pupsourcing_wanted.stream_id
        WHERE
          pupsourcing_wanted.expected <> COALESCE(aggregate_heads.aggregate_version, 0)
      )
    )
), pupsourcing_head AS (
  INSERT INTO aggregate_heads (
    aggregate_type,
    aggregate_id,
    aggregate_version
  )
  SELECT
    pupsourcing_wanted.stream_type AS stream_type,
    pupsourcing_wanted.stream_id AS stream_id,
    pupsourcing_wanted.count AS count
  FROM pupsourcing_wanted
  JOIN pupsourcing_fits
    ON TRUE
  ORDER BY
    pupsourcing_wanted.stream_type,
    pupsourcing_wanted.stream_id ON CONFLICT(aggregate_type, aggregate_id) DO UPDATE SET aggregate_version = (
    aggregate_heads.aggregate_version + excluded.aggregate_version
  ), updated_at = CURRENT_TIMESTAMP
  WHERE
    (excluded.aggregate_type, excluded.aggregate_id) IN (
      SELECT
        pupsourcing_wanted.stream_type,
        pupsourcing_wanted.stream_id
      FROM pupsourcing_wanted
      WHERE
        pupsourcing_wanted.expected IS NULL
    )
    OR (
      excluded.aggregate_type,
      excluded.aggregate_id,
      aggregate_heads.aggregate_version
    ) IN (
      SELECT
        pupsourcing_wanted.stream_type,
        pupsourcing_wanted.stream_id,
        pupsourcing_wanted.expected
      FROM pupsourcing_wanted
    )
  RETURNING aggregate_heads.aggregate_type, aggregate_heads.aggregate_id, aggregate_heads.aggregate_version
), pupsourcing_written_heads AS (
  SELECT
    pupsourcing_wanted.stream AS stream,
    pupsourcing_wanted.stream_type AS stream_type,
    pupsourcing_wanted.stream_id AS stream_id,
    pupsourcing_wanted.expected AS expected,
    pupsourcing_wanted.count AS count,
    pupsourcing_head.aggregate_version AS aggregate_version
  FROM pupsourcing_wanted
  JOIN pupsourcing_head
    ON pupsourcing_head.aggregate_type = pupsourcing_wanted.stream_type
    AND pupsourcing_head.aggregate_id = pupsourcing_wanted.stream_id
), pupsourcing_written_events AS (
  INSERT INTO events (
    aggregate_type,
    aggregate_id,
    aggregate_version,
    event_id,
    event_type,
    event_version,
    trace_id,
    correlation_id,
    causation_id,
    created_at,
    metadata,
    payload
  )
  SELECT
    pupsourcing_written_heads.stream_type AS stream_type,
    pupsourcing_written_heads.stream_id AS stream_id,
    (
      pupsourcing_written_heads.aggregate_version - pupsourcing_written_heads.count
    ) + given_events.place AS anon_1,
    given_events.event_id AS event_id,
    given_events.event_type AS event_type,
    given_events.event_version AS event_version,
    given_events.trace_id AS trace_id,
    given_events.correlation_id AS correlation_id,
    given_events.causation_id AS causation_id,
    given_events.created_at AS created_at,
    CAST(given_events.metadata AS JSONB) AS metadata,
    SUBSTRING(CAST(%(payloads)s AS BYTEA) FROM given_events.start FOR given_events.size) AS substring_1
  FROM json_to_recordset(CAST(CAST(%(events)s AS VARCHAR) AS JSON)) AS given_events(stream INT, place BIGINT, number BIGINT, event_id UUID, event_type TEXT, event_version INT, trace_id TEXT, correlation_id TEXT, causation_id TEXT, metadata JSON, created_at TIMESTAMPTZ, start INT, size INT)
  JOIN pupsourcing_written_heads
    ON given_events.stream = pupsourcing_written_heads.stream
    AND (
      SELECT
        COUNT(*) AS count_1
      FROM pupsourcing_written_heads
      WHERE
        pupsourcing_written_heads.aggregate_version = COALESCE(
          pupsourcing_written_heads.expected + pupsourcing_written_heads.count,
          pupsourcing_written_heads.aggregate_version
        )
    ) = (
      SELECT
        COUNT(*) AS count_2
      FROM pupsourcing_wanted
    )
  ORDER BY
    given_events.number
  RETURNING events.global_position
)
SELECT
  pupsourcing_written_heads.stream,
  pupsourcing_written_heads.aggregate_version AS value
FROM pupsourcing_written_heads
UNION ALL
SELECT
  0,
  pupsourcing_written_events.global_position
FROM pupsourcing_written_events;

-- refusal
SELECT
  COALESCE(
    (
      SELECT
        aggregate_heads.aggregate_version
      FROM aggregate_heads
      WHERE
        aggregate_heads.aggregate_type = CAST(%(stream_type)s AS VARCHAR)
        AND aggregate_heads.aggregate_id = CAST(%(stream_id)s AS VARCHAR)
    ),
    0
  ) AS version,
  (
    SELECT
      MIN(events.global_position) AS min_1
    FROM events
    WHERE
      events.global_position > pupsourcing_issued.last
  ) IS NOT NULL AS is_behind,
  pupsourcing_issued.last IS NOT NULL
  OR has_sequence_privilege(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS), 'USAGE') AS is_readable
FROM (
  SELECT
    pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) AS last
) AS pupsourcing_issued;

-- undo
WITH pupsourcing_given AS (
  SELECT
    given_streams.stream AS stream,
    given_streams.stream_type AS stream_type,
    given_streams.stream_id AS stream_id,
    given_streams.expected AS expected,
    given_streams.count AS count
  FROM json_to_recordset(CAST(CAST(%(streams)s AS VARCHAR) AS JSON)) AS given_streams(stream INT, stream_type TEXT, stream_id TEXT, expected BIGINT, count BIGINT)
), pupsourcing_lowered AS (
  UPDATE aggregate_heads SET aggregate_version = (
    aggregate_heads.aggregate_version - pupsourcing_given.count
  )
  FROM pupsourcing_given
  WHERE
    aggregate_heads.aggregate_type = pupsourcing_given.stream_type
    AND aggregate_heads.aggregate_id = pupsourcing_given.stream_id
    AND aggregate_heads.aggregate_version > pupsourcing_given.count
  RETURNING aggregate_heads.aggregate_id
)
DELETE FROM aggregate_heads USING   pupsourcing_given
WHERE
  aggregate_heads.aggregate_type = pupsourcing_given.stream_type
  AND aggregate_heads.aggregate_id = pupsourcing_given.stream_id
  AND aggregate_heads.aggregate_version = pupsourcing_given.count;

-- one: NoStream() with a notify channel
WITH pupsourcing_mark AS (
  SELECT
    CASE
      WHEN pupsourcing_issued.is_held
      THEN TRUE
      WHEN CASE
        WHEN (
          pupsourcing_issued.last >= CAST(NULLIF(
            current_setting(
              'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) AS BIGINT)
          AND pg_relation_size(CAST(CAST('events' AS REGCLASS) AS OID)) > 131072
        )
        THEN FALSE
        WHEN (
          pupsourcing_issued.last IS NOT NULL
        )
        THEN (
          SELECT
            MIN(events.global_position) AS min_1
          FROM events
          WHERE
            events.global_position > pupsourcing_issued.last
        ) IS NOT NULL
        WHEN (
          NOT has_sequence_privilege(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS), 'USAGE')
        )
        THEN TRUE
        WHEN (
          (
            SELECT
              MAX(events.global_position) AS max_1
            FROM events
          ) IS NULL
        )
        THEN FALSE
        ELSE nextval(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) < (
          SELECT
            MAX(events.global_position) AS max_1
          FROM events
        )
      END
      THEN FALSE
      ELSE pg_advisory_xact_lock_shared(
        CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS INT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS INT)
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS TEXT),
        TRUE
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        COALESCE(CAST(pupsourcing_issued.last AS TEXT), ''),
        FALSE
      ) IS NOT NULL
    END AS is_taken
  FROM (
    SELECT
      NULLIF(
        current_setting(
          'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
          TRUE
        ),
        ''
      ) IS NOT NULL AS is_held,
      CASE
        WHEN (
          NULLIF(
            current_setting(
              'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) IS NOT NULL
        )
        THEN NULL
        ELSE pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS))
      END AS last
  ) AS pupsourcing_issued
), pupsourcing_head AS (
  INSERT INTO aggregate_heads (
    aggregate_type,
    aggregate_id,
    aggregate_version
  )
  SELECT
    CAST(%(stream_type)s AS VARCHAR) AS anon_1,
    CAST(%(stream_id)s AS VARCHAR) AS anon_2,
    CAST(%(count)s AS BIGINT) AS anon_4
  FROM pupsourcing_mark
  WHERE
    pupsourcing_mark.is_taken ON CONFLICT DO NOTHING
  RETURNING aggregate_heads.aggregate_version, CAST(pg_notify('events', '') AS TEXT) AS notified
)
INSERT INTO events (
  aggregate_type,
  aggregate_id,
  aggregate_version,
  event_id,
  event_type,
  event_version,
  trace_id,
  correlation_id,
  causation_id,
  created_at,
  metadata,
  payload
)
SELECT
  CAST(%(stream_type)s AS VARCHAR) AS anon_1,
  CAST(%(stream_id)s AS VARCHAR) AS anon_2,
  (
    pupsourcing_head.aggregate_version - CAST(%(count)s AS BIGINT)
  ) + given_events.number AS anon_3,
  given_events.event_id,
  given_events.event_type,
  given_events.event_version,
  given_events.trace_id,
  given_events.correlation_id,
  given_events.causation_id,
  given_events.created_at,
  CAST(given_events.metadata AS JSONB) AS metadata,
  SUBSTRING(CAST(%(payloads)s AS BYTEA) FROM given_events.start FOR given_events.size) AS substring_1
FROM pupsourcing_head
JOIN json_to_recordset(CAST(CAST(%(events)s AS VARCHAR) AS JSON)) AS given_events(number BIGINT, event_id UUID, event_type TEXT, event_version INT, trace_id TEXT, correlation_id TEXT, causation_id TEXT, metadata JSON, created_at TIMESTAMPTZ, start INT, size INT)
  ON TRUE
ORDER BY
  given_events.number
RETURNING events.global_position, events.aggregate_version;

-- one: NoStream() with JSONB payloads
WITH pupsourcing_mark AS (
  SELECT
    CASE
      WHEN pupsourcing_issued.is_held
      THEN TRUE
      WHEN CASE
        WHEN (
          pupsourcing_issued.last >= CAST(NULLIF(
            current_setting(
              'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) AS BIGINT)
          AND pg_relation_size(CAST(CAST('events' AS REGCLASS) AS OID)) > 131072
        )
        THEN FALSE
        WHEN (
          pupsourcing_issued.last IS NOT NULL
        )
        THEN (
          SELECT
            MIN(events.global_position) AS min_1
          FROM events
          WHERE
            events.global_position > pupsourcing_issued.last
        ) IS NOT NULL
        WHEN (
          NOT has_sequence_privilege(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS), 'USAGE')
        )
        THEN TRUE
        WHEN (
          (
            SELECT
              MAX(events.global_position) AS max_1
            FROM events
          ) IS NULL
        )
        THEN FALSE
        ELSE nextval(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS)) < (
          SELECT
            MAX(events.global_position) AS max_1
          FROM events
        )
      END
      THEN FALSE
      ELSE pg_advisory_xact_lock_shared(
        CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS INT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS INT)
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        CAST(COALESCE(pupsourcing_issued.last & 2147483647, -1) AS TEXT),
        TRUE
      ) IS NOT NULL
      AND set_config(
        'pupsourcing_sa.checked_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
        COALESCE(CAST(pupsourcing_issued.last AS TEXT), ''),
        FALSE
      ) IS NOT NULL
    END AS is_taken
  FROM (
    SELECT
      NULLIF(
        current_setting(
          'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
          TRUE
        ),
        ''
      ) IS NOT NULL AS is_held,
      CASE
        WHEN (
          NULLIF(
            current_setting(
              'pupsourcing_sa.mark_' || CAST(CAST(CAST('events' AS REGCLASS) AS OID) AS TEXT),
              TRUE
            ),
            ''
          ) IS NOT NULL
        )
        THEN NULL
        ELSE pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'global_position') AS REGCLASS))
      END AS last
  ) AS pupsourcing_issued
), pupsourcing_head AS (
  INSERT INTO aggregate_heads (
    aggregate_type,
    aggregate_id,
    aggregate_version
  )
  SELECT
    CAST(%(stream_type)s AS VARCHAR) AS anon_1,
    CAST(%(stream_id)s AS VARCHAR) AS anon_2,
    CAST(%(count)s AS BIGINT) AS anon_4
  FROM pupsourcing_mark
  WHERE
    pupsourcing_mark.is_taken ON CONFLICT DO NOTHING
  RETURNING aggregate_heads.aggregate_version
)
INSERT INTO events (
  aggregate_type,
  aggregate_id,
  aggregate_version,
  event_id,
  event_type,
  event_version,
  trace_id,
  correlation_id,
  causation_id,
  created_at,
  metadata,
  payload
)
SELECT
  CAST(%(stream_type)s AS VARCHAR) AS anon_1,
  CAST(%(stream_id)s AS VARCHAR) AS anon_2,
  (
    pupsourcing_head.aggregate_version - CAST(%(count)s AS BIGINT)
  ) + given_events.number AS anon_3,
  given_events.event_id,
  given_events.event_type,
  given_events.event_version,
  given_events.trace_id,
  given_events.correlation_id,
  given_events.causation_id,
  given_events.created_at,
  CAST(given_events.metadata AS JSONB) AS metadata,
  CAST(given_events.payload AS JSONB) AS payload
FROM pupsourcing_head
JOIN json_to_recordset(CAST(CAST(%(events)s AS VARCHAR) AS JSON)) AS given_events(number BIGINT, event_id UUID, event_type TEXT, event_version INT, trace_id TEXT, correlation_id TEXT, causation_id TEXT, metadata JSON, created_at TIMESTAMPTZ, payload JSON)
  ON TRUE
ORDER BY
  given_events.number
RETURNING events.global_position, events.aggregate_version;
