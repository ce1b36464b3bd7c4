"""For all tests: they send signals to what they start, however they were started themselves."""

import signal


def pytest_configure() -> None:
    """Take back what a shell's `&` or nohup has this process ignore: children would ignore it too."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
