"""A fake AI vendor that speaks OpenAI's format, keeps its own books and can be told to fail.

Run it as ``python3 -m vendor`` from ``tests/`` or as ``python -m tests.vendor``; it needs only uvicorn.
"""
