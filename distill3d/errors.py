"""The one exception for mistakes that a user can mend, and how a sentence is shown."""

import unicodedata

#: Longer sentences lose their middle: names and values that stand in them may be of any length.
LONGEST = 400


class UserError(Exception):
    """One clear sentence: what is wrong, where (file, line or key), and what was expected.

    The command line prints the sentence without a traceback and exits with code 2.
    """


def one_line(text: str) -> str:
    """A sentence as it may be shown anywhere: on one line of at most ``LONGEST`` characters, the middle left out.

    What a terminal would obey or reorder instead of showing, such as escape sequences in a file's name, is written as
    Python's ``repr`` writes it.
    """
    if len(text) > LONGEST:
        half = LONGEST // 2 - 3
        text = f"{text[:half]} ... {text[-half:]}"
    shown = "".join(_escaped(letter) if unicodedata.category(letter) in _HIDDEN else letter for letter in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 4]} ..."


#: Control and format characters, halves of characters, line and paragraph separators.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
