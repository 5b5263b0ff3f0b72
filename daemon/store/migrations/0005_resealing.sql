-- Sealing a secret with another key is no change of the subscription: its version, updated_at and the daemons' news of it
-- stay as they are while the session says `dealix.resealing`.

CREATE OR REPLACE TRIGGER changing BEFORE UPDATE ON dealix.subscriptions
    FOR EACH ROW WHEN (current_setting('dealix.resealing', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION dealix.subscription_changing();

CREATE OR REPLACE TRIGGER changed AFTER UPDATE OR DELETE ON dealix.subscriptions
    FOR EACH ROW WHEN (current_setting('dealix.resealing', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION dealix.subscription_changed();
