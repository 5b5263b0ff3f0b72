-- The event catalogue as data, and operational events.

-- What a type is beyond its name and sentence. A table of its own: emitters read dealix.event_types in transactions that
-- may be open for hours, and a new column there would wait for them, and every other emit behind it.
CREATE TABLE dealix.event_type_details (
    type           text PRIMARY KEY,
    example        text CHECK (json_typeof(example::json) = 'object'),      -- a payload, as it would come
    schema         text CHECK (json_typeof(schema::json) = 'object'),       -- JSON Schema 2020-12 of a payload
    enforced       boolean NOT NULL DEFAULT false,                          -- emits over HTTP have to fit the schema
    deprecated_at  timestamptz,                                             -- still works; the list says so
    CHECK (NOT enforced OR schema IS NOT NULL)
);

INSERT INTO dealix.event_type_details (type, example, schema) VALUES
    ('company.created',
     '{"company_id": "com_311", "name": "Nile Textiles", "domain": "niletextiles.example", "country": "EG", "created_at": "2026-03-02T09:14:00Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "name": {"type": "string", "minLength": 1}, "domain": {"type": ["string", "null"]}, "country": {"type": "string", "pattern": "^[A-Z]{2}$"}, "created_at": {"type": "string", "format": "date-time"}}, "required": ["company_id", "name", "domain", "country", "created_at"]}'),
    ('company.updated',
     '{"company_id": "com_311", "name": "Nile Textiles SAE", "domain": "niletextiles.example", "country": "EG", "previous": {"name": "Nile Textiles"}}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "name": {"type": "string", "minLength": 1}, "domain": {"type": ["string", "null"]}, "country": {"type": "string", "pattern": "^[A-Z]{2}$"}, "previous": {"type": "object", "description": "What the changed fields were before."}}, "required": ["company_id", "name", "domain", "country", "previous"]}'),
    ('contact.created',
     '{"contact_id": "con_902", "company_id": "com_311", "name": "Mona Adel", "email": "mona@niletextiles.example", "phone": "+20 2 5550 0142", "created_at": "2026-03-02T09:20:31Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"contact_id": {"type": "string", "pattern": "^con_[0-9]+$"}, "company_id": {"type": ["string", "null"], "pattern": "^com_[0-9]+$"}, "name": {"type": "string", "minLength": 1}, "email": {"type": "string", "format": "email"}, "phone": {"type": ["string", "null"]}, "created_at": {"type": "string", "format": "date-time"}}, "required": ["contact_id", "company_id", "name", "email", "phone", "created_at"]}'),
    ('contact.updated',
     '{"contact_id": "con_902", "company_id": "com_311", "name": "Mona Adel", "email": "mona@niletextiles.example", "phone": "+20 2 5550 0199", "previous": {"phone": "+20 2 5550 0142"}}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"contact_id": {"type": "string", "pattern": "^con_[0-9]+$"}, "company_id": {"type": ["string", "null"], "pattern": "^com_[0-9]+$"}, "name": {"type": "string", "minLength": 1}, "email": {"type": "string", "format": "email"}, "phone": {"type": ["string", "null"]}, "previous": {"type": "object", "description": "What the changed fields were before."}}, "required": ["contact_id", "company_id", "name", "email", "phone", "previous"]}'),
    ('deal.created',
     '{"deal_id": "deal_7", "title": "Looms, second hall", "company_id": "com_311", "owner": "sara@acme.example", "amount": 1250000, "currency": "EGP", "pipeline": "new business", "stage": "qualified", "created_at": "2026-03-03T08:00:12Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"deal_id": {"type": "string", "pattern": "^deal_[0-9]+$"}, "title": {"type": "string", "minLength": 1}, "company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "owner": {"type": "string", "format": "email"}, "amount": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "pipeline": {"type": "string"}, "stage": {"type": "string"}, "created_at": {"type": "string", "format": "date-time"}}, "required": ["deal_id", "title", "company_id", "owner", "amount", "currency", "pipeline", "stage", "created_at"]}'),
    ('deal.lost',
     '{"deal_id": "deal_7", "title": "Looms, second hall", "company_id": "com_311", "owner": "sara@acme.example", "amount": 1250000, "currency": "EGP", "reason": "price", "lost_at": "2026-04-18T15:02:44Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"deal_id": {"type": "string", "pattern": "^deal_[0-9]+$"}, "title": {"type": "string", "minLength": 1}, "company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "owner": {"type": "string", "format": "email"}, "amount": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "reason": {"type": ["string", "null"]}, "lost_at": {"type": "string", "format": "date-time"}}, "required": ["deal_id", "title", "company_id", "owner", "amount", "currency", "reason", "lost_at"]}'),
    ('deal.stage_changed',
     '{"deal_id": "deal_7", "title": "Looms, second hall", "company_id": "com_311", "owner": "sara@acme.example", "amount": 1250000, "currency": "EGP", "pipeline": "new business", "from_stage": "qualified", "to_stage": "proposal", "changed_at": "2026-03-10T11:45:09Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"deal_id": {"type": "string", "pattern": "^deal_[0-9]+$"}, "title": {"type": "string", "minLength": 1}, "company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "owner": {"type": "string", "format": "email"}, "amount": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "pipeline": {"type": "string"}, "from_stage": {"type": "string"}, "to_stage": {"type": "string"}, "changed_at": {"type": "string", "format": "date-time"}}, "required": ["deal_id", "title", "company_id", "owner", "amount", "currency", "pipeline", "from_stage", "to_stage", "changed_at"]}'),
    ('deal.updated',
     '{"deal_id": "deal_7", "title": "Looms, second hall", "company_id": "com_311", "owner": "sara@acme.example", "amount": 1310000, "currency": "EGP", "previous": {"amount": 1250000}}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"deal_id": {"type": "string", "pattern": "^deal_[0-9]+$"}, "title": {"type": "string", "minLength": 1}, "company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "owner": {"type": "string", "format": "email"}, "amount": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "previous": {"type": "object", "description": "What the changed fields were before."}}, "required": ["deal_id", "title", "company_id", "owner", "amount", "currency", "previous"]}'),
    ('deal.won',
     '{"deal_id": "deal_7", "title": "Looms, second hall", "company_id": "com_311", "owner": "sara@acme.example", "amount": 1250000, "currency": "EGP", "won_at": "2026-04-20T13:30:00Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"deal_id": {"type": "string", "pattern": "^deal_[0-9]+$"}, "title": {"type": "string", "minLength": 1}, "company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "owner": {"type": "string", "format": "email"}, "amount": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "won_at": {"type": "string", "format": "date-time"}}, "required": ["deal_id", "title", "company_id", "owner", "amount", "currency", "won_at"]}'),
    ('invoice.created',
     '{"invoice_id": "inv_4410", "number": "2026-0117", "company_id": "com_311", "total": 1425000, "currency": "EGP", "due_on": "2026-05-20", "issued_at": "2026-04-20T14:05:00Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"invoice_id": {"type": "string", "pattern": "^inv_[0-9]+$"}, "number": {"type": "string", "minLength": 1}, "company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "total": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "due_on": {"type": "string", "format": "date"}, "issued_at": {"type": "string", "format": "date-time"}}, "required": ["invoice_id", "number", "company_id", "total", "currency", "due_on", "issued_at"]}'),
    ('invoice.overdue',
     '{"invoice_id": "inv_4410", "number": "2026-0117", "company_id": "com_311", "total": 1425000, "currency": "EGP", "due_on": "2026-05-20", "outstanding": 425000}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"invoice_id": {"type": "string", "pattern": "^inv_[0-9]+$"}, "number": {"type": "string", "minLength": 1}, "company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "total": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "due_on": {"type": "string", "format": "date"}, "outstanding": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}}, "required": ["invoice_id", "number", "company_id", "total", "currency", "due_on", "outstanding"]}'),
    ('invoice.paid',
     '{"invoice_id": "inv_4410", "number": "2026-0117", "company_id": "com_311", "total": 1425000, "currency": "EGP", "paid_at": "2026-05-11T10:22:17Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"invoice_id": {"type": "string", "pattern": "^inv_[0-9]+$"}, "number": {"type": "string", "minLength": 1}, "company_id": {"type": "string", "pattern": "^com_[0-9]+$"}, "total": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "paid_at": {"type": "string", "format": "date-time"}}, "required": ["invoice_id", "number", "company_id", "total", "currency", "paid_at"]}'),
    ('lead.converted',
     '{"lead_id": "lead_58", "name": "Omar Farouk", "email": "omar@deltafoods.example", "source": "web", "owner": "sara@acme.example", "contact_id": "con_903", "deal_id": "deal_8", "converted_at": "2026-03-06T07:58:20Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"lead_id": {"type": "string", "pattern": "^lead_[0-9]+$"}, "name": {"type": "string", "minLength": 1}, "email": {"type": "string", "format": "email"}, "source": {"type": "string", "enum": ["web", "email", "phone", "event", "referral", "import"]}, "owner": {"type": ["string", "null"], "format": "email"}, "contact_id": {"type": "string", "pattern": "^con_[0-9]+$"}, "deal_id": {"type": "string", "pattern": "^deal_[0-9]+$"}, "converted_at": {"type": "string", "format": "date-time"}}, "required": ["lead_id", "name", "email", "source", "owner", "contact_id", "deal_id", "converted_at"]}'),
    ('lead.created',
     '{"lead_id": "lead_58", "name": "Omar Farouk", "email": "omar@deltafoods.example", "source": "web", "owner": null, "message": "Please call me about the spring catalogue.", "created_at": "2026-03-04T16:40:03Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"lead_id": {"type": "string", "pattern": "^lead_[0-9]+$"}, "name": {"type": "string", "minLength": 1}, "email": {"type": "string", "format": "email"}, "source": {"type": "string", "enum": ["web", "email", "phone", "event", "referral", "import"]}, "owner": {"type": ["string", "null"], "format": "email"}, "message": {"type": ["string", "null"]}, "created_at": {"type": "string", "format": "date-time"}}, "required": ["lead_id", "name", "email", "source", "owner", "message", "created_at"]}'),
    ('lead.updated',
     '{"lead_id": "lead_58", "name": "Omar Farouk", "email": "omar@deltafoods.example", "source": "web", "owner": "sara@acme.example", "previous": {"owner": null}}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"lead_id": {"type": "string", "pattern": "^lead_[0-9]+$"}, "name": {"type": "string", "minLength": 1}, "email": {"type": "string", "format": "email"}, "source": {"type": "string", "enum": ["web", "email", "phone", "event", "referral", "import"]}, "owner": {"type": ["string", "null"], "format": "email"}, "previous": {"type": "object", "description": "What the changed fields were before."}}, "required": ["lead_id", "name", "email", "source", "owner", "previous"]}'),
    ('payment.failed',
     '{"payment_id": "pay_9001", "invoice_id": "inv_4410", "amount": 1425000, "currency": "EGP", "method": "card", "reason": "card_declined", "failed_at": "2026-05-11T10:20:55Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"payment_id": {"type": "string", "pattern": "^pay_[0-9]+$"}, "invoice_id": {"type": ["string", "null"], "pattern": "^inv_[0-9]+$"}, "amount": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "method": {"type": "string", "enum": ["card", "bank_transfer", "direct_debit", "cash"]}, "reason": {"type": "string"}, "failed_at": {"type": "string", "format": "date-time"}}, "required": ["payment_id", "invoice_id", "amount", "currency", "method", "reason", "failed_at"]}'),
    ('payment.received',
     '{"payment_id": "pay_9001", "invoice_id": "inv_4410", "amount": 1425000, "currency": "EGP", "method": "bank_transfer", "received_at": "2026-05-11T10:22:16Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"payment_id": {"type": "string", "pattern": "^pay_[0-9]+$"}, "invoice_id": {"type": ["string", "null"], "pattern": "^inv_[0-9]+$"}, "amount": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "method": {"type": "string", "enum": ["card", "bank_transfer", "direct_debit", "cash"]}, "received_at": {"type": "string", "format": "date-time"}}, "required": ["payment_id", "invoice_id", "amount", "currency", "method", "received_at"]}'),
    ('quote.accepted',
     '{"quote_id": "quo_120", "deal_id": "deal_7", "total": 1250000, "currency": "EGP", "accepted_by": "Mona Adel", "accepted_at": "2026-04-19T12:00:00Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"quote_id": {"type": "string", "pattern": "^quo_[0-9]+$"}, "deal_id": {"type": "string", "pattern": "^deal_[0-9]+$"}, "total": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "accepted_by": {"type": "string", "minLength": 1}, "accepted_at": {"type": "string", "format": "date-time"}}, "required": ["quote_id", "deal_id", "total", "currency", "accepted_by", "accepted_at"]}'),
    ('quote.sent',
     '{"quote_id": "quo_120", "deal_id": "deal_7", "total": 1250000, "currency": "EGP", "sent_to": "mona@niletextiles.example", "valid_until": "2026-04-30", "sent_at": "2026-03-15T09:30:00Z"}',
     '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"quote_id": {"type": "string", "pattern": "^quo_[0-9]+$"}, "deal_id": {"type": "string", "pattern": "^deal_[0-9]+$"}, "total": {"type": "integer", "minimum": 0, "description": "In the currency''s smallest unit."}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}, "sent_to": {"type": "string", "format": "email"}, "valid_until": {"type": "string", "format": "date"}, "sent_at": {"type": "string", "format": "date-time"}}, "required": ["quote_id", "deal_id", "total", "currency", "sent_to", "valid_until", "sent_at"]}');

-- Subscriptions that were said to be failing, or were disabled by their failures, and have not delivered since. Nearly
-- empty, so that asking it costs the recorder nothing.
CREATE TABLE dealix.endpoint_alerts (
    subscription_id  text PRIMARY KEY
);

-- An operational event: what happened to subscription `subject`, for those of the customer's others that asked for its type
-- by name. An empty list of types does not ask for it. Nothing is written where nobody wants it. → how many do.
-- Called by the recorder inside its own statement. No emitter can make such an event: its type is not in event_types.
CREATE FUNCTION dealix.tell(customer_id text, subject text, event_type text, data text) RETURNS integer
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
    WHERE pg_try_advisory_lock_shared(1145372674, own_shard) AND pg_advisory_unlock_shared(1145372674, own_shard)
      AND pg_notification_queue_usage() < 0.5;  -- as emit: a ring is not worth the recorder's transaction
    RETURN cardinality(ids);
END $$;
