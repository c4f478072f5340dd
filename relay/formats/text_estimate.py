"""Counted tokens of a text, for when a provider tells no usage that can be believed."""


def split_text(text: str) -> tuple[int, int]:
    """(ASCII characters, other characters)."""
    if text.isascii():
        return len(text), 0
    plain = len(text.encode("ascii", "ignore"))
    return plain, len(text) - plain


def text_estimate(plain: int, other: int) -> int:
    """Counted tokens of a text: one for four ASCII characters (rounded up), one for each other character."""
    return -(-plain // 4) + other


def json_estimate(raw: bytes | memoryview | None) -> int:
    """Counted tokens of JSON as it stands, such as declared tools, which models read as it is; of None: 0."""
    return 0 if raw is None else text_estimate(*split_text(bytes(raw).decode("utf-8", "replace")))
