"""What every test starts from."""

import signal

# A shell that puts pytest into the background makes it, and all it starts, deaf to Ctrl-C; some tests press it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
