"""What routes answer, as JSON Schemas: the OpenAPI document shows them, and made-up calls are held to them.

An answer has these fields and may have more: a client that does not know a field passes it over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kolejka.common.schema import Schema

_TEXT: Final = {"type": "string"}
_MAYBE: Final = {"type": ["string", "null"]}
_NUMBER: Final = {"type": "integer"}
_SECONDS: Final = {"type": "number"}
_OBJECT: Final = {"type": "object"}
_MOMENT: Final = {"type": ["string", "null"], "description": "a moment, as 2026-01-01T12:00:00.123Z"}


def _has(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(fields), "properties": dict(fields)}


def _list(of: Schema) -> dict[str, Any]:
    return {"type": "array", "items": of}


_ROW: Final = {
    "id": _TEXT, "state": {"enum": ["waiting", "running", "done"]}, "owner": _TEXT, "queue": _TEXT, "priority": _NUMBER,
    "name": _MAYBE, "labels": _OBJECT, "image": _MAYBE, "created_at": _MOMENT, "started_at": _MOMENT,
    "finished_at": _MOMENT, "cancel_at": _MOMENT, "outcome": _MAYBE, "limit": _MAYBE,
    "result": {"type": ["integer", "null"]}, "node": _MAYBE, "lease": {"type": ["integer", "null"]},
}  # fmt: skip
_TASK: Final = _has({**_ROW, "attempts": _list(_OBJECT), "spec": _OBJECT})
_NODE: Final = _has(
    {
        "name": _TEXT, "state": {"enum": ["active", "draining", "quarantined", "silent", "outdated"]},
        "tags": _list(_TEXT),
        "total": _OBJECT, "capacity": _OBJECT, "first_seen": _MOMENT, "last_seen": _MOMENT, "asked": _MAYBE,
        "busy": _NUMBER, "running": _list(_TEXT), "boot": _MAYBE, "image": {"type": ["object", "null"]},
        "version": _MAYBE, "queues": _list(_TEXT), "reason": _MAYBE, "errors": _list(_OBJECT),
        "proof": {"type": ["object", "null"]},
    }
)  # fmt: skip
_SCOPE: Final = {"type": ["object", "null"]}
_LOG: Final = {"type": ["object", "null"]}
_MOVED: Final = _has({"task_id": _TEXT, "state": _TEXT})

_ENROLMENT: Final = _has(
    {"name": _TEXT, "fingerprint": _TEXT, "state": {"enum": ["waiting", "approved", "refused"]}, "asked_at": _MOMENT,
     "seen_at": _MOMENT}
)  # fmt: skip

ANSWERS: Final[Mapping[str, Schema]] = {
    "healthz": _has({"status": _TEXT}),
    "readyz": _has({"status": _TEXT, "checks": _OBJECT}),
    "version": _has({"version": _TEXT}),
    "whoami": _has({"user": _TEXT, "role": _TEXT, "token": _NUMBER, "scope": _SCOPE}),
    "list_tasks": _has({"tasks": _list(_has(_ROW)), "next": _MAYBE}),
    "put_task": _TASK,
    "put_tasks": _has({"tasks": _list(_has(_ROW))}),
    "get_results": _has({"results": _list({
        "type": "object", "required": ["id"],
        "properties": {"id": _TEXT, "state": _ROW["state"], "result": {"type": ["object", "null"]}, "error": _OBJECT},
    })}),
    "show_task": _TASK,
    "cancel_task": _TASK,
    "retry_task": _TASK,
    "why_task": _has({"why": _TEXT, "reasons": _list(_TEXT)}),
    "make_callback_secret": _has({"secret": _TEXT}),
    "claim": _has({"attempts": _list(_OBJECT), "cancel": _list(_NUMBER), "heartbeat_s": _SECONDS, "asked": _MAYBE,
                   "log": _LOG}),
    "heartbeat": _has({"lost": _list(_NUMBER), "cancel": _list(_NUMBER), "heartbeat_s": _SECONDS, "asked": _MAYBE,
                       "log": _LOG}),
    "put_result": _MOVED,
    "release": _MOVED,
    "list_nodes": _list(_NODE),
    "show_node": _NODE,
    "drain_node": _NODE,
    "resume_node": _NODE,
    "reboot_node": _NODE,
    "get_log": _has({"node": _TEXT, "log": _TEXT}),
    "ask_in": _has({"fingerprint": _TEXT}),
    "fetch_token": _has({"name": _TEXT, "token": _TEXT}),
    "list_enrolments": _list(_ENROLMENT),
    "approve": _ENROLMENT,
    "refuse": _list(_ENROLMENT),
    "list_audit": _has({
        "acts": _list(_has({"id": _NUMBER, "at": _MOMENT, "user": _TEXT, "token": _NUMBER, "act": _TEXT,
                            "target": _TEXT, "detail": _OBJECT})),
        "next": _MAYBE,
    }),
    "list_users": _list(_has({"name": _TEXT, "role": _TEXT, "created_at": _MOMENT})),
    "add_user": _has({"name": _TEXT, "role": _TEXT, "created_at": _MOMENT}),
    "list_tokens": _list(_has({"id": _NUMBER, "user": _TEXT, "role": _TEXT, "name": _TEXT, "created_at": _MOMENT,
                               "expires_at": _MOMENT, "scope": _SCOPE})),
    "add_token": _has({"id": _NUMBER, "token": _TEXT, "user": _TEXT, "role": _TEXT, "name": _TEXT,
                       "expires_at": _MOMENT, "scope": _SCOPE}),
}  # fmt: skip
"""By the handler's name."""
