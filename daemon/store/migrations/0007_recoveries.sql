-- Recoveries: bulk replays of one subscription's events, as jobs that the owner of the customer's shard works off.

-- One row is all that a job is: where its walk stands, what it has on its way, what came of the rest. A daemon that is
-- killed leaves nothing to be found elsewhere, and whoever owns the shard next goes on from here.
CREATE TABLE dealix.recoveries (
    id               text PRIMARY KEY CHECK (id ~ '^rec_[0-9a-f]{24}$'),
    customer_id      text NOT NULL,
    subscription_id  text NOT NULL,
    shard            smallint NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('failed', 'missed', 'all')),
    since            timestamptz NOT NULL,                         -- of the events' emission: included
    until            timestamptz NOT NULL,                         -- not included; never after created_at
    state            text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'finished', 'cancelled')),
    queued           bigint NOT NULL,                              -- as counted at the start, exact once it has ended
    exact            boolean NOT NULL,                             -- false: there were more than could be counted in time
    done             bigint NOT NULL DEFAULT 0,                    -- delivered
    failed           bigint NOT NULL DEFAULT 0,                    -- attempted, not delivered
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at         timestamptz,
    stepped_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    day              date NOT NULL,                                -- the walk: this UTC day's rows above `place` come next
    place            text NOT NULL DEFAULT '',
    walked           boolean NOT NULL DEFAULT false,               -- the walk has reached its end
    open_events      text[] NOT NULL DEFAULT '{}',                 -- on their way: event and number of the attempt
    open_attempts    smallint[] NOT NULL DEFAULT '{}',
    CHECK ((state = 'running') = (ended_at IS NULL)),
    CHECK (cardinality(open_events) = cardinality(open_attempts))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE UNIQUE INDEX recoveries_running ON dealix.recoveries (subscription_id) WHERE state = 'running'; -- one at a time
CREATE INDEX recoveries_shard ON dealix.recoveries (shard) WHERE state = 'running';
CREATE INDEX recoveries_list ON dealix.recoveries (customer_id, id);

-- Events that a test-fire made. They are nobody's to recover: to the other subscriptions they would look like missed ones.
CREATE TABLE dealix.test_events (
    customer_id  text NOT NULL,
    event_id     text NOT NULL,
    event_day    date NOT NULL,
    PRIMARY KEY (customer_id, event_id)
);
CREATE INDEX test_events_day ON dealix.test_events USING brin (event_day);
