"""A fake AI provider that speaks OpenAI's format, keeps its own books and can be told to fail.

Run it as ``python -m deploys.sandbox.provider`` here, ``python3 -m provider`` on its host; it needs only
uvicorn.
"""
