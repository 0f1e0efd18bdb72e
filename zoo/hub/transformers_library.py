"""Loading with the transformers library: from a folder or the hub, without executing code from either."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.hub.connection import online


def transformers_library() -> Any:
    """The transformers library, which is an extra of the zoo.

    Raises:
        UserError: it is not installed; the message names the command that installs it.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(
            "a pretrained encoder needs transformers, an extra: pip install '.[encoders]' in the folder of the zoo's "
            "source"
        ) from error
    return transformers


def load_pretrained(kind: str, name: str, **options: Any) -> Any:
    """The result of `transformers.<kind>.from_pretrained(name)`. Remote code is refused, messages are suppressed.

    Args:
        kind: a class of transformers, as "AutoModel".
        name: a folder, or the name of a model on the hub, "owner/name".
        **options: other arguments of `from_pretrained`.

    Raises:
        FileNotFoundError: neither a folder nor a model on the hub has this name.
        UserError: the folder or model cannot be loaded, or transformers is not installed.
    """
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        raise UserError(f"{name} is a file: give the folder that holds the encoder's config.json and model.safetensors")
    is_local = path.is_dir()
    if not is_local and not re.fullmatch(r"[\w-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(f"there is no folder {name} with an encoder: check the path")
    library = transformers_library()  # its import takes seconds
    # Without a connection only an earlier download is used.
    reachable = not is_local and online()
    with quiet(library):
        try:
            source = str(path) if is_local else name
            load = getattr(library, kind).from_pretrained
            return load(source, trust_remote_code=False, local_files_only=not reachable, **options)
        except Exception as error:  # of many types, for missing and damaged files, and for code in the folder
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            if is_local:
                raise UserError(f"{name} cannot be loaded by transformers' {kind}: {reason}") from error
            where = "the hub has none of this name" if reachable else "the hub cannot be reached"
            raise FileNotFoundError(f"there is no folder {name}, and {where}: {reason}") from error


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Without transformers' progress bars, and its messages below an error."""
    log = library.utils.logging
    level, shows_progress = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shows_progress:
            log.enable_progress_bar()
