"""What a batch of results has to tell customers about their endpoints: that part of the recorder's statement.

It builds on `r` (the results), `finished`, `judged` and `disabled` there. It has rows only where something failed, or
where an endpoint with an alert delivered; else it costs a look into a nearly empty table.
"""

from __future__ import annotations

from typing import Final

from daemon.policy.operational import LEVELS, TYPES

PARAMETERS: Final = {"levels": list(LEVELS), "operational": list(TYPES)}

# A failure counts from what the counter was before the batch; of several levels that it passed the highest is told, and
# none where it was disabled. Failures to deliver operational events raise none (h.raises is false for them), and
# dealix.tell leaves out the subscription that it is about: so nothing goes in circles. Locks: the alerts' rows; what
# tell inserts nobody waits for.
RAISED: Final = """
    raised AS (
        SELECT h.subscription_id, h.customer_id, h.endpoint_url, h.consecutive_failures, d.disabled_reason,
               CASE WHEN d.id IS NULL THEN (
                   SELECT max(level) FROM unnest(%(levels)s::int[]) AS level
                   WHERE level * %(disable_after)s <= 100 * h.consecutive_failures
                     AND level * %(disable_after)s
                         > 100 * (CASE WHEN h.delivered THEN 0 ELSE h.consecutive_failures - h.lead END)
               ) END AS level
        FROM judged h LEFT JOIN disabled d ON d.id = h.subscription_id
        WHERE h.raises AND h.enabled AND (h.gone OR h.consecutive_failures > 0)
    ), alerted AS (
        INSERT INTO dealix.endpoint_alerts (subscription_id)
        SELECT subscription_id FROM raised WHERE level IS NOT NULL OR disabled_reason IS NOT NULL
        ORDER BY subscription_id
        ON CONFLICT (subscription_id) DO NOTHING
    ), eased AS (
        DELETE FROM dealix.endpoint_alerts a
        USING judged h
        WHERE a.subscription_id = h.subscription_id AND h.enabled AND h.delivered AND h.consecutive_failures = 0
        RETURNING a.subscription_id, h.customer_id, h.endpoint_url
    ), news AS (
        SELECT customer_id, subscription_id, endpoint_url, 'endpoint.failing' AS type,
               json_build_object('level_percent', level, 'consecutive_failures', consecutive_failures,
                                 'disable_after', %(disable_after)s::int) AS more
        FROM raised WHERE level IS NOT NULL
        UNION ALL
        SELECT customer_id, subscription_id, endpoint_url, 'endpoint.disabled',
               json_build_object('reason', disabled_reason, 'consecutive_failures', consecutive_failures)
        FROM raised WHERE disabled_reason IS NOT NULL
        UNION ALL
        SELECT customer_id, subscription_id, endpoint_url, 'endpoint.recovered', '{}'::json
        FROM eased
        UNION ALL
        SELECT r.customer_id, r.subscription_id, r.endpoint_url, 'delivery.exhausted',
               json_build_object('event_id', r.event_id, 'event_type', r.event_type, 'attempt', r.attempt,
                                 'status_code', r.status_code)
        FROM r
        WHERE r.outcome = 'exhausted' AND r.event_type <> ALL (%(operational)s::text[])
          AND (r.delivery_id IN (SELECT f.id FROM finished f)) IS TRUE
    ), told AS (
        SELECT dealix.tell(n.customer_id, n.subscription_id, n.type, (jsonb_build_object(
                   'subscription_id', n.subscription_id,
                   'endpoint_host', (regexp_match(n.endpoint_url, '^https?://([^/?#]+)'))[1]) || n.more::jsonb)::text
               ) AS matched
        FROM news n
    )
"""
