"""The Trio tasks of the daemon. Each owns its state; others ring its doorbell or send on a bounded channel.

engine     puts them together; the order of stopping        ownership  which shards are ours: locks, LISTEN, checks
fanout     the outbox                                       fence      the proof that they still are
schedule   due retries, ended leases, waking the held       claiming   what fanout and schedule have in common
roster     which actors live, who gets what                 ledger     every claim in memory
delivery   one active subscription                          pace       its breaker and window
attempt    one request in the making                        lanes      how much may be in flight
recorder   results → log, in batches                        intake     events that came by raw NOTIFY
testfire   one attempt outside the queue                    janitor    partitions, retention, summary
supervise  starts again what broke                          doorbell   how one task wakes another
bookmark   where looks at the outbox begin
"""
