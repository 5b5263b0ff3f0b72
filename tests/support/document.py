"""The API's own document, as tests walk through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tests.support.api import Served

WHK: Final = "whk_" + "0" * 24
DLV: Final = "dlv_" + "0" * 24
EVT: Final = "evt_" + "0" * 24
REC: Final = "rec_" + "0" * 24
PLK: Final = "plk_" + "0" * 24
VALID: Final[dict[str, dict[str, Any]]] = {
    "NewWebhook": {"endpoint_url": "http://127.0.0.1:9/", "customer_id": "acme"},
    "WebhookChanges": {},
    "TestRequest": {},
    "NewPortalLink": {"customer_id": "acme"},
    "Rotation": {},
    "NewEventType": {"type": "ship.sunk", "description": "A ship sank."},
    "EventTypeChanges": {},
    "NewRecovery": {"since": "2026-01-31T08:00:00Z", "status": "all"},
    "EventToEmit": {"customer_id": "acme", "event_type": "deal.won"},
    "Batch": {"events": [{"customer_id": "acme", "event_type": "deal.won"}]},
}
"""A good body for each schema of a request."""


@dataclass(frozen=True)
class Operation:
    """One operation of the document, with everything needed to call it."""

    method: str
    path: str
    spec: dict[str, Any]
    document: dict[str, Any]

    @property
    def name(self) -> str:
        return self.spec["operationId"]

    @property
    def statuses(self) -> set[int]:
        return {int(status) for status in self.spec["responses"]}

    @property
    def open_to_anyone(self) -> bool:
        return self.spec["security"] == []

    @property
    def url(self) -> str:
        """With ids of nothing."""
        ids = {"subscription_id": WHK, "attempt_id": DLV, "event_id": EVT, "recovery_id": REC, "link_id": PLK}
        return self.url_of(**ids, event_type="no.such")

    def url_of(self, **ids: str) -> str:
        return self.path.format(**ids)

    @property
    def body_schema(self) -> str | None:
        body = self.spec.get("requestBody")
        return body and body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]

    def fields(self) -> list[str]:
        return list(self.document["components"]["schemas"][self.body_schema]["properties"]) if self.body_schema else []

    def parameters(self, where: str) -> list[str]:
        return [one["name"] for one in self.spec["parameters"] if one["in"] == where]


async def operations_of(api: Served) -> list[Operation]:
    document = (await api.client.get("/openapi.json")).json()
    return [
        Operation(method.upper(), path, spec, document)
        for path, methods in document["paths"].items()
        for method, spec in methods.items()
    ]
