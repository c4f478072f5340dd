"""A call's life, in any format.

``chat`` reads a request; ``access`` says who calls and whether they may; ``lifecycle`` is the order of the
steps and decides how the call ended: ``payment`` holds, ``failover`` asks channels until one has answered,
``json_response`` or ``stream_response`` reads the answer along, ``payment`` captures or releases, and the
answer is finished. ``call`` is what they know of the call, ``outcome`` what a failure means.
"""
