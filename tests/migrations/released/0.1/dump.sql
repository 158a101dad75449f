-- What 0.1 made by `alembic upgrade head` with its template, and events in it, as pg_dump has them.

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

CREATE TABLE public.aggregate_heads (
    aggregate_type text NOT NULL,
    aggregate_id text NOT NULL,
    aggregate_version bigint NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.consumer_assignments (
    consumer_name text NOT NULL,
    partition integer NOT NULL,
    worker_id uuid,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.consumer_checkpoints (
    consumer_name text NOT NULL,
    partition integer NOT NULL,
    last_position bigint DEFAULT 0 NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    failed_position bigint,
    attempts integer DEFAULT 0 NOT NULL,
    error text,
    failed_at timestamp with time zone,
    retry_at timestamp with time zone,
    parked_at timestamp with time zone
);

CREATE TABLE public.events (
    global_position bigint NOT NULL,
    aggregate_type text NOT NULL,
    aggregate_id text NOT NULL,
    aggregate_version bigint NOT NULL,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    event_version integer DEFAULT 1 NOT NULL,
    payload bytea NOT NULL,
    trace_id text,
    correlation_id text,
    causation_id text,
    metadata jsonb,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE public.events ALTER COLUMN global_position ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.events_global_position_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.worker_nodes (
    worker_id uuid NOT NULL,
    hostname text NOT NULL,
    pid integer NOT NULL,
    consumers text[] NOT NULL,
    heartbeat_at timestamp with time zone DEFAULT now() NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

INSERT INTO public.aggregate_heads VALUES ('User', 'bob', 1, '2025-03-01 12:00:00+00');
INSERT INTO public.aggregate_heads VALUES ('User', 'ann', 3, '2025-03-01 12:00:00+00');

INSERT INTO public.alembic_version VALUES ('0001');

INSERT INTO public.consumer_checkpoints VALUES ('user_count', 0, 3, '2025-03-01 12:00:00+00', NULL, 0, NULL, NULL, NULL, NULL);
INSERT INTO public.consumer_checkpoints VALUES ('mails', 0, 2, '2025-03-01 12:00:00+00', 3, 2, 'Traceback: no mail server', '2025-03-01 12:00:00+00', '2025-03-01 12:01:00+00', NULL);

INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (1, 'User', 'ann', 1, '00000000-0000-0000-0000-000000000001', 'UserRegistered', 1, '\x7b22656d61696c223a22616e6e406578616d706c652e6f7267227d', 't1', 'c1', 'k1', '{"by": "signup"}', '2025-03-01 12:00:00+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (2, 'User', 'ann', 2, '00000000-0000-0000-0000-000000000002', 'UserRenamed', 1, '\x7b22656d61696c223a22616e6e406578616d706c652e6f7267227d', NULL, NULL, NULL, NULL, '2025-03-01 12:00:00+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (3, 'User', 'bob', 1, '00000000-0000-0000-0000-000000000003', 'UserRegistered', 1, '\x7b22656d61696c223a22626f62406578616d706c652e6f7267227d', NULL, NULL, NULL, NULL, '2025-03-01 12:00:00+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (5, 'User', 'ann', 3, '00000000-0000-0000-0000-000000000005', 'UserRenamed', 2, '\x7b22656d61696c223a22616e6e406578616d706c652e6f7267227d', NULL, NULL, NULL, NULL, '2025-03-01 12:00:00+00');

SELECT pg_catalog.setval('public.events_global_position_seq', 5, true);

ALTER TABLE ONLY public.aggregate_heads
    ADD CONSTRAINT aggregate_heads_pkey PRIMARY KEY (aggregate_type, aggregate_id);

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.consumer_assignments
    ADD CONSTRAINT consumer_assignments_pkey PRIMARY KEY (consumer_name, partition);

ALTER TABLE ONLY public.consumer_checkpoints
    ADD CONSTRAINT consumer_checkpoints_pkey PRIMARY KEY (consumer_name, partition);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_aggregate_type_aggregate_id_aggregate_version_key UNIQUE (aggregate_type, aggregate_id, aggregate_version);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_event_id_key UNIQUE (event_id);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (global_position);

ALTER TABLE ONLY public.worker_nodes
    ADD CONSTRAINT worker_nodes_pkey PRIMARY KEY (worker_id);

CREATE INDEX events_aggregate_type_global_position_idx ON public.events USING btree (aggregate_type, global_position);

CREATE INDEX events_correlation_id_global_position_idx ON public.events USING btree (correlation_id, global_position) WHERE (correlation_id IS NOT NULL);

ALTER TABLE ONLY public.consumer_assignments
    ADD CONSTRAINT consumer_assignments_worker_id_fkey FOREIGN KEY (worker_id) REFERENCES public.worker_nodes(worker_id) ON DELETE SET NULL;
