-- read_guards
SELECT
  schema.nspname AS schema,
  pg_catalog.pg_class.relname AS table_name,
  pg_catalog.pg_trigger.tgname AS trigger_name,
  pg_catalog.pg_trigger.tgtype AS trigger_type,
  CAST(pg_catalog.pg_trigger.tgenabled AS TEXT) IN ('O', 'A')
  AND pg_catalog.pg_trigger.tgqual IS NULL
  AND CAST(pg_catalog.pg_trigger.tgattr AS TEXT) = '' AS is_firing,
  pg_catalog.pg_proc.proconfig IS NULL AS is_plain,
  function_schema.nspname AS function_schema,
  pg_catalog.pg_proc.proname AS function_name,
  pg_catalog.pg_proc.prosrc AS body
FROM pg_catalog.pg_trigger
JOIN pg_catalog.pg_class
  ON pg_catalog.pg_class.oid = pg_catalog.pg_trigger.tgrelid
JOIN pg_catalog.pg_namespace AS schema
  ON schema.oid = pg_catalog.pg_class.relnamespace
JOIN pg_catalog.pg_proc
  ON pg_catalog.pg_proc.oid = pg_catalog.pg_trigger.tgfoid
JOIN pg_catalog.pg_namespace AS function_schema
  ON function_schema.oid = pg_catalog.pg_proc.pronamespace
WHERE
  pg_catalog.pg_trigger.tgname IN ('pupsourcing_sa_append_only', 'pupsourcing_sa_low_water_mark');

-- create_guard: pupsourcing_sa_append_only, 1
CREATE OR REPLACE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS $guard$
-- pupsourcing_sa: append_only, version 1
BEGIN
    IF coalesce(current_setting('pupsourcing_sa.allow_rewrite', true), '') <> 'on' THEN
        RAISE restrict_violation USING
            MESSAGE = TG_OP || ' on ' || TG_RELID::regclass || ' is refused: events are appended, and never changed',
            HINT = 'If it has to be: SET LOCAL pupsourcing_sa.allow_rewrite = ''on'', in the same transaction.';
    END IF;
    RETURN NULL;
END
$guard$;

-- create_guard: pupsourcing_sa_append_only, 2
CREATE TRIGGER pupsourcing_sa_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_append_only();

-- replace_guard: pupsourcing_sa_append_only, 1
CREATE OR REPLACE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS $guard$
-- pupsourcing_sa: append_only, version 1
BEGIN
    IF coalesce(current_setting('pupsourcing_sa.allow_rewrite', true), '') <> 'on' THEN
        RAISE restrict_violation USING
            MESSAGE = TG_OP || ' on ' || TG_RELID::regclass || ' is refused: events are appended, and never changed',
            HINT = 'If it has to be: SET LOCAL pupsourcing_sa.allow_rewrite = ''on'', in the same transaction.';
    END IF;
    RETURN NULL;
END
$guard$;

-- replace_guard: pupsourcing_sa_append_only, 2
DROP TRIGGER IF EXISTS pupsourcing_sa_append_only ON events;

-- replace_guard: pupsourcing_sa_append_only, 3
CREATE TRIGGER pupsourcing_sa_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_append_only();

-- drop_guard: pupsourcing_sa_append_only, 1
DROP TRIGGER IF EXISTS pupsourcing_sa_append_only ON events;

-- drop_guard: pupsourcing_sa_append_only, 2
DROP FUNCTION IF EXISTS events_append_only();

-- create_guard: pupsourcing_sa_low_water_mark, 1
CREATE OR REPLACE FUNCTION events_low_water_mark() RETURNS trigger LANGUAGE plpgsql AS $guard$
-- pupsourcing_sa: low_water_mark, version 1
DECLARE
    log text := quote_ident(TG_TABLE_SCHEMA) || '.' || quote_ident(TG_TABLE_NAME);
    sequence regclass;
    last bigint;
    is_behind boolean := false;
BEGIN
    IF coalesce(current_setting('pupsourcing_sa.mark_' || TG_RELID, true), '') = '' THEN
        sequence := pg_get_serial_sequence(log, 'global_position');
        last := pg_sequence_last_value(sequence);
        IF last >= nullif(current_setting('pupsourcing_sa.checked_' || TG_RELID, true), '')::bigint IS NOT TRUE THEN
            EXECUTE 'SELECT last, EXISTS (SELECT FROM ' || log || ' WHERE global_position > last)'
                || ' FROM (SELECT pg_sequence_last_value($1) AS last OFFSET 0) AS issued'
                INTO last, is_behind USING sequence;
        END IF;
        IF is_behind THEN
            RAISE object_not_in_prerequisite_state USING
                MESSAGE = 'the sequence of ' || log || '.global_position is behind the log: new events would get '
                    || 'positions that consumers have already passed',
                HINT = 'SELECT setval(' || quote_literal(sequence)
                    || ', (SELECT max(global_position) FROM ' || log || '));';
        END IF;
        PERFORM set_config('pupsourcing_sa.checked_' || TG_RELID, coalesce(last::text, ''), false);
        last := coalesce(last & 2147483647, -1);
        PERFORM pg_advisory_xact_lock_shared(TG_RELID::integer, last::integer);
        PERFORM set_config('pupsourcing_sa.mark_' || TG_RELID, last::text, true);
    END IF;
    RETURN NULL;
END
$guard$;

-- create_guard: pupsourcing_sa_low_water_mark, 2
CREATE TRIGGER pupsourcing_sa_low_water_mark BEFORE INSERT ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_low_water_mark();

-- replace_guard: pupsourcing_sa_low_water_mark, 1
CREATE OR REPLACE FUNCTION events_low_water_mark() RETURNS trigger LANGUAGE plpgsql AS $guard$
-- pupsourcing_sa: low_water_mark, version 1
DECLARE
    log text := quote_ident(TG_TABLE_SCHEMA) || '.' || quote_ident(TG_TABLE_NAME);
    sequence regclass;
    last bigint;
    is_behind boolean := false;
BEGIN
    IF coalesce(current_setting('pupsourcing_sa.mark_' || TG_RELID, true), '') = '' THEN
        sequence := pg_get_serial_sequence(log, 'global_position');
        last := pg_sequence_last_value(sequence);
        IF last >= nullif(current_setting('pupsourcing_sa.checked_' || TG_RELID, true), '')::bigint IS NOT TRUE THEN
            EXECUTE 'SELECT last, EXISTS (SELECT FROM ' || log || ' WHERE global_position > last)'
                || ' FROM (SELECT pg_sequence_last_value($1) AS last OFFSET 0) AS issued'
                INTO last, is_behind USING sequence;
        END IF;
        IF is_behind THEN
            RAISE object_not_in_prerequisite_state USING
                MESSAGE = 'the sequence of ' || log || '.global_position is behind the log: new events would get '
                    || 'positions that consumers have already passed',
                HINT = 'SELECT setval(' || quote_literal(sequence)
                    || ', (SELECT max(global_position) FROM ' || log || '));';
        END IF;
        PERFORM set_config('pupsourcing_sa.checked_' || TG_RELID, coalesce(last::text, ''), false);
        last := coalesce(last & 2147483647, -1);
        PERFORM pg_advisory_xact_lock_shared(TG_RELID::integer, last::integer);
        PERFORM set_config('pupsourcing_sa.mark_' || TG_RELID, last::text, true);
    END IF;
    RETURN NULL;
END
$guard$;

-- replace_guard: pupsourcing_sa_low_water_mark, 2
DROP TRIGGER IF EXISTS pupsourcing_sa_low_water_mark ON events;

-- replace_guard: pupsourcing_sa_low_water_mark, 3
CREATE TRIGGER pupsourcing_sa_low_water_mark BEFORE INSERT ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_low_water_mark();

-- drop_guard: pupsourcing_sa_low_water_mark, 1
DROP TRIGGER IF EXISTS pupsourcing_sa_low_water_mark ON events;

-- drop_guard: pupsourcing_sa_low_water_mark, 2
DROP FUNCTION IF EXISTS events_low_water_mark();
