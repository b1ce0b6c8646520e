"""The tree of errors a person can cause, and nothing else.

    HermesQuantError
    └── InputError             what was given cannot be used as it is: exit code 2, one line
        ├── CheckpointError    a file of the source: missing, truncated, a header that lies
        ├── TensorError        one weight: unknown name, wrong shape, NaN, overflow
        ├── UnsupportedError   understood, but outside what this version does
        ├── ConversationError  a prompt file, a chat template or what it rendered
        ├── ServerError        a model server: not there, refused, too slow, not understood
        ├── ContextError       a text that an engine has no memory for
        └── OutputError        where the result is to go: exists, no space, no permission

A message names the file, tensor or key, what was found, what was expected and what to do.
Mistakes of our own are `assert` or any other exception: they keep their traceback (exit code 4).
"""


class HermesQuantError(Exception):
    """Root of every error this project raises on purpose."""


class InputError(HermesQuantError):
    """Bad input or usage; the command line prints the message and exits with 2."""


class CheckpointError(InputError):
    """A file of the source is missing, truncated, pickled or contradicts itself."""


class TensorError(InputError):
    """One weight cannot be used: name, shape, dtype or value."""


class UnsupportedError(InputError):
    """The input is well formed, but of a kind this version does not handle."""


class ConversationError(InputError):
    """A conversation file, a chat template or the text it renders is unusable."""


class ServerError(InputError):
    """A model server cannot be reached, refused a request, took too long or made no sense."""


class ContextError(InputError):
    """An engine has no memory for a text of this length; the model itself is loaded."""


class OutputError(InputError):
    """The output cannot be written: it exists, the disk is full, no permission."""
