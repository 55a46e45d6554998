"""The `chronicle` command, also as `python -m chronicle`."""

import signal


def main() -> None:
    """Runs the command line. To load it takes a second, in which Ctrl-C ends it without a word."""
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from chronicle import cli  # noqa: PLC0415

    signal.signal(signal.SIGINT, interrupted)
    cli.main()


if __name__ == "__main__":
    main()
