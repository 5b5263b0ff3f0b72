-- A session that LISTENs and stays in a transaction, any application's in this cluster, keeps the NOTIFY queue from being
-- emptied. Full, it fails every COMMIT that notifies. A ring is a hint and not worth a change of a subscription: from half
-- full on none is sent, and daemons look twice a second by themselves. dealix.emit holds it the same way.

CREATE OR REPLACE FUNCTION dealix.subscription_changed() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('dealix_config', OLD.id) WHERE pg_notification_queue_usage() < 0.5;
    RETURN NULL;
END $$;
