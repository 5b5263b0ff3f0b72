-- Live streams of a customer's events (GET /events/stream, dealix listen).
--
-- A stream has to show each event once, also one whose transaction commits late. Neither an event's id nor its time is
-- in the order of commits, and a column for that in `events` would have to wait for every open emitter. So events of
-- customers who are listened to, and of nobody else, are noted in a table of their own, in their own transaction. A
-- stream goes by (xid, id) and shows what lies below the oldest transaction that is still running: nothing can appear
-- there any more. `xid` is that of the whole transaction, of 64 bits, so that neither savepoints nor wraparound matter.

-- Whose events are noted. A row stays for an hour after the last stream was there, so that a broken one can go on.
CREATE TABLE dealix.listeners (
    customer_id  text PRIMARY KEY,
    since_id     bigint NOT NULL,            -- streams that began before this value of heard.id belong to an earlier row
    kept_from    bigint NOT NULL DEFAULT 0,  -- what lies below this xid may have been deleted
    until        timestamptz NOT NULL
);

CREATE TABLE dealix.heard (
    customer_id  text NOT NULL,
    xid          bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    id           bigint GENERATED ALWAYS AS IDENTITY,
    event_id     text NOT NULL,
    event_day    date NOT NULL,
    event_type   text NOT NULL,
    PRIMARY KEY (customer_id, xid, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The function is as in 0002_emit.sql but for these:
-- a day without a partition, where no daemon has run for so long, is an error that says so and what to do;
-- the outbox row has its customer (0011_outbox_by_customer.sql);
-- nobody is rung for where the NOTIFY queue is half full (0004_trouble.sql) or nobody owns the shard;
-- and the event is noted for those who listen, of whom there are none as a rule.
CREATE OR REPLACE FUNCTION dealix.emit(
    customer_id text,
    event_type text,
    payload text,
    INOUT event_id text DEFAULT NULL,
    notify boolean DEFAULT true,
    OUT matched integer
) LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET standard_conforming_strings = on AS $$   -- the emitter's session may read the backslashes in here otherwise
#variable_conflict use_variable
DECLARE
    emitted_at timestamptz := clock_timestamp();
    emitted_day date := (emitted_at AT TIME ZONE 'UTC')::date;
    ids text[];
    own_shard smallint;
    own_digest bytea;
    known_digest bytea;
    known_same boolean;
    known_matched integer;
BEGIN
    IF customer_id IS NULL OR customer_id !~ '^[A-Za-z0-9_.:-]{1,64}$' THEN
        RAISE EXCEPTION 'customer_id %: must be 1 to 64 characters of A-Z a-z 0-9 _ . : -',
            coalesce(quote_literal(left(customer_id, 80)), 'is NULL') USING ERRCODE = '22023';
    END IF;
    IF event_type IS NULL OR NOT EXISTS (SELECT FROM dealix.event_types t WHERE t.type = event_type) THEN
        RAISE EXCEPTION 'event_type %: not a known event type', coalesce(quote_literal(left(event_type, 80)), 'is NULL')
            USING ERRCODE = '22023', HINT = 'GET /api/v1/ecosystem/event-types lists them.';
    END IF;
    IF payload IS NULL THEN
        RAISE EXCEPTION 'payload is NULL: must be a JSON object' USING ERRCODE = '22023';
    END IF;
    IF octet_length(payload) > 262144 THEN
        RAISE EXCEPTION 'payload has % bytes: at most 262144 (256 KiB) are allowed', octet_length(payload)
            USING ERRCODE = '22023';
    END IF;
    IF event_id !~ '^[A-Za-z0-9_:-]{1,128}$' THEN
        RAISE EXCEPTION 'event_id %: must be 1 to 128 characters of A-Z a-z 0-9 _ : -', quote_literal(left(event_id, 140))
            USING ERRCODE = '22023';
    END IF;
    IF to_regclass('dealix.events_' || to_char(emitted_day, 'YYYYMMDD')) IS NULL THEN
        RAISE EXCEPTION 'events of % have no partition: the daemon makes them 90 days ahead and has not run for that long',
            emitted_day USING ERRCODE = '55000', HINT = 'Start the daemon, or run: dealix migrate';
    END IF;
    PERFORM dealix.check_payload(payload);
    IF json_typeof(payload::json) <> 'object' THEN
        RAISE EXCEPTION 'payload is a JSON %: must be an object', json_typeof(payload::json) USING ERRCODE = '22023';
    END IF;

    SELECT array_agg(s.id) INTO ids FROM dealix.subscriptions s
    WHERE s.customer_id = emit.customer_id AND s.enabled AND (s.events = '{}' OR event_type = ANY (s.events));
    matched := coalesce(cardinality(ids), 0);

    IF event_id IS NULL THEN
        event_id := 'evt_' || lpad(to_hex(floor(extract(epoch FROM emitted_at) * 1000)::bigint), 12, '0')
                    || left(replace(gen_random_uuid()::text, '-', ''), 12);
    ELSE
        -- Somebody may hand back an id that emit itself once made: that is the same event too.
        IF event_id ~ '^evt_[0-9a-f]{24}$' THEN
            SELECT e.type = event_type AND e.data = payload, e.matched INTO known_same, known_matched
            FROM dealix.events e WHERE e.customer_id = emit.customer_id AND e.id = emit.event_id;
            IF known_same THEN
                matched := known_matched;
                RETURN;
            ELSIF NOT known_same THEN
                RAISE EXCEPTION 'event_id %: already emitted with another type or payload', quote_literal(event_id)
                    USING ERRCODE = '23505';
            END IF;
        END IF;
        own_digest := sha256(convert_to(event_type || chr(10) || payload, 'UTF8'));
        INSERT INTO dealix.event_keys AS k (customer_id, event_id, event_day, matched, digest)
        VALUES (emit.customer_id, emit.event_id, emitted_day, emit.matched, own_digest)
        ON CONFLICT ON CONSTRAINT event_keys_pkey DO NOTHING;
        IF NOT FOUND THEN
            SELECT k.digest, k.matched INTO known_digest, known_matched FROM dealix.event_keys k
            WHERE k.customer_id = emit.customer_id AND k.event_id = emit.event_id;
            IF known_digest IS DISTINCT FROM own_digest THEN
                RAISE EXCEPTION 'event_id %: already emitted with another type or payload', quote_literal(event_id)
                    USING ERRCODE = '23505';
            END IF;
            matched := known_matched;
            RETURN;
        END IF;
    END IF;

    INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched)
    VALUES (event_id, customer_id, event_type, payload, emitted_at, emit.matched);

    IF EXISTS (SELECT FROM dealix.listeners l WHERE l.customer_id = emit.customer_id) THEN
        INSERT INTO dealix.heard (customer_id, event_id, event_day, event_type)
        VALUES (emit.customer_id, emit.event_id, emitted_day, emit.event_type);
    END IF;

    IF matched > 0 THEN
        own_shard := dealix.shard_of(customer_id);
        INSERT INTO dealix.outbox (shard, customer_id, event_id, event_day, event_type, data_bytes, subscription_ids)
        VALUES (own_shard, emit.customer_id, emit.event_id, emitted_day, emit.event_type, octet_length(payload), ids);
        IF notify IS NOT FALSE THEN
            PERFORM pg_notify('dealix_wake', own_shard::text)
            WHERE pg_try_advisory_lock_shared(1145372674, own_shard) AND pg_advisory_unlock_shared(1145372674, own_shard)
              -- Owned by nobody: there is nobody to wake, and a NOTIFY in each commit makes emitters queue for each other.
              AND NOT (pg_try_advisory_lock_shared(1145372673, own_shard)
                       AND pg_advisory_unlock_shared(1145372673, own_shard))
              AND pg_notification_queue_usage() < 0.5;
        END IF;
    END IF;
END $$;
