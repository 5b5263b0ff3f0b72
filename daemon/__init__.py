"""The delivery engine: from an event that committed in Postgres to a signed, recorded POST.

The way of one event:

1. `dealix.emit` (store/migrations) writes the event and one outbox row in the caller's transaction and, where the
   shard's owner is idle, rings it by NOTIFY.
2. actors/ownership holds the shard's lock and hears the ring; actors/fanout turns outbox rows into claimed deliveries.
3. actors/delivery, one task per active subscription, takes a claimed delivery, signs it and hands it to sender/.
4. policy/ decides what the outcome means; actors/recorder writes the attempt, the next due time and the counters.
5. What failed comes back by its due time, what was held by its subscription; actors/janitor keeps the tables in shape.
"""
