-- dealix.emit: an event in the caller's own transaction.

-- The shard of a customer, 0–63. daemon/store/shards.py computes the same; never change it, rows carry its result.
CREATE FUNCTION dealix.shard_of(customer_id text) RETURNS smallint LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (get_byte(sha256(convert_to(customer_id, 'UTF8')), 0) & 63)::smallint
$$;

-- Raises for what JSON allows and this product does not: nesting over 100, \u0000, a lone surrogate. All three are
-- found without building the value, since jsonb makes 13 MB of {"n": 1e131071} and runs out of stack on "[[[[…".
-- Called by dealix.emit alone, under its settings.
CREATE FUNCTION dealix.check_payload(payload text) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    rest text;
BEGIN
    IF length(payload) - length(replace(replace(payload, '[', ''), '{', '')) > 100 THEN
        -- Strings out, brackets only, then strip the innermost pairs: as many rounds as there are levels.
        rest := translate(regexp_replace(regexp_replace(payload, '"(\\.|[^"\\])*"', '', 'g'), '[^][{}]', '', 'g'), '{}', '[]');
        FOR level IN 1..100 LOOP
            EXIT WHEN rest = '';
            rest := replace(rest, '[]', '');
        END LOOP;
        IF strpos(rest, '[]') > 0 THEN
            RAISE EXCEPTION 'payload is nested more than 100 deep' USING ERRCODE = '22023';
        ELSIF rest <> '' THEN                                     -- the parser's own message, without its recursion
            RAISE EXCEPTION 'invalid input syntax for type json' USING ERRCODE = '22P02', DETAIL = 'Unbalanced brackets.';
        END IF;
    END IF;
    IF payload ~ '\\u(0000|[dD][89a-fA-F])' THEN
        -- What is left of a backslash begins an escape. The blank keeps apart what an escaped backslash stood between.
        rest := replace(payload, '\\', ' ');
        IF strpos(rest, '\u0000') > 0 THEN
            RAISE EXCEPTION 'payload contains the escape \u0000, which receivers and databases cannot hold'
                USING ERRCODE = '22023';
        END IF;
        rest := regexp_replace(rest, '\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}', '', 'g');
        IF rest ~ '\\u[dD][89a-fA-F][0-9a-fA-F]{2}' THEN
            RAISE EXCEPTION 'payload contains a lone surrogate escape, which is not a character' USING ERRCODE = '22023';
        END IF;
    END IF;
END $$;

-- SELECT * FROM dealix.emit('acme', 'deal.won', '{"deal_id": 7}');   -- → event_id, matched
--
-- Locks: none that another emitter or a change of a subscription waits for, except two emits of one own event_id,
-- where the second waits for the first's end. The wake-up is one expression: a cancel between its halves cannot leave
-- the advisory lock in the emitter's session.
CREATE FUNCTION dealix.emit(
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

    IF matched > 0 THEN
        own_shard := dealix.shard_of(customer_id);
        INSERT INTO dealix.outbox (shard, event_id, event_day, event_type, data_bytes, subscription_ids)
        VALUES (own_shard, emit.event_id, emitted_day, emit.event_type, octet_length(payload), ids);
        IF notify IS NOT FALSE THEN
            PERFORM pg_notify('dealix_wake', own_shard::text)
            WHERE pg_try_advisory_lock_shared(1145372674, own_shard) AND pg_advisory_unlock_shared(1145372674, own_shard);
        END IF;
    END IF;
END $$;

CREATE FUNCTION dealix.emit(
    customer_id text, event_type text, payload json,
    INOUT event_id text DEFAULT NULL, notify boolean DEFAULT true, OUT matched integer
) LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT e.event_id, e.matched INTO event_id, matched
    FROM dealix.emit(customer_id, event_type, payload::text, event_id, notify) e;
END $$;

CREATE FUNCTION dealix.emit(
    customer_id text, event_type text, payload jsonb,
    INOUT event_id text DEFAULT NULL, notify boolean DEFAULT true, OUT matched integer
) LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT e.event_id, e.matched INTO event_id, matched
    FROM dealix.emit(customer_id, event_type, payload::text, event_id, notify) e;
END $$;

-- Emits that came by raw NOTIFY, in one transaction; a refused one costs the others nothing. → a row per refused one.
CREATE FUNCTION dealix.emit_raw(customer_ids text[], event_types text[], payloads text[], event_ids text[])
    RETURNS TABLE (ordinal integer, reason text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    FOR i IN 1..coalesce(cardinality(customer_ids), 0) LOOP
        BEGIN
            PERFORM dealix.emit(customer_ids[i], event_types[i], payloads[i], event_ids[i], false);
        EXCEPTION WHEN data_exception OR unique_violation THEN
            ordinal := i;
            reason := SQLERRM;
            RETURN NEXT;
        END;
    END LOOP;
END $$;

-- Many emits in one statement, all or none. → a row per event; a refusal carries the place of the refused one, counted
-- from 1, in the field DATATYPE, where nobody else looks for it.
CREATE FUNCTION dealix.emit_batch(customer_ids text[], event_types text[], payloads text[], event_ids text[])
    RETURNS TABLE (ordinal integer, event_id text, matched integer) LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT t.customer_id, t.event_type, t.payload, t.event_id
        FROM unnest(customer_ids, event_types, payloads, event_ids) AS t (customer_id, event_type, payload, event_id)
    LOOP
        ordinal := coalesce(ordinal, 0) + 1;
        SELECT e.event_id, e.matched INTO emit_batch.event_id, emit_batch.matched
        FROM dealix.emit(item.customer_id, item.event_type, item.payload, item.event_id) e;
        RETURN NEXT;
    END LOOP;
EXCEPTION WHEN data_exception OR unique_violation THEN
    RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM, DATATYPE = ordinal::text;
END $$;
