"""The zoo: small trained world models with their agents, in folders beside this file, and models of other people.

``find`` makes a folder of what a user writes where a saved model is wanted: ``zoo:NAME``, a Hugging Face repository as
``hf:OWNER/NAME``, or a path. Each folder's README.md is its card, with the command that trained it.
"""

from importlib import import_module
from pathlib import Path

from worldmodels.strict import ConfigError, did_you_mean

FOLDER = Path(__file__).parent
FILES = ["config.json", "model.safetensors", "agent.safetensors", "README.md", "run.yaml"]


def names() -> tuple[str, ...]:
    """The models that come with the project."""
    return tuple(sorted(card.parent.name for card in FOLDER.glob("*/config.json")))


def find(source: str | Path) -> Path:
    """The folder of ``zoo:NAME`` or ``hf:OWNER/NAME``; any other source is a path, and is returned as it is.

    Raises ``ConfigError`` for a name that the zoo does not have, and for a repository that cannot be had.
    """
    kind, colon, name = str(source).partition(":")
    if colon and kind == "zoo":
        if name not in names():
            raise ConfigError(f"no {name!r} in the zoo. {did_you_mean(name, names())}")
        return FOLDER / name
    return downloaded(name) if colon and kind == "hf" else Path(source)


def downloaded(repository: str) -> Path:
    """The folder of a Hugging Face repository: the cache's if it has it, else the hub's. Raises ``ConfigError``."""
    try:
        hub, errors = import_module("huggingface_hub"), import_module("huggingface_hub.errors")
    except ImportError as error:
        raise ConfigError(f"hf:{repository} needs pip install -e '.[hub]'") from error
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=FILES, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        pass
    except ValueError as error:  # no name of a repository
        raise ConfigError(f"hf:{repository}: {' '.join(str(error).split())[:150]}") from error
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=FILES))
    except Exception as error:  # of the hub, of its HTTP library and of the system: there is no common kind
        reason = " ".join(str(error).split())[:150]
        raise ConfigError(f"hf:{repository} is not in the cache and cannot be downloaded: {reason}") from error
