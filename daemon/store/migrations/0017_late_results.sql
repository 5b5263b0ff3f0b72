-- A late result takes the place of the row that says `interrupted`, in the statement that records it: the log never has
-- both, whatever is killed between. A function, because it is hardly ever called: a DELETE in the recorder's statement
-- would open every day's partition for each batch.
-- Locks: the rows it deletes. Index: attempts_event.
CREATE FUNCTION dealix.forget_interrupted(event_id text, subscription_id text, attempt smallint)
    RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    forgotten integer;
BEGIN
    DELETE FROM dealix.attempts a
    WHERE a.event_id = forget_interrupted.event_id AND a.subscription_id = forget_interrupted.subscription_id
      AND a.attempt = forget_interrupted.attempt AND a.outcome = 'interrupted';
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END $$;
