"""Pictures with a table: PNG files or videos, and a CSV with a row for each of them.

Columns, in any order: ``episode`` (any name; the rows of one stand together), ``file`` (a PNG or a video, from the
CSV's folder) and ``frame`` (number of the picture in a video, from 0), ``action_0``, ``action_1``, ..., ``reward``,
``is_last``, ``is_terminal`` (0 or 1). Without ``file`` the video is ``<episode>.mp4``. The timeline is that of
``worldmodels.base``: the reward arrives with the picture, the action is chosen after it and may be empty in an
episode's last row. Other columns are passed over.
"""

import csv
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np
from PIL import Image

from worldmodels.replay.episodes import MAX_SIDE, EpisodeError, guarded
from worldmodels.replay.recorded import MEDIA, Facts, Recorded, check_actions, check_columns, one_episode, spaces_of

NEEDED = ("episode", "action_0", "reward", "is_last", "is_terminal")
TRUTH = {"0": False, "1": True, "false": False, "true": True}


class Table(NamedTuple):
    """The rows of one episode, N of them."""

    pictures: list[tuple[Path, int]]  # file, and number of the picture in a video
    action: np.ndarray  # float32 [N, A]
    reward: np.ndarray  # float32 [N]
    last: bool
    terminal: bool


def frame_episodes(path: Path) -> tuple[list[Recorded], list[str]]:
    """The episodes of a CSV, and one line for each that has something wrong in it. Raises ``EpisodeError``."""
    with guarded(path), open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or []
        actions = sorted((c for c in columns if re.fullmatch(r"action_\d+", c)), key=lambda c: int(c[7:]))
        for name in NEEDED:
            if name not in columns:
                raise EpisodeError(f"{name}: missing column")
        if "file" not in columns and "frame" not in columns:
            raise EpisodeError("file: missing column, and so is frame")
        if actions != [f"action_{i}" for i in range(len(actions))]:
            raise EpisodeError(f"{actions[-1]}: a number is missing before it")
        try:
            rows = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise EpisodeError(f"row {reader.line_num}: {error}") from error
    groups: list[tuple[str, list[tuple[int, dict[str, Any]]]]] = []
    for number, row in rows:
        if not groups or groups[-1][0] != row["episode"]:
            groups.append((row["episode"], []))
        groups[-1][1].append((number, row))
    episodes, problems, seen = [], [], set()
    for name, group in groups:
        try:
            with guarded(path):
                if name in seen:
                    raise EpisodeError(f"row {group[0][0]}: episode: {name!r} began before, and others came between")
                table = _table(path.parent, group, len(actions))
        except EpisodeError as error:
            problems.append(str(error))
        else:
            where = f"{path}: episode {name}"
            episodes.append(Recorded(where, partial(_probe, where, table), partial(_read, where, table)))
        seen.add(name)
    return episodes, problems


def _table(folder: Path, group: list[tuple[int, dict[str, Any]]], size: int) -> Table:
    pictures, actions, rewards, lasts, terminals = [], [], [], [], []
    for position, (number, row) in enumerate(group):
        end = position == len(group) - 1
        try:
            if None in row or None in row.values():
                raise EpisodeError("fewer or more fields than columns")
            pictures.append(_picture(folder, row))
            names = [f"action_{i}" for i in range(size)]
            idle = end and not any(row[name].strip() for name in names)
            actions.append([0.0 if idle else _number(row, name) for name in names])
            rewards.append(_number(row, "reward"))
            for flags, name in ((lasts, "is_last"), (terminals, "is_terminal")):
                if row[name].strip().lower() not in TRUTH:
                    raise EpisodeError(f"{name}: {row[name]!r} is not 0 or 1")
                flags.append(TRUTH[row[name].strip().lower()])
                if flags[-1] and not end:
                    raise EpisodeError(f"{name}: true before the episode's last row")
            check_actions(np.array(actions[-1:], np.float32), 1, "action")
        except EpisodeError as error:
            raise EpisodeError(f"row {number}: {error}") from None
    return Table(pictures, np.array(actions, np.float32), np.array(rewards, np.float32), lasts[-1], terminals[-1])


def _number(row: dict[str, Any], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = np.nan
    if not np.isfinite(np.float32(value)):
        raise EpisodeError(f"{name}: {row[name]!r} is not a finite number")
    return value


def _picture(folder: Path, row: dict[str, Any]) -> tuple[Path, int]:
    name = row.get("file") or f"{row['episode']}.mp4"
    field = "file" if row.get("file") else "episode"
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise EpisodeError(f"{field}: {name!r} is outside the CSV's folder")
    if path.suffix.lower() not in MEDIA or not path.is_file():
        raise EpisodeError(f"{field}: {name!r} is no .png or .mp4 here")
    if path.suffix.lower() == ".png":
        return path, 0
    if not re.fullmatch(r"\d{1,8}", row.get("frame") or ""):
        raise EpisodeError(f"frame: {row.get('frame')!r} is not the number of a picture in {name}")
    return path, int(row["frame"])


def _probe(where: str, table: Table) -> Facts:
    with guarded(where):
        path, _ = table.pictures[0]
        if path.suffix.lower() == ".png":
            image = _png(path).shape
        else:
            width, height = iio.immeta(path, plugin="FFMPEG")["size"]
            image = (height, width, 3)
        return Facts(spaces_of(image, table.action), len(table.pictures))


def _read(where: str, table: Table) -> dict[str, np.ndarray]:
    with guarded(where):
        wanted: dict[Path, list[int]] = {}
        for path, frame in table.pictures:
            wanted.setdefault(path, []).append(frame)
        found: dict[tuple[Path, int], np.ndarray] = {}
        for path, frames in wanted.items():
            images = {0: _png(path)} if path.suffix.lower() == ".png" else _video(path, set(frames))
            found |= {(path, frame): image for frame, image in images.items()}
        shape = found[table.pictures[0]].shape
        for path, frame in table.pictures:
            if found[path, frame].shape != shape:
                raise EpisodeError(f"file: {path.name} is {list(found[path, frame].shape)}, the first is {list(shape)}")
        images = np.stack([found[picture] for picture in table.pictures])
        check_columns({"image": images, "action": table.action, "reward": table.reward}, {"image": "file"})
        return one_episode(images, table.action, table.reward, table.last, table.terminal)


def _png(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if max(picture.size) > MAX_SIDE or picture.mode not in ("L", "RGB", "P"):
                raise EpisodeError(f"file: {path.name} is {picture.mode} of {picture.size}, where grey or RGB belongs")
            image = np.array(picture.convert("RGB") if picture.mode == "P" else picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise EpisodeError(f"file: {path.name}: {error}") from error
    return image if image.ndim == 3 else image[..., None]


def _video(path: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    """Pictures of a video, RGB, by their numbers."""
    found: dict[int, np.ndarray] = {}
    # passthrough: else ffmpeg repeats or drops pictures where their times are uneven
    reader = iio.imiter(path, plugin="FFMPEG", output_params=["-fps_mode", "passthrough"])
    last = max(wanted)
    for number, image in enumerate(reader):
        if number in wanted:
            found[number] = image
        if number >= last:
            break
    if missing := sorted(wanted - set(found)):
        raise EpisodeError(f"frame: {path.name} has no picture {missing[0]}")
    return found
