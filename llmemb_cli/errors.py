"""The one exception family. The command layer turns it into text or JSON and an exit code."""

from __future__ import annotations


class LlmembError(Exception):
    """Something a person can understand and mend.

    `message` says what is wrong, `where` names file, line and field, `hint` says what to do next.
    """

    exit_code = 1
    code = "failed"

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint


class WrongUseError(LlmembError):
    """A flag, a setting or a choice that cannot be right."""

    exit_code = 2
    code = "usage"


class MissingError(LlmembError):
    """Something needed is not here: a GPU, a model, the network, a package."""

    exit_code = 3
    code = "missing"


class BadDataError(LlmembError):
    """The user's data or an artefact cannot be used."""

    exit_code = 4
    code = "bad-data"


class InterruptedRunError(LlmembError):
    """SIGINT or SIGTERM arrived; what was done is saved and the same command goes on."""

    exit_code = 130
    code = "interrupted"


def near_match(word: str, known: list[str]) -> str | None:
    """The entry of `known` a person most likely meant by `word`, or None."""
    return next(iter(near_matches(word, known)), None)


def unknown_id(word: str, known: list[str]) -> str:
    """What to do about a user or item id that the data does not have."""
    # A number beside it is nobody's typing error.
    close = None if word.isdecimal() else near_match(word, known)
    if close is not None:
        return f"did you mean {close}?"
    example = f", for example {known[0]}" if known else ""
    return f"ids are your own{example}; what the rules of `llmemb init` left out is not there (`llmemb data`)"


def near_matches(word: str, known: list[str]) -> list[str]:
    """Up to three entries of `known` a person may have meant by `word`, nearest first."""
    import difflib

    return difflib.get_close_matches(word, known, n=3, cutoff=0.6)
