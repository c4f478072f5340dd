"""A call's life, in any format.

``chat`` reads a request; ``access`` says who calls and whether they may; ``lifecycle`` is the order of the
steps: ``payment`` (hold, capture, release, the abort rule), ``failover`` (which channel answers), then
``json_response`` or ``stream_response`` forwards the answer. ``call`` is what they know of the call.
"""
