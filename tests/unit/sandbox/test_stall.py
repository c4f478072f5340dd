"""What tests take for a stall of their machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

STOPPED_SECONDS = 0.7
PROGRAM = """
from tests import stall
with stall.measured() as stalls:
    print("ready", flush=True)
    input()
print(stalls.seconds, stalls.longest)
"""


def test_a_process_that_stood_still_knows_for_how_long() -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        process.send_signal(signal.SIGCONT)
        told, _ = process.communicate("\n", timeout=60)
    seconds, longest = map(float, told.split())
    assert seconds >= longest > STOPPED_SECONDS / 2
