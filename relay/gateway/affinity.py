"""Which calls are to go to the same channel, whose prompt cache then pays: as the model's route says."""

from __future__ import annotations

from relay.asgi import Scope, header
from relay.formats.prompt_begin import prompt_begin, session_of
from relay.formats.request import Request
from relay.gateway.services import Services
from relay.identity.token_cache import Caller
from relay.routing.order import Affinity, affinity

SESSION_HEADER = b"x-session-id"


def affinity_of(services: Services, caller: Caller, request: Request, scope: Scope) -> Affinity | None:
    """None where the call may go anywhere: its model is not routed so, or it says no session."""
    sticky = services.channels.route(request.model).sticky
    if sticky == "off":
        return None
    if sticky == "session":
        named = header(scope, SESSION_HEADER) or session_of(request.document()).encode()
    else:
        named = prompt_begin(request.document())
    return affinity(sticky, caller.account_id, named) if named else None
