-- events
CREATE TABLE events (
    global_position BIGINT GENERATED ALWAYS AS IDENTITY, 
    aggregate_type TEXT NOT NULL, 
    aggregate_id TEXT NOT NULL, 
    aggregate_version BIGINT NOT NULL, 
    event_id UUID NOT NULL, 
    event_type TEXT NOT NULL, 
    event_version INTEGER DEFAULT 1 NOT NULL, 
    payload BYTEA NOT NULL, 
    trace_id TEXT, 
    correlation_id TEXT, 
    causation_id TEXT, 
    metadata JSONB, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    CONSTRAINT events_pkey PRIMARY KEY (global_position), 
    CONSTRAINT events_event_id_key UNIQUE (event_id), 
    CONSTRAINT events_aggregate_type_aggregate_id_aggregate_version_key UNIQUE (aggregate_type, aggregate_id, aggregate_version)
);

-- events_aggregate_type_global_position_idx
CREATE INDEX events_aggregate_type_global_position_idx ON events (aggregate_type, global_position);

-- events_correlation_id_global_position_idx
CREATE INDEX events_correlation_id_global_position_idx ON events (correlation_id, global_position) WHERE correlation_id IS NOT NULL;

-- aggregate_heads
CREATE TABLE aggregate_heads (
    aggregate_type TEXT NOT NULL, 
    aggregate_id TEXT NOT NULL, 
    aggregate_version BIGINT NOT NULL, 
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    CONSTRAINT aggregate_heads_pkey PRIMARY KEY (aggregate_type, aggregate_id)
);

-- worker_nodes
CREATE TABLE worker_nodes (
    worker_id UUID NOT NULL, 
    hostname TEXT NOT NULL, 
    pid INTEGER NOT NULL, 
    consumers TEXT[] NOT NULL, 
    heartbeat_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    running JSONB, 
    protocol INTEGER DEFAULT 1 NOT NULL, 
    CONSTRAINT worker_nodes_pkey PRIMARY KEY (worker_id)
);

-- consumer_assignments
CREATE TABLE consumer_assignments (
    consumer_name TEXT NOT NULL, 
    partition INTEGER NOT NULL, 
    worker_id UUID, 
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    log TEXT, 
    CONSTRAINT consumer_assignments_pkey PRIMARY KEY (consumer_name, partition), 
    CONSTRAINT consumer_assignments_worker_id_fkey FOREIGN KEY(worker_id) REFERENCES worker_nodes (worker_id) ON DELETE SET NULL
);

-- consumer_checkpoints
CREATE TABLE consumer_checkpoints (
    consumer_name TEXT NOT NULL, 
    partition INTEGER NOT NULL, 
    last_position BIGINT DEFAULT 0 NOT NULL, 
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    failed_position BIGINT, 
    attempts INTEGER DEFAULT 0 NOT NULL, 
    error TEXT, 
    failed_at TIMESTAMP WITH TIME ZONE, 
    retry_at TIMESTAMP WITH TIME ZONE, 
    parked_at TIMESTAMP WITH TIME ZONE, 
    log TEXT, 
    partitions INTEGER, 
    done BIGINT[], 
    parked_aggregates INTEGER DEFAULT 0 NOT NULL, 
    paused_at TIMESTAMP WITH TIME ZONE, 
    paused_reason TEXT, 
    renamed_to TEXT, 
    deaths INTEGER DEFAULT 0 NOT NULL, 
    claim BIGINT DEFAULT 0 NOT NULL, 
    claimed_by UUID, 
    claim_until TIMESTAMP WITH TIME ZONE, 
    start_position BIGINT, 
    CONSTRAINT consumer_checkpoints_pkey PRIMARY KEY (consumer_name, partition)
);

-- consumer_parked_aggregates
CREATE TABLE consumer_parked_aggregates (
    consumer_name TEXT NOT NULL, 
    aggregate_type TEXT NOT NULL, 
    aggregate_id TEXT NOT NULL, 
    position BIGINT NOT NULL, 
    attempts INTEGER DEFAULT 0 NOT NULL, 
    error TEXT, 
    parked_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    retry_at TIMESTAMP WITH TIME ZONE, 
    log TEXT, 
    CONSTRAINT consumer_parked_aggregates_pkey PRIMARY KEY (consumer_name, aggregate_type, aggregate_id)
);

-- consumer_operations
CREATE TABLE consumer_operations (
    id BIGINT GENERATED ALWAYS AS IDENTITY, 
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    actor TEXT NOT NULL, 
    consumer_name TEXT NOT NULL, 
    operation TEXT NOT NULL, 
    detail JSONB NOT NULL, 
    log TEXT, 
    CONSTRAINT consumer_operations_pkey PRIMARY KEY (id)
);
