-- A batch goes in one pass. emit_batch called emit for each event, which is mostly what statements and functions cost by
-- themselves: by SQL 22,000 events a second for 5,400 (docs/decisions.md).

-- The present transaction's traceparent, NULL for none and for a malformed one. emit says the same in its own words
-- (0015_leaner_emit.sql), where a call would cost each event something.
CREATE FUNCTION dealix.current_traceparent() RETURNS text LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS $$
    SELECT '00' || substr(given, 3, 53)
    FROM (SELECT current_setting('dealix.traceparent', true)) AS s (given)
    WHERE translate(left(given, 55), '123456789abcdef', '000000000000000')
            = '00-00000000000000000000000000000000-0000000000000000-00'
        AND left(given, 2) <> 'ff'
        AND substr(given, 4, 32) <> '00000000000000000000000000000000'
        AND substr(given, 37, 16) <> '0000000000000000'
        AND (length(given) = 55 OR left(given, 2) <> '00' AND substr(given, 56, 1) = '-')
$$;

-- What emit does, for all at once. Raises 22023 or what a check of emit's raises, in words for nobody, where any event
-- would be refused or has an own id that has been there: those are emit's to judge. All have one time, and ids that
-- count up from a random one: independent ones of one millisecond would meet once in 500 million full batches.
-- The subscriptions are looked up as emit does it; its locks are emit's too.
CREATE FUNCTION dealix.emit_together(customer_ids text[], event_types text[], payloads text[], event_ids text[])
    RETURNS TABLE (event_id text, matched integer) LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    emitted_at timestamptz := clock_timestamp();
    emitted_day date := (emitted_at AT TIME ZONE 'UTC')::date;
    prefix text := 'evt_' || lpad(to_hex(floor(extract(epoch FROM emitted_at) * 1000)::bigint), 12, '0');
    first_id bigint := ('x' || left(replace(gen_random_uuid()::text, '-', ''), 12))::bit(48)::bigint;
    traceparent text := dealix.current_traceparent();
    made_ids text[];
    matches integer[];
    were_there boolean;
    shards smallint[];
    own_shard smallint;
BEGIN
    PERFORM dealix.check_payload(t.payload)
    FROM unnest(payloads) AS t (payload)
    WHERE strpos(t.payload, chr(92) || 'u') > 0
        OR length(t.payload) - length(replace(replace(t.payload, '[', ''), '{', '')) > 100;

    PERFORM FROM unnest(customer_ids, event_types, payloads, event_ids) AS t (customer_id, event_type, payload, event_id)
    WHERE (t.customer_id ~ '^[A-Za-z0-9_.:-]{1,64}$'
           AND EXISTS (SELECT FROM dealix.event_types k WHERE k.type = t.event_type)
           AND octet_length(t.payload) <= 262144
           AND json_typeof(t.payload::json) = 'object'
           AND (t.event_id IS NULL
                OR t.event_id ~ '^[A-Za-z0-9_:-]{1,128}$' AND t.event_id !~ '^evt_[0-9a-f]{24}$')) IS NOT TRUE;
    IF FOUND OR to_regclass('dealix.events_' || to_char(emitted_day, 'YYYYMMDD')) IS NULL THEN
        RAISE EXCEPTION 'one of them is not for here' USING ERRCODE = '22023';
    END IF;

    WITH item AS MATERIALIZED (
        SELECT t.ordinal, t.customer_id, t.event_type, t.payload, t.event_id IS NOT NULL AS own,
               coalesce(t.event_id, prefix || lpad(to_hex((first_id + t.ordinal) & 281474976710655), 12, '0')) AS event_id,
               m.ids, coalesce(cardinality(m.ids), 0) AS matched
        FROM unnest(customer_ids, event_types, payloads, event_ids)
            WITH ORDINALITY AS t (customer_id, event_type, payload, event_id, ordinal)
        CROSS JOIN LATERAL (
            SELECT array_agg(s.id) AS ids FROM dealix.subscriptions s
            WHERE s.customer_id = t.customer_id AND s.enabled AND (s.events = '{}' OR t.event_type = ANY (s.events))
        ) AS m
    ), key AS (
        INSERT INTO dealix.event_keys (customer_id, event_id, event_day, matched, digest)
        SELECT i.customer_id, i.event_id, emitted_day, i.matched,
               sha256(convert_to(i.event_type || chr(10) || i.payload, 'UTF8'))
        FROM item i WHERE i.own ORDER BY i.ordinal
        ON CONFLICT ON CONSTRAINT event_keys_pkey DO NOTHING
        RETURNING 1
    ), event AS (
        INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched, traceparent)
        SELECT i.event_id, i.customer_id, i.event_type, i.payload, emitted_at, i.matched, traceparent
        FROM item i ORDER BY i.ordinal
    ), noted AS (
        INSERT INTO dealix.heard (customer_id, event_id, event_day, event_type)
        SELECT i.customer_id, i.event_id, emitted_day, i.event_type
        FROM item i WHERE EXISTS (SELECT FROM dealix.listeners l WHERE l.customer_id = i.customer_id) ORDER BY i.ordinal
    ), waiting AS (
        INSERT INTO dealix.outbox
            (shard, customer_id, event_id, event_day, event_type, data_bytes, subscription_ids, traceparent)
        SELECT dealix.shard_of(i.customer_id), i.customer_id, i.event_id, emitted_day, i.event_type,
               octet_length(i.payload), i.ids, traceparent
        FROM item i WHERE i.matched > 0 ORDER BY i.ordinal
        RETURNING shard
    )
    SELECT array_agg(i.event_id ORDER BY i.ordinal), array_agg(i.matched ORDER BY i.ordinal),
           count(*) FILTER (WHERE i.own) > (SELECT count(*) FROM key), ARRAY(SELECT DISTINCT w.shard FROM waiting w)
    INTO made_ids, matches, were_there, shards
    FROM item i;
    IF were_there THEN
        RAISE EXCEPTION 'one of them may be the same event again' USING ERRCODE = '23505';
    END IF;

    FOREACH own_shard IN ARRAY shards LOOP  -- as emit does it
        IF pg_try_advisory_lock_shared(1145372674, own_shard) AND pg_advisory_unlock_shared(1145372674, own_shard)
            AND NOT (pg_try_advisory_lock_shared(1145372673, own_shard)
                     AND pg_advisory_unlock_shared(1145372673, own_shard))
            AND pg_notification_queue_usage() < 0.5 THEN
            PERFORM pg_notify('dealix_wake', own_shard::text);
        END IF;
    END LOOP;
    RETURN QUERY SELECT * FROM unnest(made_ids, matches);
END $$;

CREATE OR REPLACE FUNCTION dealix.emit_batch(customer_ids text[], event_types text[], payloads text[], event_ids text[])
    RETURNS TABLE (ordinal integer, event_id text, matched integer) LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item record;
BEGIN
    BEGIN
        RETURN QUERY SELECT t.ordinal::integer, t.event_id, t.matched
        FROM dealix.emit_together(customer_ids, event_types, payloads, event_ids)
            WITH ORDINALITY AS t (event_id, matched, ordinal);
        RETURN;
    EXCEPTION WHEN data_exception OR unique_violation THEN
        ordinal := 0;  -- nothing has been done: now event by event
    END;
    FOR item IN
        SELECT t.customer_id, t.event_type, t.payload, t.event_id
        FROM unnest(customer_ids, event_types, payloads, event_ids) AS t (customer_id, event_type, payload, event_id)
    LOOP
        ordinal := ordinal + 1;
        SELECT e.event_id, e.matched INTO emit_batch.event_id, emit_batch.matched
        FROM dealix.emit(item.customer_id, item.event_type, item.payload, item.event_id) e;
        RETURN NEXT;
    END LOOP;
EXCEPTION WHEN data_exception OR unique_violation THEN
    RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM, DATATYPE = ordinal::text;
END $$;
