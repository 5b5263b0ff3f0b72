-- The customers' portal: links that let a browser in, sessions, and figures by the hour for its charts.

-- A link is made by an ops key for one customer and works for whoever has it until it expires or is revoked.
CREATE TABLE dealix.portal_links (
    id           text PRIMARY KEY CHECK (id ~ '^plk_[0-9a-f]{24}$'),
    digest       bytea NOT NULL UNIQUE CHECK (length(digest) = 32), -- SHA-256 of the token in the link
    customer_id  text NOT NULL CHECK (customer_id ~ '^[A-Za-z0-9_.:-]{1,64}$'),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz
);

-- A browser that is signed in, by a link or by an API key, for as long as that one is good.
CREATE TABLE dealix.portal_sessions (
    digest       bytea PRIMARY KEY CHECK (length(digest) = 32),    -- SHA-256 of the cookie
    link_id      text REFERENCES dealix.portal_links (id) ON DELETE CASCADE,
    key_id       text REFERENCES dealix.api_keys (id) ON DELETE CASCADE,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    CHECK ((link_id IS NULL) <> (key_id IS NULL))
);
CREATE INDEX portal_sessions_link ON dealix.portal_sessions (link_id);
CREATE INDEX portal_sessions_key ON dealix.portal_sessions (key_id);
CREATE INDEX portal_sessions_expiry ON dealix.portal_sessions (expires_at);
CREATE INDEX portal_links_expiry ON dealix.portal_links (expires_at);

-- Attempts per hour and customer, kept in the recorder's statement as daily_stats is, for a week and a day.
CREATE TABLE dealix.hourly_stats (
    customer_id      text NOT NULL,
    hour             timestamptz NOT NULL,
    success          bigint NOT NULL,
    failed           bigint NOT NULL,
    latency_buckets  bigint[] NOT NULL,                            -- as in daily_stats
    PRIMARY KEY (customer_id, hour)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX hourly_stats_hour ON dealix.hourly_stats USING brin (hour);
