-- As in 0009_catalogue.sql, but for the customer in the outbox row: operational events take their turn like all others.

CREATE OR REPLACE FUNCTION dealix.tell(customer_id text, subject text, event_type text, data text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    told_at timestamptz := clock_timestamp();
    told_day date := (told_at AT TIME ZONE 'UTC')::date;
    own_shard smallint := dealix.shard_of(customer_id);
    event_id text;
    ids text[];
BEGIN
    SELECT array_agg(s.id) INTO ids FROM dealix.subscriptions s
    WHERE s.customer_id = tell.customer_id AND s.enabled AND event_type = ANY (s.events) AND s.id <> subject;
    IF ids IS NULL THEN
        RETURN 0;
    END IF;
    event_id := 'evt_' || lpad(to_hex(floor(extract(epoch FROM told_at) * 1000)::bigint), 12, '0')
                || left(replace(gen_random_uuid()::text, '-', ''), 12);
    INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched)
    VALUES (event_id, customer_id, event_type, data, told_at, cardinality(ids));
    INSERT INTO dealix.outbox (shard, customer_id, event_id, event_day, event_type, data_bytes, subscription_ids)
    VALUES (own_shard, customer_id, event_id, told_day, event_type, octet_length(data), ids);
    PERFORM pg_notify('dealix_wake', own_shard::text)
    WHERE pg_try_advisory_lock_shared(1145372674, own_shard) AND pg_advisory_unlock_shared(1145372674, own_shard);
    RETURN cardinality(ids);
END $$;
