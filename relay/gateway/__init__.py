"""The formats that customers speak.

What a call goes through in any format: ``access`` (who calls, and may they), ``lifecycle`` (the order of its
steps), ``payment`` (hold, capture, release, the abort rule), ``vendors`` (which channel answers),
``whole_answer`` and ``streamed_answer`` (passing on), ``call_metrics``; ``call`` is what they know of it.
OpenAI's format: ``chat`` and ``chat_request``, ``models``, and the shape of ``errors``.
"""
