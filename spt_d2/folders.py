"""Folders that results go to, looked at before hours of work for them."""

import os
import tempfile


def expect_folder(path: str | os.PathLike[str], option: str) -> None:
    """
    Make a folder where there is none, and see that files can be written into it.

    Args:
        path: of the folder.
        option: that named it, for the message.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"{option} expects a folder that can be written to. Got {os.fspath(path)}: {error}") from error
