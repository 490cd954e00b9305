"""For all tests: signals are as a terminal would leave them."""

from __future__ import annotations

import signal

# A shell that puts a command into the background has it ignore SIGINT, and whatever it starts does so too: tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
