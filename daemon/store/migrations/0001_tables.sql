-- The tables of schema `dealix`. Migrations only add; each runs in one transaction under an advisory lock.

CREATE SCHEMA IF NOT EXISTS dealix;

-- What customers may subscribe to and emitters may emit.
CREATE TABLE dealix.event_types (
    type        text PRIMARY KEY CHECK (type ~ '^[a-z0-9_]+(\.[a-z0-9_]+)+$' AND length(type) <= 128),
    description text NOT NULL
);

INSERT INTO dealix.event_types (type, description) VALUES
    ('company.created',     'A company was added to the account.'),
    ('company.updated',     'A company''s details changed.'),
    ('contact.created',     'A contact was added to the account.'),
    ('contact.updated',     'A contact''s details changed.'),
    ('deal.created',        'A deal was opened.'),
    ('deal.lost',           'A deal was closed as lost.'),
    ('deal.stage_changed',  'A deal moved to another stage of its pipeline.'),
    ('deal.updated',        'A deal''s details changed.'),
    ('deal.won',            'A deal was closed as won.'),
    ('invoice.created',     'An invoice was issued.'),
    ('invoice.overdue',     'An invoice passed its due date unpaid.'),
    ('invoice.paid',        'An invoice was paid in full.'),
    ('lead.converted',      'A lead became a contact with a deal.'),
    ('lead.created',        'A lead came in.'),
    ('lead.updated',        'A lead''s details changed.'),
    ('payment.failed',      'A payment was declined or reversed.'),
    ('payment.received',    'A payment arrived.'),
    ('quote.accepted',      'A customer accepted a quote.'),
    ('quote.sent',          'A quote was sent to a customer.');

-- Configuration only: what matching and sending read. Counters live in subscription_health, so that a health update
-- never touches a row that emitters read.
CREATE TABLE dealix.subscriptions (
    id                          text PRIMARY KEY CHECK (id ~ '^whk_[0-9a-f]{24}$'),
    customer_id                 text NOT NULL CHECK (customer_id ~ '^[A-Za-z0-9_.:-]{1,64}$'),
    endpoint_url                text NOT NULL CHECK (length(endpoint_url) <= 500),
    events                      text[] NOT NULL DEFAULT '{}',      -- empty: every type
    description                 text CHECK (length(description) <= 255),
    enabled                     boolean NOT NULL DEFAULT true,
    disabled_reason             text,                              -- consecutive_failures | gone | requested | secret_unreadable
    secret_sealed               bytea NOT NULL,                    -- AES-256-GCM, see daemon/sealing.py
    previous_secret_sealed      bytea,
    previous_secret_expires_at  timestamptz,
    version                     bigint NOT NULL DEFAULT 1,         -- raised by every change; an actor signs with no older one
    created_at                  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at                  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (enabled = (disabled_reason IS NULL))
);
CREATE INDEX subscriptions_match ON dealix.subscriptions (customer_id) WHERE enabled;
CREATE INDEX subscriptions_list ON dealix.subscriptions (customer_id, created_at DESC, id DESC);

CREATE FUNCTION dealix.subscription_changing() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.version := OLD.version + 1;
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER changing BEFORE UPDATE ON dealix.subscriptions
    FOR EACH ROW EXECUTE FUNCTION dealix.subscription_changing();

-- A hint that makes a change quick to take effect; every daemon also looks by itself, twice a second.
CREATE FUNCTION dealix.subscription_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('dealix_config', OLD.id);
    RETURN NULL;
END $$;
CREATE TRIGGER changed AFTER UPDATE OR DELETE ON dealix.subscriptions
    FOR EACH ROW EXECUTE FUNCTION dealix.subscription_changed();

CREATE TABLE dealix.subscription_health (
    subscription_id       text PRIMARY KEY,
    consecutive_failures  integer NOT NULL DEFAULT 0,
    circuit               text NOT NULL DEFAULT 'closed' CHECK (circuit IN ('closed', 'open')),
    cooldown_s            real NOT NULL DEFAULT 0,                 -- the present cool-down, doubled by each failed probe
    reopen_at             timestamptz,                             -- while open: from here on one probe may go
    last_delivery_at      timestamptz,
    last_status_code      smallint
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Subscriptions that may have held deliveries. `generation` rises with each holding, so that "nothing is held any
-- more" can be written without a race: DELETE … WHERE generation = what was read before looking.
CREATE TABLE dealix.roster (
    subscription_id  text PRIMARY KEY,
    shard            smallint NOT NULL,
    generation       bigint NOT NULL DEFAULT 1
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX roster_shard ON dealix.roster (shard);

-- Append-only, one partition a UTC day. `data` is text: the bytes go out as they came in.
CREATE TABLE dealix.events (
    id           text NOT NULL,
    customer_id  text NOT NULL,
    type         text NOT NULL,
    data         text NOT NULL,
    created_at   timestamptz NOT NULL,
    matched      integer NOT NULL
) PARTITION BY RANGE (created_at);
CREATE INDEX events_id ON dealix.events (customer_id, id);

-- Ids that emitters chose themselves. Unpartitioned: a unique key cannot leave out the partition key.
CREATE TABLE dealix.event_keys (
    customer_id  text NOT NULL,
    event_id     text NOT NULL,
    event_day    date NOT NULL,
    matched      integer NOT NULL,
    digest       bytea NOT NULL,                                   -- SHA-256 of type and data
    CONSTRAINT event_keys_pkey PRIMARY KEY (customer_id, event_id)
);
CREATE INDEX event_keys_day ON dealix.event_keys USING brin (event_day);

-- One row per event that matched anything, until fan-out.
CREATE TABLE dealix.outbox (
    shard             smallint NOT NULL,
    id                bigint GENERATED ALWAYS AS IDENTITY,
    event_id          text NOT NULL,
    event_day         date NOT NULL,
    event_type        text NOT NULL,
    data_bytes        integer NOT NULL,
    subscription_ids  text[] NOT NULL,
    PRIMARY KEY (shard, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);

-- One row per duty that is not finished. Three states:
--   claimed    claimed,     due = end of the lease; `attempt` is counted already
--   scheduled  NOT claimed, due = when it may be claimed
--   held       NOT claimed, due IS NULL (disabled, breaker open, or more than the actor has room for)
CREATE TABLE dealix.deliveries (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id         text NOT NULL,
    event_day        date NOT NULL,
    event_type       text NOT NULL,
    subscription_id  text NOT NULL,
    shard            smallint NOT NULL,
    attempt          smallint NOT NULL,                            -- attempts begun so far
    steps            smallint NOT NULL,                            -- steps of the retry schedule used so far
    claimed          boolean NOT NULL,
    due              timestamptz,
    CHECK (due IS NOT NULL OR NOT claimed)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX deliveries_duty ON dealix.deliveries (event_id, subscription_id);
CREATE INDEX deliveries_due ON dealix.deliveries (shard, due) WHERE due IS NOT NULL;
CREATE INDEX deliveries_held ON dealix.deliveries (subscription_id, id) WHERE due IS NULL;

-- The delivery log, append-only, one partition a UTC day. Ids begin with the millisecond of created_at and so sort by
-- time: every list is walked by id.
CREATE TABLE dealix.attempts (
    id                  text NOT NULL,
    created_at          timestamptz NOT NULL,                      -- when the attempt began
    customer_id         text NOT NULL,
    subscription_id     text NOT NULL,
    event_id            text NOT NULL,
    event_day           date NOT NULL,
    event_type          text NOT NULL,
    attempt             smallint NOT NULL,
    outcome             text NOT NULL CHECK (outcome IN ('delivered', 'retry', 'failed', 'exhausted', 'gone',
                                                         'interrupted', 'expired', 'test_failed')),
    success             boolean NOT NULL,
    endpoint_url        text NOT NULL,
    status_code         smallint,
    error               text,
    duration_ms         integer,
    signature           text,                                      -- Dealix-Signature as sent
    webhook_signature   text,                                      -- webhook-signature as sent
    response_headers    text,                                      -- JSON: [[name, value], …]
    response_body       text,                                      -- at most 4 KiB, made printable
    response_truncated  boolean NOT NULL DEFAULT false
) PARTITION BY RANGE (created_at);
CREATE UNIQUE INDEX attempts_id ON dealix.attempts (id, created_at); -- a batch of results that comes twice fails on it
CREATE INDEX attempts_customer ON dealix.attempts (customer_id, id);
CREATE INDEX attempts_customer_failed ON dealix.attempts (customer_id, id) WHERE NOT success;
CREATE INDEX attempts_subscription ON dealix.attempts (subscription_id, id);
CREATE INDEX attempts_event ON dealix.attempts (event_id);

-- Attempts per day, customer and type. A finer rollup measured larger than the log itself.
CREATE TABLE dealix.daily_stats (
    day              date NOT NULL,
    customer_id      text NOT NULL,
    event_type       text NOT NULL,
    success          bigint NOT NULL,
    failed           bigint NOT NULL,
    duration_ms      bigint NOT NULL,                              -- sum over both
    latency_buckets  bigint[] NOT NULL,                            -- counts by upper bound, see daemon/policy/latency.py
    PRIMARY KEY (customer_id, day, event_type)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE FUNCTION dealix.add_buckets(bigint[], bigint[]) RETURNS bigint[] LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT array_agg(coalesce(a, 0) + coalesce(b, 0) ORDER BY i) FROM unnest($1, $2) WITH ORDINALITY AS t (a, b, i)
$$;

CREATE TABLE dealix.api_keys (
    id            text PRIMARY KEY CHECK (id ~ '^key_[0-9a-f]{24}$'),
    digest        bytea NOT NULL UNIQUE CHECK (length(digest) = 32),  -- SHA-256 of the key; the key itself is nowhere
    customer_id   text CHECK (customer_id ~ '^[A-Za-z0-9_.:-]{1,64}$'), -- NULL: an ops key
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_used_at  timestamptz,
    expires_at    timestamptz,
    revoked_at    timestamptz
);

-- A day's partition, made apart and then attached: CREATE TABLE … PARTITION OF would queue every emit behind one open
-- emitter, ATTACH takes a lock that emitters do not conflict with. Idempotent. The CHECK spares the attach its scan.
CREATE FUNCTION dealix.make_partition(parent text, day date) RETURNS boolean LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    child text := parent || '_' || to_char(day, 'YYYYMMDD');
    low timestamptz := day::timestamp AT TIME ZONE 'UTC';
    high timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
BEGIN
    IF parent NOT IN ('events', 'attempts') THEN
        RAISE EXCEPTION 'no partitioned table "%"', parent USING ERRCODE = '22023';
    END IF;
    IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = ('dealix.' || parent)::regclass AND c.relname = child) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE IF NOT EXISTS dealix.%I (LIKE dealix.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
                    CONSTRAINT day CHECK (created_at >= %L AND created_at < %L))', child, parent, low, high);
    EXECUTE format('ALTER TABLE dealix.%I ATTACH PARTITION dealix.%I FOR VALUES FROM (%L) TO (%L)',
                   parent, child, low, high);
    EXECUTE format('ALTER TABLE dealix.%I DROP CONSTRAINT day', child);
    RETURN true;
END $$;

-- Attempt ids as daemon/ids.py makes them: the millisecond, then 12 random digits.
CREATE FUNCTION dealix.attempt_id(created_at timestamptz) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT 'dlv_' || lpad(to_hex(floor(extract(epoch FROM created_at) * 1000)::bigint), 12, '0')
           || left(replace(gen_random_uuid()::text, '-', ''), 12)
$$;
