"""Episode files, the way back from them, and datasets: nothing lost, nothing torn, nothing read that is damaged."""

import errno
import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodels.base import Spaces
from worldmodels.envs.base import Step
from worldmodels.replay import (
    Episode,
    EpisodeError,
    EpisodeInfo,
    EpisodeStore,
    Replay,
    adopt,
    episodes,
    load_dataset,
    read_episode,
    restore,
    scan,
    set_aside,
    write_episode,
)

SPACES = Spaces(image=(4, 5, 3), action_dim=2, discrete=False)
STREAMS = 3
PACKED = 6


def episode(length=40, seed=0, stream=0, position=0, spaces=SPACES, fingerprint=None):
    random = np.random.default_rng(seed)
    rows = np.arange(length)
    reward = random.normal(size=length).astype(np.float32)
    info = EpisodeInfo(
        task="walker-walk",
        fingerprint=fingerprint or {"mujoco": "3.3", "renderer": "egl"},
        seed=seed,
        stream=stream,
        position=position,
        length=length,
        episode_return=float(reward.sum()),
        env_steps=1000,
        episode_env_steps=2 * (length - 1),
        cut=False,
        spaces=spaces,
    )
    return Episode(
        info,
        obs=random.integers(0, 256, (length, *spaces.image), dtype=np.uint8),
        action=random.uniform(-1, 1, (length, spaces.action_dim)).astype(np.float32),
        reward=reward,
        is_first=rows == 0,
        is_last=rows == length - 1,
        is_terminal=rows == length - 1,
    )


def assert_equal(one: Episode, other: Episode):
    assert one.info == other.info
    for name, values in one.rows().items():
        assert values.dtype == other.rows()[name].dtype
        np.testing.assert_array_equal(values, other.rows()[name], err_msg=name)


class Run:
    """A replay and its store, fed by environments whose every step is a function of the stream and its step count."""

    def __init__(self, directory, packed_bytes=0, ring=30, seed=0, background=True):
        self.replay = Replay(SPACES, ring * STREAMS, STREAMS, packed_bytes, seed=seed)
        options = {"task": "t", "fingerprint": {"a": "b"}, "seed": 0, "background": background}
        self.store = EpisodeStore(directory, SPACES, STREAMS, **options)
        self.clock, self.fresh = 0, np.ones(STREAMS, bool)

    def steps(self, count):
        for _ in range(count):
            random = np.random.default_rng(self.clock)
            last = random.random(STREAMS) < 0.15
            step = Step(
                obs=random.integers(0, 256, (STREAMS, *SPACES.image), dtype=np.uint8),
                reward=random.normal(size=STREAMS).astype(np.float32),
                is_first=self.fresh.copy(),
                is_last=last & ~self.fresh,
                is_terminal=last & ~self.fresh & (random.random(STREAMS) < 0.5),
                env_steps=np.where(self.fresh, 0, 2),
            )
            self.fresh = step.is_last.copy()
            action = torch.from_numpy(random.uniform(-1, 1, (STREAMS, 2)).astype(np.float32))
            packed = torch.from_numpy(random.integers(0, 256, (STREAMS, PACKED), dtype=np.uint8))
            log_prob = torch.from_numpy(random.normal(size=STREAMS).astype(np.float32))
            log_prob = log_prob if self.clock % 3 and self.clock > 9 else None  # as of an agent that came later
            self.replay.add(step, action, packed if self.replay.packed_bytes and self.clock % 4 else None, log_prob)
            self.store.add(step, action, log_prob)
            self.clock += 1

    def save(self):
        saved = {
            "replay": self.replay.state_dict(),
            "manifest": self.store.manifest(),
            "open_tails": self.store.open_tails(),
            "env": [self.clock, torch.from_numpy(self.fresh.copy())],
        }
        file = io.BytesIO()
        torch.save(saved, file)
        return file.getvalue(), self.replay.export_latents() if self.replay.packed_bytes else None

    def load(self, checkpoint):
        saved = torch.load(io.BytesIO(checkpoint[0]), weights_only=True)
        self.replay.load_state_dict(saved["replay"])
        restored = restore(self.replay, self.store, saved["manifest"], saved["open_tails"], checkpoint[1])
        self.clock, self.fresh = saved["env"][0], saved["env"][1].numpy()
        return restored


def assert_same_batches(one: Replay, other: Replay, batches=10):
    assert len(one) == len(other) and one.num_episodes == other.num_episodes
    for _ in range(batches):
        a, b = one.sample(8, 6, newest=2), other.sample(8, 6, newest=2)
        assert torch.equal(a.index, b.index)
        for name, x in a.sequence._asdict().items():
            y = getattr(b.sequence, name)
            assert (x is None and y is None) or np.array_equal(x, y, equal_nan=name == "log_prob"), name


# ---- files


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100])
def test_what_is_written_is_read(tmp_path, length):
    written = episode(length)
    info = write_episode(tmp_path, written)
    assert info.path == tmp_path / f"s000-000000000-{length}.wme"
    assert_equal(read_episode(info.path), written)
    assert scan(tmp_path) == ([info], [])
    assert write_episode(tmp_path, written).path.stat().st_ino == info.path.stat().st_ino  # equal: left alone
    with pytest.raises(EpisodeError, match="exists with other content"):
        write_episode(tmp_path, episode(length, seed=1))


def test_any_zip_tool_opens_a_file(tmp_path):
    with zipfile.ZipFile(write_episode(tmp_path, episode(40)).path) as archive:
        assert archive.testzip() is None
        assert sum(name.startswith("image/") for name in archive.namelist()) == 3
        assert np.load(io.BytesIO(archive.read("reward.npy")), allow_pickle=False).shape == (40,)


def test_an_episode_is_a_sequence(tmp_path):
    sequence = episode(20).to_sequence()
    assert sequence.obs.shape == (1, 20, 4, 5, 3) and sequence.obs.dtype == torch.uint8
    assert sequence.prev_action.shape == (1, 2) and sequence.context is None
    assert sequence.is_first[0].tolist() == [True] + [False] * 19


def test_densities_of_actions_are_in_a_file_where_any_is_known(tmp_path):
    plain = episode(5)
    file = write_episode(tmp_path, plain).path
    with zipfile.ZipFile(file) as archive:
        assert "log_prob.npy" not in archive.namelist(), "files of agents that know none are as they always were"
    assert read_episode(file).log_prob is None and read_episode(file).to_sequence().log_prob is None
    chances = np.array([0.5, np.nan, -3.0, 0.0, np.nan], np.float32)
    known = episode(5, position=5)._replace(log_prob=chances)
    back = read_episode(write_episode(tmp_path, known).path)
    assert back.log_prob is not None and back.log_prob.dtype == np.float32
    np.testing.assert_array_equal(back.log_prob, chances)
    np.testing.assert_array_equal(back.to_sequence().log_prob, chances[None])
    with pytest.raises(EpisodeError, match=r"log_prob.npy: infinite"):
        write_episode(tmp_path, episode(5, position=10)._replace(log_prob=chances - np.inf))


def test_open_episodes_saved_before_there_were_densities_go_on_without_them(tmp_path):
    run, other = Run(tmp_path / "a"), Run(tmp_path / "b")
    run.steps(40)
    tails = run.store.open_tails()
    had = sum("log_prob" in tail for tail in tails["streams"])
    for tail in tails["streams"]:
        tail.pop("log_prob", None)
    other.store.load_open_tails(tails)
    assert had and not any("log_prob" in other.store.tail_rows(s) for s in range(STREAMS))
    assert [len(tail) for tail in other.store.tails] == [len(tail) for tail in run.store.tails]


def test_no_truncation_is_read(tmp_path):
    path = write_episode(tmp_path, episode(20)).path
    content = path.read_bytes()
    for size in [*range(0, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(EpisodeError) as caught:
            read_episode(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    written = episode(20)
    path = write_episode(tmp_path, written).path
    content, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for bit in random.integers(0, 8 * len(content), 600):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            found = read_episode(path)
        except EpisodeError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # a bit that carries nothing, such as a date in the zip
            assert_equal(found, written)
    assert refused > 450


def rewrite(path: Path, changes: dict[str, bytes | None], compression=zipfile.ZIP_STORED):
    """The same archive with some members replaced, added or (None) removed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (members | changes).items():
            if content is not None:
                archive.writestr(name, content)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


LIES = {
    "version": (b'"version": 1', b'"version": 2', "format version 2"),
    "format": (b'"worldmodels-episode"', b'"other"', "not an episode of this project"),
    "length": (b'"length": 20', b'"length": 21', "reward.npy|action.npy"),
    "longer": (b'"length": 20', b'"length": 9999999', "image/.*missing"),
    "kind": (b'"length": 20', b'"length": true', "length is True"),
    "nan": (b'"seed": 0', b'"seed": NaN', "seed is nan"),
    "image": (b'"seed"', b'"image": [4, 5, 4], "seed"', None),  # the later one counts: still [4, 5, 3]
    "huge": (b'"action_dim": 2', b'"action_dim": 99999999', "action_dim"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path, lie):
    path = write_episode(tmp_path, episode(20)).path
    old, new, message = LIES[lie]
    meta = zipfile.ZipFile(path).read("meta.json")
    assert meta.count(old) == 1
    rewrite(path, {"meta.json": meta.replace(old, new)})
    if message is None:
        assert_equal(read_episode(path), episode(20))
        return
    with pytest.raises(EpisodeError, match=message):
        read_episode(path)


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("reward.npy", None, "reward.npy: missing"),
        ("extra.py", b"print()", "extra.py: does not belong"),
        ("reward.npy", npy(np.zeros(19, np.float32)), r"reward.npy: float32 \[19\] where float32 \[20\]"),
        ("reward.npy", npy(np.zeros(20)), r"reward.npy: float64 \[20\]"),
        ("reward.npy", npy(np.array([{}] * 20), allow_pickle=True), "reward.npy: object"),
        ("reward.npy", npy(np.full(20, np.nan, np.float32)), "reward.npy: not finite"),
        ("reward.npy", npy(np.zeros(20, np.float32))[:-4], "torn, corrupt"),
        ("is_first.npy", npy(np.zeros(20, bool)), "is_first.npy"),
        ("is_last.npy", npy(np.zeros(20, bool)), "is_last.npy"),
        ("is_terminal.npy", npy(np.ones(20, bool)), "is_terminal.npy"),
        ("image/00000.zst", b"no zstd", "torn, corrupt"),
        ("image/00001.zst", episodes.zstandard.compress(b"1234"), "image/00001.zst: does not hold 240 bytes"),
    ],
)
def test_a_malformed_member_is_refused_by_name(tmp_path, member, content, message):
    path = write_episode(tmp_path, episode(20)).path
    rewrite(path, {member: content})
    with pytest.raises(EpisodeError, match=message):
        read_episode(path)


def test_compressed_members_are_refused(tmp_path):
    path = write_episode(tmp_path, episode(20)).path
    rewrite(path, {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(EpisodeError, match="not stored as written"):
        read_episode(path)


def test_a_scan_gives_one_line_for_each_file_that_is_no_episode(tmp_path):
    good = write_episode(tmp_path, episode(20))
    torn = write_episode(tmp_path, episode(20, position=20)).path
    torn.write_bytes(torn.read_bytes()[:500])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.wme").touch()
    (tmp_path / ".s000-000000040-20.wme.1.tmp").write_bytes(b"half")
    (tmp_path / "set_aside").mkdir()
    found, problems = scan(tmp_path)
    assert found == [good]
    assert len(problems) == 3 and all("\n" not in line for line in problems)
    assert [sum(name in line for line in problems) for name in ("notes.txt", "empty.wme", torn.name)] == [1, 1, 1]
    with pytest.raises(EpisodeError, match="no such folder"):
        scan(tmp_path / "nowhere")


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    broken = episode(20)
    broken.reward[3] = np.nan
    with pytest.raises(EpisodeError, match="reward.npy: not finite"):
        write_episode(tmp_path, broken)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_episodes import episode, write_episode
moment, directory = sys.argv[1], Path(sys.argv[2])
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
write_episode(directory, episode(20))
setattr(os, moment, die)
write_episode(directory, episode(20, position=20))
"""


@pytest.mark.parametrize(("moment", "files"), [("fsync", 1), ("replace", 1)])
def test_a_kill_in_the_middle_of_a_write_leaves_no_file(tmp_path, moment, files):
    root = Path(__file__).parent
    code = KILLED.format(tests=str(root))
    environment = {**os.environ, "PYTHONPATH": str(root.parent)}
    child = subprocess.run([sys.executable, "-c", code, moment, str(tmp_path)], env=environment, timeout=120)
    assert child.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    found, problems = scan(tmp_path)
    assert len(found) == files and not problems
    run = Run(tmp_path)
    run.load(run.save())
    assert not list(tmp_path.glob(".*.tmp"))  # swept when a run resumes


class FullDisk:
    """A file that takes some bytes and then no more, like a full disk."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        self.file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")


def fill_disk(monkeypatch):
    monkeypatch.setattr(episodes, "open", lambda path, mode: FullDisk(open(path, mode)), raising=False)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    fill_disk(monkeypatch)
    with pytest.raises(EpisodeError, match="the disk is full") as caught:
        write_episode(tmp_path, episode(20))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("background", [False, True])
def test_an_episode_that_could_not_be_written_is_kept_and_written_later(tmp_path, monkeypatch, background):
    run = Run(tmp_path, background=background)
    with monkeypatch.context() as patch:
        fill_disk(patch)
        with pytest.raises(EpisodeError, match="the disk is full"):
            run.steps(40)
            run.store.flush()
        assert not list(tmp_path.iterdir())
    run.store.flush()
    found, problems = scan(tmp_path)
    assert sorted(info.name for info in found) == sorted(run.store.names) and not problems


# ---- store


def test_a_store_writes_each_episode_once_and_knows_where_it_stands(tmp_path):
    run = Run(tmp_path)
    run.steps(60)
    assert sorted(run.store.manifest()) == [info.name for info in scan(tmp_path)[0]]
    for stream in range(STREAMS):
        infos = [info for info in scan(tmp_path)[0] if info.stream == stream]
        position = 0
        for info in infos:
            assert info.position == position and not info.cut and info.fingerprint == {"a": "b"}
            assert info.episode_env_steps == 2 * (info.length - 1)
            assert info.episode_return == pytest.approx(float(read_episode(info.path).reward.sum()), abs=1e-5)
            position += info.length
        assert run.store.tails[stream].position == position
        assert position + len(run.store.tails[stream]) == 60


def test_a_restart_in_the_middle_ends_the_episode_as_cut(tmp_path):
    run = Run(tmp_path)
    run.steps(1)
    run.fresh[:] = True  # all workers died
    run.steps(1)
    names = run.store.manifest()
    assert len(names) == STREAMS
    found = read_episode(tmp_path / names[0])
    assert found.info.cut and found.is_last[-1] and not found.is_terminal[-1]
    run.fresh[:] = False
    run.store._finish(0, cut=True)
    with pytest.raises(ValueError, match="stream 0 goes on after its episode has ended"):
        run.steps(1)


def test_an_episode_that_a_pool_closed_for_a_dead_worker_is_cut(tmp_path):
    run = Run(tmp_path)
    first = np.ones(STREAMS, bool)
    step = Step(np.zeros((STREAMS, *SPACES.image), np.uint8), np.zeros(STREAMS), first, ~first, ~first, 0 * first)
    run.store.add(step, np.zeros((STREAMS, 2)))
    run.store.add(step._replace(is_first=~first, is_last=first), np.zeros((STREAMS, 2)))
    run.store.flush()
    assert [info.cut for info in scan(tmp_path)[0]] == [True] * STREAMS


def test_prune_deletes_only_what_the_replay_no_longer_holds(tmp_path):
    run = Run(tmp_path, ring=30)
    run.steps(200)
    run.store.flush()
    before = scan(tmp_path)[0]
    held = (run.replay.end - run.replay.begin).tolist()
    assert run.store.prune(held, limit_bytes=10**9) == []
    deleted = run.store.prune(held, limit_bytes=0)
    remaining = {info.name for info in scan(tmp_path)[0]}
    expected = {info.name for info in before if info.position + info.length > 200 - 30}
    assert remaining == expected == set(run.store.names) and len(deleted) == len(before) - len(expected) > 0
    other = Run(tmp_path, ring=30)
    assert other.load(run.save()).problems == []
    assert_same_batches(run.replay, other.replay)


# ---- restore


@pytest.mark.parametrize("packed_bytes", [0, PACKED])
@pytest.mark.parametrize("steps", [12, 47, 130])
def test_a_restored_replay_draws_the_same_batches_and_goes_on_alike(tmp_path, packed_bytes, steps):
    run = Run(tmp_path, packed_bytes)
    run.steps(steps)
    run.replay.sample(5, 3)
    checkpoint = run.save()
    other = Run(tmp_path, packed_bytes, seed=77)
    assert other.load(checkpoint) == ([], [])
    assert_same_batches(run.replay, other.replay)
    run.steps(25)
    run.store.flush()
    other.steps(25)  # writes the same files again: equal, so left alone
    assert_same_batches(run.replay, other.replay)
    assert other.store.manifest() == run.store.manifest() and other.store.env_steps == run.store.env_steps


def test_newer_episodes_are_returned_and_not_used(tmp_path):
    run = Run(tmp_path)
    run.steps(50)
    checkpoint = run.save()
    names = run.store.manifest()
    run.steps(40)
    run.store.flush()
    other = Run(tmp_path)
    restored = other.load(checkpoint)
    assert {info.name for info in restored.newer} == set(run.store.names) - set(names) != set()
    assert len(other.replay) == STREAMS * 30 and int(other.replay.end[0]) == 50
    moved = set_aside(other.store, restored.newer)
    assert all(path.exists() for path in moved) and sorted(names) == [info.name for info in scan(tmp_path)[0]]
    again = Run(tmp_path)
    assert again.load(checkpoint).newer == []


@pytest.mark.parametrize("packed_bytes", [0, PACKED])
def test_adopted_episodes_supersede_the_open_tails(tmp_path, packed_bytes):
    run = Run(tmp_path, packed_bytes)
    run.steps(50)
    checkpoint = run.save()
    run.steps(40)
    run.store.flush()
    ends = [tail.position for tail in run.store.tails]
    other = Run(tmp_path, packed_bytes)
    restored = other.load(checkpoint)
    env_steps = other.store.env_steps
    adopted = adopt(other.replay, other.store, restored.newer)
    assert adopted.episodes == restored.newer and not adopted.left and not adopted.problems
    assert other.replay.end.tolist() == ends and adopted.streams == [0, 1, 2]
    assert other.store.env_steps == env_steps + adopted.env_steps
    assert sorted(other.store.names) == sorted(run.store.names)
    window = other.replay.gather(torch.arange(STREAMS), other.replay.end - 20, 20).sequence
    for stream in range(STREAMS):  # the rows that the first run has at the same counters
        start = other.replay.end[stream : stream + 1] - 20
        expected = run.replay.gather(torch.tensor([stream]), start, 20).sequence
        held = slice(int((run.replay.begin[stream] - start).clamp(min=0)), None)
        assert torch.equal(window.obs[stream, held], expected.obs[0, held])
        assert torch.equal(window.action[stream, held], expected.action[0, held])
        assert torch.equal(window.is_last[stream, held], expected.is_last[0, held])
    other.fresh[:] = True  # as adopt asks: environments are reset
    other.clock = 1000
    other.steps(15)
    final = Run(tmp_path, packed_bytes)
    assert final.load(other.save()) == ([], [])
    assert_same_batches(other.replay, final.replay)


def test_adoption_stops_at_a_damaged_episode_and_at_another_branch(tmp_path):
    run = Run(tmp_path)
    run.steps(50)
    checkpoint = run.save()
    run.steps(60)
    run.store.flush()
    other = Run(tmp_path)
    newer = other.load(checkpoint).newer
    mine = {stream: [info for info in newer if info.stream == stream] for stream in range(STREAMS)}
    damaged = mine[0][1].path
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 1
    damaged.write_bytes(content)
    branch = read_episode(mine[1][0].path)
    assert len(other.store.tails[1]) > 0
    branch.reward[0] += 1
    mine[1][0].path.unlink()
    write_episode(tmp_path, branch)
    adopted = adopt(other.replay, other.store, newer)
    assert [info for info in adopted.episodes if info.stream == 0] == mine[0][:1]
    assert [info for info in adopted.episodes if info.stream == 1] == []
    assert [info for info in adopted.episodes if info.stream == 2] == mine[2]
    assert set(i.name for i in adopted.left) == {i.name for i in mine[0][2:] + mine[1]}
    assert len(adopted.problems) == 1 and damaged.name in adopted.problems[0] and adopted.streams == [0, 2]


@pytest.mark.parametrize("packed_bytes", [0, PACKED])
def test_a_missing_and_a_damaged_episode_leave_the_rest_unbroken(tmp_path, packed_bytes):
    run = Run(tmp_path, packed_bytes, ring=60)
    run.steps(100)
    checkpoint = run.save()
    mine = [name for name, _ in run.store.files_of(0)]
    lengths = dict(run.store.files_of(0))
    (tmp_path / mine[1]).unlink()
    damaged = tmp_path / mine[2]
    damaged.write_bytes(damaged.read_bytes()[:-7])
    other = Run(tmp_path, packed_bytes, ring=60)
    restored = other.load(checkpoint)
    assert len(restored.problems) == 2 and restored.newer == []
    lost = lengths[mine[1]] + lengths[mine[2]]
    assert len(other.replay) == len(run.replay) - lost
    assert (other.replay.end == run.replay.end).all()
    begin, length = int(other.replay.begin[0]), 60 - lost
    window = other.replay.gather(torch.tensor([0]), torch.tensor([begin]), length).sequence
    full = run.replay.gather(torch.tensor([0]), torch.tensor([40]), 60).sequence
    start = int(mine[1].split("-")[1]) - 40
    newest = start + lengths[mine[1]]
    older = start - lengths[mine[2]]
    keep = [*range(older), *range(newest, 60)]
    assert torch.equal(window.obs, full.obs[:, keep]) and torch.equal(window.reward, full.reward[:, keep])
    if packed_bytes:
        kept = run.replay.export_latents()[:60][keep]
        assert torch.equal(other.replay.export_latents()[:length], kept)
    other.steps(5)
    final = Run(tmp_path, packed_bytes, ring=60)
    again = final.load(other.save())
    assert len(again.problems) == 1 and damaged.name in again.problems[0]  # still lies there, no longer belongs
    assert_same_batches(other.replay, final.replay)


def test_checkpoint_and_run_must_belong_together(tmp_path):
    run = Run(tmp_path)
    run.steps(20)
    checkpoint = torch.load(io.BytesIO(run.save()[0]), weights_only=True)
    other = Run(tmp_path)
    other.replay.load_state_dict(checkpoint["replay"])
    run.steps(3)
    run.store.flush()
    with pytest.raises(ValueError, match="the replay is at step 20, the open episodes at 23"):
        restore(other.replay, other.store, checkpoint["manifest"], run.store.open_tails())
    with pytest.raises(ValueError, match="not the name of an episode"):
        restore(other.replay, other.store, ["../../etc/passwd"], checkpoint["open_tails"])
    with pytest.raises(ValueError, match="another checkpoint"):
        latents = torch.zeros(5, 4, dtype=torch.uint8)
        restore(other.replay, other.store, checkpoint["manifest"], checkpoint["open_tails"], latents)


# ---- datasets


def npz(path, source: Episode, **changes):
    """The same episode as Dreamer V2 writes it: ``action[t]`` led to ``image[t]``."""
    action = np.concatenate([np.zeros_like(source.action[:1]), source.action[:-1]])
    arrays = {"image": source.obs, "action": action, "reward": source.reward, "discount": 1.0 - source.is_terminal}
    arrays |= {name: getattr(source, name) for name in ("is_first", "is_last", "is_terminal")} | changes
    np.savez_compressed(path, **{name: values for name, values in arrays.items() if values is not None})


def test_a_folder_of_both_formats_becomes_one_replay_on_our_timeline(tmp_path):
    sources = [episode(20, seed=0), episode(7, seed=1), episode(30, seed=2)]
    write_episode(tmp_path, sources[0])
    npz(tmp_path / "t1.npz", sources[1])
    npz(tmp_path / "t2.npz", sources[2], is_first=None, is_last=None, is_terminal=None)  # an older file
    replay, spaces, fingerprint, _ = load_dataset(tmp_path)
    assert spaces == SPACES and fingerprint == sources[0].info.fingerprint
    assert len(replay) == 57 and replay.num_episodes == 3 and replay.full
    window = replay.gather(torch.tensor([0]), torch.tensor([0]), 57).sequence
    for name in sources[0].rows():
        expected = np.concatenate([getattr(source, name) for source in sources])
        found = getattr(window, name)[0].numpy()
        if name == "action":  # npz knows no action after the last observation
            expected[[26, 56]] = 0
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_max_steps_bounds_a_dataset(tmp_path):
    for seed in range(3):
        write_episode(tmp_path, episode(20, seed, position=20 * seed))
    replay = load_dataset(tmp_path, max_steps=33).replay
    assert len(replay) == 33 and replay.num_episodes == 2


def test_one_hot_actions_are_discrete(tmp_path):
    source = episode(12)._replace(action=np.eye(2, dtype=np.float32)[np.arange(12) % 2])
    npz(tmp_path / "a.npz", source)
    assert load_dataset(tmp_path).spaces.discrete


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "image: missing"),
        ({"is_terminal": None, "discount": None}, "is_terminal: missing"),
        ({"reward": np.zeros(5, np.float32)}, r"reward: \[5\] where \[12\]"),
        ({"reward": np.full(12, np.inf)}, "reward: not finite"),
        ({"action": np.full((12, 2), 3.0)}, r"action: outside \[-1, 1\]"),
        ({"action": np.zeros(12)}, r"action: \[12\] where \[12, A\]"),
        ({"image": np.zeros((12, 4, 5, 3), np.float32)}, "image: float32"),
        ({"reward": np.array([{}] * 12)}, "reward: Object arrays"),
        ({"is_first": np.zeros(3, bool)}, r"is_first: \[3\]"),
        ({"image": np.zeros((12, 9, 5, 3), np.uint8)}, "spaces: .*9, 5, 3"),
    ],
)
def test_a_malformed_npz_is_one_line_with_file_and_field(tmp_path, caplog, changes, message):
    npz(tmp_path / "a.npz", episode(20))
    npz(tmp_path / "b.npz", episode(12, seed=1), **changes)
    replay = load_dataset(tmp_path).replay
    assert len(replay) == 20
    caplog_lines = [record.getMessage() for record in caplog.records]
    assert len(caplog_lines) == 1 and "b.npz" in caplog_lines[0]
    with pytest.raises(ValueError, match=message):
        raise ValueError(caplog_lines[0])


def test_damaged_files_in_a_dataset_are_one_line_each(tmp_path, caplog):
    for seed in range(3):
        npz(tmp_path / f"{seed}.npz", episode(30, seed=seed))
        write_episode(tmp_path, episode(30, seed=seed, position=30 * seed))
    for name in ("1.npz", "s000-000000030-30.wme"):  # in the pixels: the headers stay readable
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 255
        (tmp_path / name).write_bytes(content)
    (tmp_path / "2.npz").write_bytes(b"\x93NUMPY nonsense")
    (tmp_path / "readme.md").write_text("words")
    replay = load_dataset(tmp_path).replay
    assert len(replay) == 90
    assert len(caplog.records) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no readable episode"):
        load_dataset(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such folder"):
        load_dataset(tmp_path / "nowhere")


def test_different_fingerprints_are_mentioned_once(tmp_path, caplog):
    for seed, version in enumerate(("3.3", "3.17", "3.17")):
        write_episode(tmp_path, episode(9, seed, position=9 * seed, fingerprint={"mujoco": version}))
    assert len(load_dataset(tmp_path).replay) == 27
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: episodes of 2 different environment fingerprints"
    ]
