"""The Trio tasks of the daemon. Each owns its state; others ring its doorbell or send on a bounded channel.

ownership  which shards are ours, proof that they still are, LISTEN     fanout    outbox → claims
schedule   due retries, ended leases, waking what was held              roster    which actors live, who gets what
delivery   one active subscription: mailbox, breaker, sending           recorder  results → log, in batches
intake     events that came by raw NOTIFY                               janitor   partitions, retention, summary
testfire   one attempt outside the queue                                lanes     how much may be in flight
supervise  starts again what broke                                      doorbell  how one task wakes another
"""
