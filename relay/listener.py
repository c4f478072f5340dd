"""How a listening socket is closed so that no client loses a request.

Closing it resets whoever is connected but not accepted yet, and whose request may be on its way already: a
proxy cannot tell that from a request which was executed, and may not send it again. So new connections are
kept out first, which a client may always try elsewhere; those that began before are accepted, then the socket
is closed.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import suppress

# SO_ATTACH_FILTER of Linux (socket(7)); Python has no name for it.
_ATTACH_FILTER = 26
_FLAGS_OFFSET, _SYN = 13, 0x02  # of the TCP header (RFC 9293, 3.1), where a filter of a TCP socket begins
_UNACKED_OFFSET = 24  # of tcpi_unacked in struct tcp_info: eight bytes and four integers come before it
# A classic BPF program (Linux, Documentation/networking/filter.rst): code, jumps if true and false, value.
_DROP_SYN = (
    (0x30, 0, 0, _FLAGS_OFFSET),  # load the byte that holds the flags
    (0x45, 0, 1, _SYN),  # without SYN: skip the next instruction
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # keep the packet
)


def waiting(descriptor: int) -> int:
    """How many connections of a listening TCP socket have begun and are not accepted; 0 where the system does
    not tell (TCP_INFO of Linux, whose field of unacknowledged segments holds that of a listening socket).
    """
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        try:
            told = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED_OFFSET + 4)
        except OSError:
            return 0
    return int(struct.unpack_from("I", told, _UNACKED_OFFSET)[0]) if len(told) == _UNACKED_OFFSET + 4 else 0


def keep_out(descriptor: int) -> None:
    """Let no new connection begin on a listening TCP socket; handshakes that have begun end well.

    The packets that ask for one are dropped, so the client's connect time-out runs until the socket is
    closed. Where the system has no such filters, nothing happens.
    """
    instructions = b"".join(struct.pack("HBBI", *one) for one in _DROP_SYN)
    program = ctypes.create_string_buffer(instructions)
    option = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(program))
    with socket.socket(fileno=os.dup(descriptor)) as listener, suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, option)
