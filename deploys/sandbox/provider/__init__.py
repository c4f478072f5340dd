"""A fake AI provider: it speaks the APIs of OpenAI, Anthropic and Google, keeps books, and fails as told.

A module for each format; ``control.py`` says what it can be told.

Run it as ``python -m deploys.sandbox.provider`` here, ``python3 -m provider`` on its host; it needs only
uvicorn.
"""
