"""The replay against a naive list, its windows, its latents, and its state."""

import numpy as np
import pytest
import torch

from worldmodels.base import Spaces
from worldmodels.envs.base import Step
from worldmodels.replay import Replay, memory

SPACES = Spaces(image=(2, 2, 1), action_dim=2, discrete=False)
PACKED = 3


class Naive:
    """Streams as Python lists of every row ever added, of which the last ``ring`` count as held."""

    def __init__(self, num_streams, ring):
        self.ring, self.rows = ring, [[] for _ in range(num_streams)]

    def add(self, step, action, packed):
        for stream, rows in enumerate(self.rows):
            if rows and step.is_first[stream]:
                rows[-1]["is_last"] = True
            row = {name: getattr(step, name)[stream] for name in memory.FIELDS if name != "action"}
            rows.append({**row, "action": action[stream], "packed": None if packed is None else packed[stream]})

    def begin(self, stream):
        return max(0, len(self.rows[stream]) - self.ring)


def random_step(random, num_streams, ages, lengths=(1, 9), cut=0.0):
    """The next step of environments with random episodes; ``ages`` [num_streams, 2] is (age, length), updated."""
    first = np.zeros(num_streams, bool)
    for stream, (age, length) in enumerate(ages):
        if age == length or random.random() < cut:
            ages[stream] = (0, random.integers(*lengths))
            first[stream] = True
    ages[:, 0] += 1
    last = ages[:, 0] == ages[:, 1]
    return Step(
        obs=random.integers(0, 256, (num_streams, *SPACES.image), dtype=np.uint8),
        reward=random.normal(size=num_streams).astype(np.float32),
        is_first=first,
        is_last=last,
        is_terminal=last & (random.random(num_streams) < 0.5),
        env_steps=np.where(first, 0, 2),
    )


def fill(replay, naive, steps, seed, every_packed=0.7, cut=0.0):
    random = np.random.default_rng(seed)
    ages = np.zeros((replay.num_streams, 2), np.int64)
    for _ in range(steps):
        step = random_step(random, replay.num_streams, ages, cut=cut)
        action = random.uniform(-1, 1, (replay.num_streams, SPACES.action_dim)).astype(np.float32)
        packed = None
        if replay.packed_bytes and random.random() < every_packed:
            packed = torch.from_numpy(random.integers(0, 256, (replay.num_streams, PACKED), dtype=np.uint8))
        replay.add(step, torch.from_numpy(action), packed)
        if naive is not None:
            naive.add(step, action, packed)


def assert_window(replay, naive, sample, b):
    """Window b of a batch, field by field, against the naive lists; returns its stream and start."""
    index, sequence = sample.index[b], sample.sequence
    stream, start = int(index[0] % replay.num_streams), int(index[0] // replay.num_streams)
    length = len(index)
    assert (index == (torch.arange(start, start + length) * replay.num_streams + stream)).all()
    assert torch.equal(sequence.step[b], index)
    assert naive.begin(stream) <= start and start + length <= len(naive.rows[stream])
    rows = naive.rows[stream][start : start + length]
    before = naive.rows[stream][start - 1] if start > naive.begin(stream) else None
    for name in memory.FIELDS:
        expected = np.stack([row[name] for row in rows])
        if name == "is_first":
            expected[0] |= before is None or before["packed"] is None
        np.testing.assert_array_equal(getattr(sequence, name)[b].numpy(), expected, err_msg=name)
    known = before["action"] if before else np.zeros(SPACES.action_dim)
    np.testing.assert_array_equal(sequence.prev_action[b].numpy(), known)
    if replay.packed_bytes and before is not None and before["packed"] is not None:
        assert (sequence.context[b] == before["packed"]).all()
    return stream, start


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("packed_bytes", [0, PACKED])
def test_ring_equals_a_list_over_several_wraps(seed, packed_bytes):
    random = np.random.default_rng(seed)
    num_streams, ring, length = int(random.integers(1, 5)), int(random.integers(4, 30)), int(random.integers(1, 5))
    replay = Replay(SPACES, ring * num_streams + num_streams - 1, num_streams, packed_bytes, seed=seed)
    naive = Naive(num_streams, ring)
    for part in range(6):  # a naive list has to be one history, so the parts below go on with new random episodes
        fill(replay, naive, int(random.integers(length, 2 * ring)), seed=100 * seed + part, cut=0.05)
        sample = replay.sample(16, length, newest=2)
        for b in range(16):
            assert_window(replay, naive, sample, b)
        held = [rows[naive.begin(stream) :] for stream, rows in enumerate(naive.rows)]
        assert len(replay) == sum(map(len, held))
        assert replay.full == all(len(rows) == ring for rows in held)
        beheaded = sum(not rows[0]["is_first"] for rows in held)
        assert replay.num_episodes == beheaded + sum(row["is_first"] for rows in held for row in rows)


def test_starts_are_uniform_over_all_streams_and_counters():
    replay, length = Replay(SPACES, 60, 3, seed=1), 5
    fill(replay, None, 13, seed=0)
    for stream, more in ((1, 4), (2, 20)):  # unlike extents: 13, 17, and one of 20 that has wrapped
        replay.extend(stream, {name: torch.zeros(more, *replay._rows[name].shape[1:]) for name in memory.FIELDS})
    starts = 9 + 13 + 16
    assert replay.num_starts(length) == starts
    drawn = torch.cat([replay.sample(500, length).index[:, 0] for _ in range(80)])
    _, counts = drawn.unique(return_counts=True)
    assert len(counts) == starts
    expected = len(drawn) / starts
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 72.6, chi_square  # the 99.95 % quantile of chi-square with 37 degrees of freedom


def test_episodes_shorter_than_a_window_are_drawn_and_marked():
    replay = Replay(SPACES, 200, 2)
    fill(replay, None, 100, seed=3)  # episodes of 1 to 8 rows
    batch = replay.sample(64, 30).sequence
    assert (batch.is_first.sum(1) > 3).all()
    assert (batch.is_last[:, :-1] == batch.is_first[:, 1:]).all()


def test_without_latents_every_window_starts_from_the_initial_latent():
    replay = Replay(SPACES, 100, 1)
    fill(replay, None, 80, seed=0)
    batch = replay.sample(64, 4).sequence
    assert batch.is_first[:, 0].all() and batch.context is None
    assert not batch.is_first[:, 1:].all()


def test_newest_windows_end_at_the_newest_step_of_different_streams():
    replay = Replay(SPACES, 400, 4)
    fill(replay, None, 150, seed=0)
    index = replay.sample(16, 10, newest=3).index
    newest = index[:, -1] // 4 == 149
    assert newest[:3].all() and len((index[:3, -1] % 4).unique()) == 3
    everything = replay.sample(3, 10, newest=50).index
    assert (everything[:, -1] // 4 == 149).all()


def test_nothing_to_draw_says_so():
    replay = Replay(SPACES, 100, 2)
    fill(replay, None, 4, seed=0)
    assert replay.num_starts(5) == 0 and replay.num_starts(4) == 2
    with pytest.raises(ValueError, match="no stream holds 5 steps yet, the longest 4"):
        replay.sample(2, 5)


def test_a_cut_episode_gets_its_is_last_late():
    replay = Replay(SPACES, 20, 2)
    step = Step(np.zeros((2, 2, 2, 1), np.uint8), np.zeros(2), np.array([True, True]), *(np.zeros(2, bool),) * 2, None)
    going = step._replace(is_first=np.array([False, False]))
    for item in (step, going, step._replace(is_first=np.array([True, False]))):
        replay.add(item, np.zeros((2, 2), np.float32))
    assert replay._rows["is_last"].view(2, 10)[:, :3].tolist() == [[False, True, False], [False, False, False]]


def test_write_back_replaces_latents_and_skips_overwritten_rows():
    replay, naive = Replay(SPACES, 20, 2, PACKED), Naive(2, 10)
    fill(replay, naive, 10, seed=0, every_packed=1.0)
    sample = replay.sample(6, 5)
    fill(replay, naive, 4, seed=1, every_packed=1.0)  # counters 0 to 3 are gone, their rows hold 10 to 13
    before = replay.export_latents().view(2, 10, 1 + PACKED).clone()
    new = torch.randint(0, 256, (6, 5, PACKED), dtype=torch.uint8)
    replay.write_back(sample.index, new)
    expected = before.clone()
    for index, latent in zip(sample.index.flatten().tolist(), new.flatten(0, 1), strict=True):
        stream, counter = index % 2, index // 2
        if counter >= 4:
            expected[stream, counter - 4, 1:] = latent  # later occurrences win
    assert (sample.index // 2 < 4).any() and not torch.equal(before, expected)
    assert torch.equal(replay.export_latents().view(2, 10, 1 + PACKED), expected)


def test_write_back_gives_context_to_rows_that_had_none():
    replay = Replay(SPACES, 50, 1, PACKED)
    fill(replay, None, 50, seed=0, every_packed=0.0)
    assert replay.sample(32, 8).sequence.is_first[:, 0].all()
    index = torch.arange(50)[None]
    replay.write_back(index, torch.full((1, 50, PACKED), 7, dtype=torch.uint8))
    batch = replay.sample(64, 8).sequence
    assert not batch.is_first[:, 0].all() and (batch.context.sum(1) > 0).any()


def test_state_continues_the_sampler_exactly():
    replay, other = Replay(SPACES, 60, 2, seed=3), Replay(SPACES, 60, 2, seed=9)
    fill(replay, None, 40, seed=0)
    replay.sample(4, 4)
    other.load_state_dict(replay.state_dict())
    for _ in range(5):
        assert torch.equal(replay.sample(8, 4, newest=1).index, other.sample(8, 4, newest=1).index)
    with pytest.raises(ValueError, match="2 streams, this run has 3"):
        Replay(SPACES, 60, 3).load_state_dict(replay.state_dict())


def test_densities_of_actions_are_kept_and_nan_where_not_known():
    replay, random = Replay(SPACES, 12, 1), np.random.default_rng(0)
    ages = np.zeros((1, 2), np.int64)
    for i in range(8):
        step = random_step(random, 1, ages, lengths=(20, 21))
        replay.add(step, np.zeros((1, 2)), log_prob=torch.tensor([float(i)]) if i % 3 else None)
    rows = {name: np.zeros((2, *replay._rows[name].shape[1:])) for name in memory.FIELDS}
    replay.extend(0, rows)
    replay.extend(0, rows | {"log_prob": np.array([-7.0, np.nan])})
    found = replay.gather(torch.tensor([0]), torch.tensor([0]), 12).sequence.log_prob
    nan = np.nan
    np.testing.assert_array_equal(found[0], [nan, 1, 2, nan, 4, 5, nan, 7, nan, nan, -7, nan])


def test_memory_is_stated_and_refused_before_the_run(monkeypatch):
    spaces = Spaces((64, 64, 3), 6, False)
    assert Replay.bytes_needed(spaces, 1000) == 1000 * (12288 + 24 + 4 + 3 + 4)
    replay = Replay(spaces, 1000, 4, packed_bytes=100)
    columns = [*replay._rows.values(), replay._packed, replay._has_packed]
    assert sum(column.nbytes for column in columns) == Replay.bytes_needed(spaces, 1000, 100)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**6)
    with pytest.raises(ValueError, match="lower its capacity to at most 81 steps"):
        Replay(spaces, 1000, 4)


def test_available_memory_is_a_positive_share_of_the_machine():
    assert 10**7 < memory.available_bytes(torch.device("cpu")) < 10**15
