"""The one exception that means "your input, not our bug"."""

from apriel_assets.printable import printable


class UserError(ValueError):
    """Bad input from the user. The message is one line: what came, what is allowed, what to do.

    The CLI prints it and exits 2; everything else is a traceback.
    """

    def __init__(self, message: str) -> None:
        # One line, whatever was interpolated: the CLI promises it and log files are read line by line.
        super().__init__(printable(" ".join(message.split())))
