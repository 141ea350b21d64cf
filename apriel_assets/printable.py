"""Text from data, made safe to show: no control sequence reaches a terminal, no half character stops the output."""

import re

# Controls but for white space, what turns the direction of text round, and halves of characters.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return text with whatever a terminal would obey, or could not show, written as an escape such as \\x1b."""
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
