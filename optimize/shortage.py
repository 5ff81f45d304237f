"""What the system has run out of, and what helps."""

import errno
import os

FILES_OF_A_PROCESS = 16  # with pipes, while it is started
REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
}


def describe(error: OSError, otherwise: str) -> str:
    """In words, with the remedy, which is `otherwise` where nothing has run out."""
    return f"{error.strerror}; {REMEDIES.get(error.errno or 0, otherwise)}"


def check_files() -> None:
    """Raises OSError where too few are left to start a process: uvloop would try, not say why it failed, and lose two
    more each time."""
    taken: list[int] = []
    try:
        for _ in range(FILES_OF_A_PROCESS):
            taken.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for file in taken:
            os.close(file)
