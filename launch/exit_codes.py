"""Exit codes, and the one place where errors of the user's become one line on standard error."""

import signal
import sys
from collections.abc import Callable

from artifact.errors import ArtifactError
from model.errors import InputError

OK = 0
FAILED = 1
INPUT_WRONG = 2
PREEMPTED = 75
INTERRUPTED = 128 + signal.SIGINT

# Top-level module -> the extra of the distribution that brings it.
EXTRA_OF_MODULE = {
    "deepspeed": "train",
    "huggingface_hub": "train",
    "jsonschema": "train",
    "sentencepiece": "eval",
    "torch": "eval",
    "tqdm": "eval",
    "tyro": "train",
    "vl_convert": "train",
}


def print_error(message: str) -> None:
    """`albatross: error: ` and the first line of `message` on standard error; further lines (a table) below it."""
    print(f"albatross: error: {message.strip()}", file=sys.stderr, flush=True)


def run(command: Callable[[], int], *, quiet: bool = False, extra: str | None = None) -> int:
    """The exit code of `command()`. What the user can put right becomes one line (unless `quiet`) and exit code 2.

    `extra` brings everything that the command needs; by default the line names the one that brings the missing package.
    Anything else that goes wrong is a bug and is left to end in a traceback.
    """
    try:
        return command()
    except (InputError, ArtifactError) as error:
        message = str(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    except ModuleNotFoundError as error:
        bringing = EXTRA_OF_MODULE.get((error.name or "").split(".")[0])
        if bringing is None:
            raise
        message = f"this needs the package {error.name}; install it with: pip install 'albatross[{extra or bringing}]'"
    except KeyboardInterrupt:
        return INTERRUPTED
    if not quiet:
        print_error(message)
    return INPUT_WRONG
