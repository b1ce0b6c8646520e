"""Text from a stranger's file, made fit for a terminal.

A tensor may be called anything that JSON can hold: an escape sequence that clears the screen, a
lone surrogate that no stream encodes. Shown as escapes, on one line, neither does anything.
"""


def printable(text: str) -> str:
    """`text` on one line: what a terminal would act on, and lone surrogates, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
