"""What the APIs of OpenAI, Anthropic and Gemini have beside models' calls, each with a reason and a remedy.

None is offered here: something would be kept at the provider, whose account all customers share, or there is
no bound by which a call could be held and charged.
"""

from __future__ import annotations

from typing import NoReturn

from relay import errors
from relay.asgi import Scope

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_KEPT = "nothing is kept here: send all of the conversation with each request"
_FILES = "files are not kept here: send their content in the request"
_SEARCH = "documents are not kept here: search them yourself, with /v1/embeddings and /v1/rerank"
_ALONE = "send each request to its own endpoint"
_AGENTS = "agents are not run here: run yours where you like, and have it call models here"
_ACCOUNT = "the provider's account is not yours to manage: whoever gave you your key manages this one"
_HOOKS = "nothing is reported by webhook here: every call is answered at once"
_TRAINED = "models are not trained here: use one that GET /v1/models lists"
_SESSIONS = "sessions have no price here: use /v1/responses or /v1/chat/completions"
_VIDEOS = "videos have no price here"
_VARIATIONS = "only an old model made them: use /v1/images/edits, and say what is to be different"
_VOICES = "voices are not kept here: name one that the model's provider has"
_CACHES = "caches are not kept here: send the same beginning again, and the provider's own cache finds it"
_OPERATIONS = "nothing runs on here after its answer: call a model and read its answer"


def _all(reason: str, *paths: str) -> dict[str, str]:
    return dict.fromkeys(paths, reason)


# By the begin of the path; what stands below it is not offered either.
REASONS = {
    **_all(_KEPT, "/v1/assistants", "/v1/conversations", "/v1/threads", "/v1/memory_stores"),
    **_all(_ALONE, "/v1/batches", "/v1/evals", "/v1/decisions", "/v1beta/batches", "/v1beta/decisions"),
    **_all(_FILES, "/v1/containers", "/v1/files", "/v1/uploads", "/v1beta/files", "/upload/v1beta"),
    **_all(_TRAINED, "/v1/fine_tuning", "/v1beta/tunedModels", "/v1beta/tuningJobs"),
    **_all(_SESSIONS, "/v1/realtime", "/v1/live", "/v1beta/interactions", "/v1beta/auth_tokens"),
    **_all(_SEARCH, "/v1/vector_stores", "/v1beta/fileSearchStores", "/v1beta/corpora"),
    **_all(_VIDEOS, "/v1/videos"),
    **_all(_VARIATIONS, "/v1/images/variations"),
    **_all(_VOICES, "/v1/audio/voices", "/v1/audio/voice_consents", "/v1beta/voices"),
    **_all(_CACHES, "/v1beta/cachedContents"),
    **_all(_OPERATIONS, "/v1beta/operations"),
    **_all(
        _AGENTS,
        *("/v1/agents", "/v1/chatkit", "/v1/deployment_runs", "/v1/deployments", "/v1/dreams"),
        *("/v1/environments", "/v1/sessions", "/v1/skills", "/v1/tunnels", "/v1/vaults"),
        *("/v1beta/agents", "/v1beta/credentials", "/v1beta/environments", "/v1beta/triggers"),
    ),
    **_all(
        _ACCOUNT,
        *("/v1/compliance", "/v1/content_provenance_checks", "/v1/organization", "/v1/organizations"),
        *("/v1/projects", "/v1/safety", "/v1/user_profiles"),
    ),
    **_all(_HOOKS, "/v1/webhook_endpoints", "/v1/webhook_event_types", "/v1beta/webhooks"),
    "/v1/complete": "it is an API of the past: use /v1/messages",
}
# Only what stands below: the path itself is offered.
BELOW = {
    "/v1/chat/completions": "answers are not kept here: read each from the call that asks for it",
    "/v1/messages": "batches are not kept here: send each request to /v1/messages",
    "/v1/responses": "answers are not kept here: send all items in input of POST /v1/responses, "
    "and read its answer or its stream",
}
# Gemini's, of a model: ``…/models/MODEL:METHOD``.
OF_A_MODEL = {
    **_all(_ALONE, "asyncBatchEmbedContent", "batchGenerateContent"),
    **_all(_OPERATIONS, "fetchPredictOperation"),
    "computeTokens": "use countTokens",
    "predict": "have images made by /v1/images/generations",
    "predictLongRunning": _VIDEOS,
}


def refuse(scope: Scope) -> NoReturn:
    """Raise ApiError 404 for one of these paths."""
    path = scope["path"]
    for begin, reason in (REASONS | BELOW).items():
        if path == begin or path.startswith((f"{begin}/", f"{begin}:")):
            raise errors.not_offered(scope["method"], path, reason)
    raise errors.unknown_url(scope["method"], path)


def refuse_of_a_model(scope: Scope, method: str) -> NoReturn:
    """Raise ApiError 404 for a method of a model that is not served."""
    reason = OF_A_MODEL.get(method)
    if reason is not None:
        raise errors.not_offered(scope["method"], scope["path"], reason)
    raise errors.unknown_url(scope["method"], scope["path"])
