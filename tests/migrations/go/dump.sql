-- A log as pupsourcing/store (Go) creates it in PostgreSQL: its tables, its indexes and their names, as pg_dump has them.

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

CREATE SEQUENCE public.events_global_position_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.events_global_position_seq OWNED BY public.events.global_position;

ALTER TABLE ONLY public.events ALTER COLUMN global_position SET DEFAULT nextval('public.events_global_position_seq'::regclass);

INSERT INTO public.aggregate_heads VALUES ('User', 'ann', 3, '2025-03-01 12:00:00+00');
INSERT INTO public.aggregate_heads VALUES ('User', 'bob', 1, '2025-03-01 12:00:00+00');

INSERT INTO public.events VALUES (1, 'User', 'ann', 1, '00000000-0000-0000-0000-000000000001', 'UserRegistered', 1, '\x7b22656d61696c223a2022616e6e406578616d706c652e6f7267227d', NULL, 'c1', NULL, '{"source": "go"}', '2025-03-01 12:00:00+00');
INSERT INTO public.events VALUES (2, 'User', 'ann', 2, '00000000-0000-0000-0000-000000000002', 'UserRenamed', 1, '\x7b22656d61696c223a2022616e6e406578616d706c652e6f7267227d', NULL, NULL, NULL, '{"source": "go"}', '2025-03-01 12:00:00+00');
INSERT INTO public.events VALUES (3, 'User', 'bob', 1, '00000000-0000-0000-0000-000000000003', 'UserRegistered', 1, '\x7b22656d61696c223a2022626f62406578616d706c652e6f7267227d', NULL, NULL, NULL, '{"source": "go"}', '2025-03-01 12:00:00+00');
INSERT INTO public.events VALUES (5, 'User', 'ann', 3, '00000000-0000-0000-0000-000000000005', 'UserRenamed', 1, '\x7b22656d61696c223a2022616e6e406578616d706c652e6f7267227d', NULL, NULL, NULL, '{"source": "go"}', '2025-03-01 12:00:00+00');

SELECT pg_catalog.setval('public.events_global_position_seq', 5, true);

ALTER TABLE ONLY public.aggregate_heads
    ADD CONSTRAINT aggregate_heads_pkey PRIMARY KEY (aggregate_type, aggregate_id);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_aggregate_type_aggregate_id_aggregate_version_key UNIQUE (aggregate_type, aggregate_id, aggregate_version);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_event_id_key UNIQUE (event_id);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (global_position);

CREATE INDEX idx_aggregate_heads_updated ON public.aggregate_heads USING btree (updated_at);

CREATE INDEX idx_events_aggregate ON public.events USING btree (aggregate_type, aggregate_id, aggregate_version);

CREATE INDEX idx_events_correlation ON public.events USING btree (correlation_id) WHERE (correlation_id IS NOT NULL);

CREATE INDEX idx_events_event_type ON public.events USING btree (event_type, global_position);
