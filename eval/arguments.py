"""Command-line parsing whose errors are one clear line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from model.errors import InputError

OVERRIDE_PREFIX = "--eval."
"""Begins an option that replaces a setting of the artifact's eval section."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError where argparse would print usage, and takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def check_options(self, arguments: Sequence[str]) -> None:
        """Raises InputError for an option that there isn't, naming the nearest that there is."""
        known = [name for action in self._actions for name in action.option_strings]
        for argument in arguments:
            name = argument.partition("=")[0]
            if name.startswith("--") and not name.startswith(OVERRIDE_PREFIX) and name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                suggestion = f" (did you mean {nearest[0]}?)" if nearest else ""
                raise InputError(f"{self.prog}: unknown option {name}{suggestion}")
