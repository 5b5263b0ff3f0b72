-- The outbox by customer too: of a shard that one of them floods, fan-out takes from each in turn.

-- In the order of bytes, since '~' has to come after every customer. Rows from before have '', and go as one customer's.
ALTER TABLE dealix.outbox ADD COLUMN customer_id text COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX outbox_customers ON dealix.outbox (shard, customer_id, id);
