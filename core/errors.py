"""The one exception type that a person should ever see: a line that names the place and the way out."""


class ConsilienceError(ValueError):
    """Input, option or file that cannot be used; the message says where it is and what to do.

    The command line prints the message alone and leaves with exit code 2; `--debug` shows the traceback.
    """


class UnreadableRecordError(ConsilienceError):
    """One record of several cannot be turned into tokens; readers collect these into a failure list."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"record {index}: {reason}")
        self.index = index
        self.reason = reason
