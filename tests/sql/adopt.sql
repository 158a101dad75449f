-- AlterLogSequence: to identity
DO $do$
DECLARE
    log CONSTANT text := $name$events$name$;
    sequence CONSTANT text := pg_get_serial_sequence(log, 'global_position');
    last bigint;
    is_called boolean;
    privileges text[];
    grantees text[];
BEGIN
    IF sequence IS NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'global_position of ' || log || ' has no sequence of its own',
            HINT = 'ALTER SEQUENCE ... OWNED BY makes it the column''s own.';
    END IF;
    LOCK TABLE events IN ACCESS EXCLUSIVE MODE;
    EXECUTE 'SELECT last_value, is_called FROM ' || sequence INTO last, is_called;
    SELECT array_agg(privilege_type), array_agg(
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
            || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        )
        INTO privileges, grantees
        FROM pg_class, aclexplode(relacl) WHERE oid = sequence::regclass;
    ALTER TABLE events ALTER COLUMN global_position DROP DEFAULT;
    EXECUTE 'DROP SEQUENCE ' || sequence;
    ALTER TABLE events ALTER COLUMN global_position ADD GENERATED ALWAYS AS IDENTITY;
    PERFORM setval(pg_get_serial_sequence(log, 'global_position'), last, is_called);
    FOR i IN 1 .. coalesce(cardinality(privileges), 0) LOOP
        EXECUTE 'GRANT ' || privileges[i] || ' ON SEQUENCE ' || pg_get_serial_sequence(log, 'global_position')
            || ' TO ' || grantees[i];
    END LOOP;
END
$do$;

-- AlterLogSequence: to serial
DO $do$
DECLARE
    log CONSTANT text := $name$events$name$;
    sequence CONSTANT text := pg_get_serial_sequence(log, 'global_position');
    last bigint;
    is_called boolean;
    privileges text[];
    grantees text[];
BEGIN
    IF sequence IS NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'global_position of ' || log || ' has no sequence of its own',
            HINT = 'ALTER SEQUENCE ... OWNED BY makes it the column''s own.';
    END IF;
    LOCK TABLE events IN ACCESS EXCLUSIVE MODE;
    EXECUTE 'SELECT last_value, is_called FROM ' || sequence INTO last, is_called;
    SELECT array_agg(privilege_type), array_agg(
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
            || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        )
        INTO privileges, grantees
        FROM pg_class, aclexplode(relacl) WHERE oid = sequence::regclass;
    ALTER TABLE events ALTER COLUMN global_position DROP IDENTITY;
    EXECUTE 'CREATE SEQUENCE ' || sequence;
    EXECUTE 'ALTER SEQUENCE ' || sequence || ' OWNED BY ' || log || '.global_position';
    EXECUTE 'ALTER TABLE ' || log || ' ALTER COLUMN global_position SET DEFAULT nextval('
        || quote_literal(sequence) || ')';
    PERFORM setval(pg_get_serial_sequence(log, 'global_position'), last, is_called);
    FOR i IN 1 .. coalesce(cardinality(privileges), 0) LOOP
        EXECUTE 'GRANT ' || privileges[i] || ' ON SEQUENCE ' || pg_get_serial_sequence(log, 'global_position')
            || ' TO ' || grantees[i];
    END LOOP;
END
$do$;

-- RenameLogConstraint
ALTER TABLE events RENAME CONSTRAINT old_name TO new_name;
