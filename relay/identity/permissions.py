"""What a token may call: one permission for each kind of work, whatever the format of the request."""

from __future__ import annotations

CHAT = "chat"
EMBEDDINGS = "embeddings"
MODERATIONS = "moderations"
RERANK = "rerank"
IMAGES = "images"
AUDIO = "audio"
MODELS = "models"

# For operators, by permission. A token without any list of permissions has all of them.
PERMISSIONS = {
    CHAT: "have models write, in every format, and count the tokens of prompts",
    EMBEDDINGS: "turn texts into vectors, in every format",
    MODERATIONS: "POST /v1/moderations",
    RERANK: "POST /v1/rerank",
    IMAGES: "have models make images, POST /v1/images/generations and /v1/images/edits",
    AUDIO: "have models speak and listen, POST /v1/audio/speech, …/transcriptions and …/translations",
    MODELS: "list models and their prices",
}
