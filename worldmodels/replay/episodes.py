"""Episodes on disk: one immutable ``.wme`` file per finished episode.

A ``.wme`` file is an uncompressed ZIP, so that any zip tool opens it and its CRCs find bit-rot::

    meta.json                                   format, version, and the fields of ``EpisodeInfo``
    action.npy reward.npy                       float32 [N, A], float32 [N]
    is_first.npy is_last.npy is_terminal.npy    bool [N]
    log_prob.npy                                float32 [N], NaN where not known; only where any is
    image/00000.zst image/00001.zst ...         zstd-1 of uint8 [<= 16, h, w, c]

Rows follow the timeline of ``worldmodels.base``: N rows are N observations, the action of the last row led nowhere.
Files are made under a temporary name and moved into place, so a torn one never bears a final name. Nothing in a file
is trusted: no pickles, and every size is checked before it is believed.
"""

import errno
import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zstandard

from worldmodels.base import Sequence, Spaces

FORMAT, VERSION = "worldmodels-episode", 1
CHUNK = 16  # frames: random access stays cheap, and neighbours still compress each other
MAX_LENGTH, MAX_SIDE = 10_000_000, 4096  # beyond these a header is a lie

_NAME = re.compile(r"s(\d{3,})-(\d{9,})-(\d+)\.wme", re.ASCII)
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, OverflowError, MemoryError)
_DTYPES = {"action": "float32", "reward": "float32", "is_first": "bool", "is_last": "bool", "is_terminal": "bool"}
_OPTIONAL = {"log_prob": "float32"}


class EpisodeError(ValueError):
    """One line: the file, the field, what is wrong."""


@dataclass(frozen=True)
class EpisodeInfo:
    """What is known of an episode without reading its pixels."""

    task: str
    fingerprint: dict[str, str]  # ``Env.fingerprint``
    seed: int  # of the run
    stream: int
    position: int  # counter of the first row in its stream
    length: int  # rows
    episode_return: float
    env_steps: int  # of the run when the episode ended
    episode_env_steps: int  # of this episode
    cut: bool  # ended by a worker crash or a restart and not by the task; its last row is is_last all the same
    spaces: Spaces
    path: Path = field(default=Path(), compare=False)

    @property
    def name(self) -> str:
        """The file's name; names sort by stream and then by time."""
        return f"s{self.stream:03d}-{self.position:09d}-{self.length}.wme"


class Episode(NamedTuple):
    """A whole episode as NumPy arrays, N rows."""

    info: EpisodeInfo
    obs: np.ndarray  # uint8 [N, h, w, c]
    action: np.ndarray  # float32 [N, A]
    reward: np.ndarray  # float32 [N]
    is_first: np.ndarray  # bool [N]
    is_last: np.ndarray  # bool [N]
    is_terminal: np.ndarray  # bool [N]
    log_prob: np.ndarray | None = None  # float32 [N], ``Sequence.log_prob``

    @property
    def columns(self) -> dict[str, str]:
        """Names and dtypes of the arrays beside ``obs``."""
        return _DTYPES if self.log_prob is None else _DTYPES | _OPTIONAL

    def rows(self, start: int = 0) -> dict[str, np.ndarray]:
        """The arrays from row ``start`` on, by name."""
        return {name: getattr(self, name)[start:] for name in ("obs", *self.columns)}

    def to_sequence(self) -> Sequence:
        """The whole episode as one sequence, B = 1, T = N."""
        columns = {name: torch.from_numpy(np.array(values))[None] for name, values in self.rows().items()}
        return Sequence(**columns, prev_action=torch.zeros_like(columns["action"][:, 0]))


def parse_name(name: str) -> tuple[int, int, int]:
    """Stream, position and length of an episode, from its file's name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise EpisodeError(f"{name!r} is not the name of an episode file (s000-000000000-501.wme)")
    stream, position, length = map(int, match.groups())
    return stream, position, length


def require_empty(folder: Path) -> None:
    """Raises ``ValueError`` where episodes would be written among other things."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: there is something already: give a new or an empty folder")


def oldest_first(folder: Path) -> list[Path]:
    """The episode files of a folder by their position in their stream, of equal ones by name; maybe none."""
    found = folder.glob("*.wme") if folder.is_dir() else ()
    return sorted(found, key=lambda path: (parse_name(path.name)[1], path.name))


def write_episode(directory: Path, episode: Episode) -> EpisodeInfo:
    """Write an episode so that its file appears whole or not at all; returns its info with the path.

    Equal episodes give equal bytes. A file that exists with other content is never overwritten. Raises
    ``EpisodeError`` where the rows are not an episode, and where the disk is full: nothing is left behind then.
    """
    path = directory / episode.info.name
    with guarded(path):
        _check_rows(episode)
    content = _encode(episode)
    if path.exists():
        if path.read_bytes() == content:
            return replace(episode.info, path=path)
        raise EpisodeError(f"{path}: exists with other content: set it aside before the run goes on from before it")
    temporary = directory / f".{path.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(directory)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full, free some space and resume" if full else error.strerror
        raise EpisodeError(f"{path}: cannot write {len(content) / 1e6:.1f} MB: {why}") from error
    return replace(episode.info, path=path)


def read_info(path: Path) -> EpisodeInfo:
    """The header of an episode file, without its pixels. Raises ``EpisodeError``."""
    with guarded(path), zipfile.ZipFile(path) as archive:
        return _info(archive, path)


def read_episode(path: Path) -> Episode:
    """A whole episode, every check passed. Raises ``EpisodeError``: file, field, problem."""
    with guarded(path), zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        info = _info(archive, path)
        there = _DTYPES | {name: dtype for name, dtype in _OPTIONAL.items() if f"{name}.npy" in archive.namelist()}
        shapes = {name: (info.length,) for name in there} | {"action": (info.length, info.spaces.action_dim)}
        arrays = {name: _array(archive, f"{name}.npy", shapes[name], dtype) for name, dtype in there.items()}
        obs = np.empty((info.length, *info.spaces.image), np.uint8)
        for start in range(0, info.length, CHUNK):
            chunk, name = obs[start : start + CHUNK], f"image/{start // CHUNK:05d}.zst"
            packed = archive.read(name)
            if zstandard.frame_content_size(packed) != chunk.nbytes:
                raise EpisodeError(f"{name}: does not hold {chunk.nbytes} bytes of pixels")
            pixels = zstandard.ZstdDecompressor().decompress(packed)
            chunk[:] = np.frombuffer(pixels, np.uint8).reshape(chunk.shape)
        episode = Episode(info, obs, **arrays)
        _check_rows(episode)
        return episode


def scan(directory: Path, skip: Collection[str] = ()) -> tuple[list[EpisodeInfo], list[str]]:
    """Episodes of a folder by their headers, in order of names, and one line for every file that is not one.

    Temporary files, folders inside and the names to skip are passed over. Damaged pixels are found when a file is read.
    """
    if not directory.is_dir():
        raise EpisodeError(f"{directory}: no such folder of episodes")
    episodes, problems = [], []
    for path in sorted(directory.iterdir()):
        if path.name.endswith(".tmp") or path.name in skip or path.is_dir():
            continue
        try:
            if path.suffix != ".wme":
                raise EpisodeError(f"{path}: not an episode file (.wme)")
            episodes.append(read_info(path))
        except EpisodeError as error:
            problems.append(str(error))
    return episodes, problems


def sync_directory(directory: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def guarded(path: Path | str) -> Iterator[None]:
    """Turn whatever a damaged file makes the readers raise into one line that names the file."""
    try:
        yield
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise EpisodeError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, zlib.error, zstandard.ZstdError, struct.error, *_DAMAGED) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EpisodeError(f"{path}: torn, corrupt or not an episode ({reason})") from error


def _encode(episode: Episode) -> bytes:
    meta = {"format": FORMAT, "version": VERSION, **asdict(episode.info)}
    del meta["path"]
    meta |= meta.pop("spaces")
    meta["return"] = meta.pop("episode_return")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name), content)  # ZipInfo's fixed date: equal episodes give equal bytes

        put("meta.json", json.dumps(meta, indent=1).encode())
        for name, dtype in episode.columns.items():
            array = io.BytesIO()
            np.lib.format.write_array(array, np.ascontiguousarray(getattr(episode, name), dtype), (1, 0))
            put(f"{name}.npy", array.getvalue())
        compressor = zstandard.ZstdCompressor(level=1)
        for start in range(0, len(episode.obs), CHUNK):
            chunk = np.ascontiguousarray(episode.obs[start : start + CHUNK])
            put(f"image/{start // CHUNK:05d}.zst", compressor.compress(chunk.data))
    return buffer.getvalue()


def _info(archive: zipfile.ZipFile, path: Path) -> EpisodeInfo:
    size = path.stat().st_size
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or not member.file_size == member.compress_size <= size:
            raise EpisodeError(f"{member.filename}: not stored as written by this project")
    meta = json.loads(archive.read("meta.json"))
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise EpisodeError("meta.json: not an episode of this project")
    if meta.get("version") != VERSION:
        raise EpisodeError(f"meta.json: format version {meta.get('version')!r}, this program reads {VERSION}")

    def get(key: str, kind: type, low: int = -(10**300), high: int = 10**300) -> Any:
        value: Any = meta.get(key)
        if type(value) is not kind or (kind in (int, float) and not low <= value <= high):
            raise EpisodeError(f"meta.json: {key} is {value!r}")
        return value

    image, prints = get("image", list), get("fingerprint", dict)
    if len(image) != 3 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in image):
        raise EpisodeError(f"meta.json: image is {image!r}")
    if not all(isinstance(value, str) for value in prints.values()):
        raise EpisodeError(f"meta.json: fingerprint is {prints!r}")
    info = EpisodeInfo(
        task=get("task", str),
        fingerprint=prints,
        seed=get("seed", int),
        stream=get("stream", int, 0, 10**6),
        position=get("position", int, 0, 2**53),
        length=get("length", int, 1, MAX_LENGTH),
        episode_return=get("return", float),  # refuses NaN and infinities too
        env_steps=get("env_steps", int, 0, 2**53),
        episode_env_steps=get("episode_env_steps", int, 0, 2**53),
        cut=get("cut", bool),
        spaces=Spaces((image[0], image[1], image[2]), get("action_dim", int, 1, MAX_SIDE), get("discrete", bool)),
        path=path,
    )
    wanted = {"meta.json", *(f"{name}.npy" for name in _DTYPES)}
    wanted |= {f"image/{chunk:05d}.zst" for chunk in range(math.ceil(info.length / CHUNK))}
    found = set(archive.namelist()) - {f"{name}.npy" for name in _OPTIONAL}
    if wanted != found:
        odd = sorted(wanted ^ found)[0]
        raise EpisodeError(f"{odd}: {'missing' if odd in wanted else 'does not belong here'}")
    return info


def _array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    content = io.BytesIO(archive.read(name))
    if np.lib.format.read_magic(content) != (1, 0):
        raise EpisodeError(f"{name}: unknown .npy version")
    found_shape, fortran, found = np.lib.format.read_array_header_1_0(content)
    if found_shape != shape or fortran or found != np.dtype(dtype):
        raise EpisodeError(f"{name}: {found} {list(found_shape)} where {dtype} {list(shape)} belongs")
    return np.frombuffer(content.read(), dtype).reshape(shape).copy()


def _check_rows(episode: Episode) -> None:
    inner = slice(0, -1)
    if not episode.is_first[0] or episode.is_first[1:].any():
        raise EpisodeError("is_first.npy: must be true on row 0 and nowhere else")
    if not episode.is_last[-1] or episode.is_last[inner].any():
        raise EpisodeError("is_last.npy: must be true on the last row and nowhere else")
    if episode.is_terminal[inner].any():
        raise EpisodeError("is_terminal.npy: true before the last row")
    for name in ("action", "reward"):
        if not np.isfinite(getattr(episode, name)).all():
            raise EpisodeError(f"{name}.npy: not finite")
    if episode.log_prob is not None and np.isinf(episode.log_prob).any():
        raise EpisodeError("log_prob.npy: infinite")
