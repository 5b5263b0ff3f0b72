-- emit asks once instead of three times, and calls check_payload only where there is something for it to look at: an
-- escape, or many brackets. A regular expression over 1 KB took 15 of an emit's 140 µs, and each statement of a function
-- is a snapshot and an executor of its own.
--
-- Otherwise the function is as in 0013_trace_context.sql. It has no backslash any more that a session could read otherwise;
-- check_payload has, and from now on says itself how they are meant.

ALTER FUNCTION dealix.check_payload(text) SET standard_conforming_strings = on;

CREATE OR REPLACE FUNCTION dealix.emit(
    customer_id text,
    event_type text,
    payload text,
    INOUT event_id text DEFAULT NULL,
    notify boolean DEFAULT true,
    OUT matched integer
) LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    emitted_at timestamptz := clock_timestamp();
    emitted_day date := (emitted_at AT TIME ZONE 'UTC')::date;
    is_known boolean;
    is_heard boolean;
    ids text[];
    own_shard smallint;
    own_digest bytea;
    known_digest bytea;
    known_same boolean;
    known_matched integer;
    traceparent text := nullif(current_setting('dealix.traceparent', true), '');
BEGIN
    IF customer_id IS NULL OR customer_id !~ '^[A-Za-z0-9_.:-]{1,64}$' THEN
        RAISE EXCEPTION 'customer_id %: must be 1 to 64 characters of A-Z a-z 0-9 _ . : -',
            coalesce(quote_literal(left(customer_id, 80)), 'is NULL') USING ERRCODE = '22023';
    END IF;
    SELECT EXISTS (SELECT FROM dealix.event_types t WHERE t.type = event_type),
           EXISTS (SELECT FROM dealix.listeners l WHERE l.customer_id = emit.customer_id),
           (SELECT array_agg(s.id) FROM dealix.subscriptions s
            WHERE s.customer_id = emit.customer_id AND s.enabled AND (s.events = '{}' OR event_type = ANY (s.events)))
    INTO is_known, is_heard, ids;
    IF NOT is_known THEN
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
    IF strpos(payload, chr(92) || 'u') > 0
        OR length(payload) - length(replace(replace(payload, '[', ''), '{', '')) > 100 THEN
        PERFORM dealix.check_payload(payload);
    END IF;
    IF json_typeof(payload::json) <> 'object' THEN
        RAISE EXCEPTION 'payload is a JSON %: must be an object', json_typeof(payload::json) USING ERRCODE = '22023';
    END IF;

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

    IF traceparent IS NOT NULL THEN  -- by its characters: a regular expression that says the same takes 200 µs
        traceparent := CASE
            WHEN translate(left(traceparent, 55), '123456789abcdef', '000000000000000')
                     = '00-00000000000000000000000000000000-0000000000000000-00'
                 AND left(traceparent, 2) <> 'ff'
                 AND substr(traceparent, 4, 32) <> '00000000000000000000000000000000'
                 AND substr(traceparent, 37, 16) <> '0000000000000000'
                 AND (length(traceparent) = 55 OR left(traceparent, 2) <> '00' AND substr(traceparent, 56, 1) = '-')
            THEN '00' || substr(traceparent, 3, 53)
        END;
    END IF;
    INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched, traceparent)
    VALUES (event_id, customer_id, event_type, payload, emitted_at, emit.matched, traceparent);

    IF is_heard THEN
        INSERT INTO dealix.heard (customer_id, event_id, event_day, event_type)
        VALUES (emit.customer_id, emit.event_id, emitted_day, emit.event_type);
    END IF;

    IF matched > 0 THEN
        own_shard := dealix.shard_of(customer_id);
        INSERT INTO dealix.outbox
            (shard, customer_id, event_id, event_day, event_type, data_bytes, subscription_ids, traceparent)
        VALUES (own_shard, emit.customer_id, emit.event_id, emitted_day, emit.event_type, octet_length(payload), ids,
                traceparent);
        IF notify IS NOT FALSE
            AND pg_try_advisory_lock_shared(1145372674, own_shard) AND pg_advisory_unlock_shared(1145372674, own_shard)
            -- Owned by nobody: there is nobody to wake, and a NOTIFY in each commit makes emitters queue for each other.
            AND NOT (pg_try_advisory_lock_shared(1145372673, own_shard)
                     AND pg_advisory_unlock_shared(1145372673, own_shard))
            AND pg_notification_queue_usage() < 0.5 THEN
            PERFORM pg_notify('dealix_wake', own_shard::text);
        END IF;
    END IF;
END $$;
