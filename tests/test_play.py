"""Playing, without the web: the same keys give the same frames, and what cannot be changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from stage import SIZE, Stage, same
from torch import Generator

from agents.training.config import RunConfig
from agents.training.play import recording, starts
from agents.training.play.controls import controls_for, keys_for
from agents.training.play.session import MAX_FUTURES, Session, View
from agents.training.play.starts import LOOKBACK, FreshStarts
from worldmodels.base import Spaces
from worldmodels.envs import Env
from worldmodels.envs.gl import RenderingError

RIGHT, REST = [1.0, 0.0], [0.0, 0.0]


@pytest.fixture
def stage(tmp_path: Path, debug_run: Callable[..., RunConfig]) -> Callable[..., Stage]:
    def build(task: str = "toy:reach", *run: Any) -> Stage:
        config = debug_run(*(run or ("dreamer", None)), "--env.size", str(SIZE))
        return Stage(tmp_path / task.replace(":", "-"), config, task)

    return build


@pytest.fixture
def session(stage: Callable[..., Stage]) -> Session:
    return stage().session()


def drive(session: Session, steps: int = 6, action: Any = RIGHT) -> View:
    session.choose(driver="person")
    return [session.step(action) for _ in range(steps)][-1]


@pytest.mark.parametrize("show", ["dream", "real", "both"])
@pytest.mark.parametrize("driver", ["person", "agent"])
def test_the_same_keys_give_the_same_frames(stage: Callable[..., Stage], show: str, driver: str) -> None:
    desk = stage()
    films = []
    for session in (desk.session(), desk.session()):
        session.choose(show=show, driver=driver, futures=3)
        session.reset(1, 0)
        films.append([session.step(RIGHT) for _ in range(5)])
        session.reset(1, 0)
        films.append([session.step(RIGHT) for _ in range(5)])
    for film in films[1:]:
        assert all(same(a, b) for a, b in zip(films[0], film, strict=True))
    assert not np.array_equal(films[0][0].images[-1], films[0][-1].images[-1]), "something moves"


def test_another_action_or_another_noise_is_another_dream(session: Session) -> None:
    right = drive(session)
    session.reset(*session.at)
    assert not same(right, drive(session, action=[-1.0, 0.0]))
    session.choose(seed=1)
    other = drive(session)
    assert not np.array_equal(right.images[1], other.images[1]) and np.array_equal(right.images[0], other.images[0])


def test_a_dream_is_what_the_model_imagines_from_what_it_has_seen(stage: Callable[..., Stage]) -> None:
    """Rewards and pictures against filter and rollout, at a recorded frame in the middle of an episode."""
    desk = stage()
    session, model = desk.session(), desk.trained.model
    start = session.reset(0, 20)
    seen = session.starts.sequence(0, 20)
    assert seen.obs.shape == (1, 21, SIZE, SIZE, 3) and np.array_equal(seen.obs[0, -1], start.images[0])
    with torch.no_grad():
        posterior = model.filter(seen, Generator().manual_seed(0))
        latent = type(posterior)(*(part[:, -1] for part in posterior))
        prior = model.rollout(latent, torch.tensor([[RIGHT] * 4]), Generator().manual_seed(0))
        rewards = model.reward(prior)[0]
    session.choose(driver="person")
    views = [session.step(RIGHT) for _ in range(4)]
    assert [view.facts["dream"]["reward"][0] for view in views] == pytest.approx(rewards.tolist(), rel=1e-4)
    assert np.array_equal(views[-1].images[1], model.decode(prior)[0, -1])
    assert views[-1].facts["step"] == 4


def test_futures_branch_off_from_the_first_and_then_differ(session: Session) -> None:
    before = drive(session, 3)
    many = session.choose(futures=MAX_FUTURES)
    assert len(many.images) == 1 + MAX_FUTURES
    assert all(np.array_equal(image, before.images[1]) for image in many.images[1:])
    assert many.facts["dream"]["return"] == before.facts["dream"]["return"] * MAX_FUTURES
    after = session.step(RIGHT)
    assert len({image.tobytes() for image in after.images[1:]}) > 1
    assert len(session.choose(futures=1).images) == 2


def test_a_future_that_is_over_earns_nothing_more(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    likely = torch.tensor([0.9, 0.3, 0.51])
    monkeypatch.setattr(session.model, "continues", lambda latent: likely.clone())
    monkeypatch.setattr(session.model, "reward", lambda latent: torch.ones(3))
    session.choose(driver="person", futures=3)
    returns = [session.step(REST).facts["dream"] for _ in range(3)]
    assert [found["return"] for found in returns] == [[1, 1, 1], [2, 1, 2], [3, 1, 3]]
    assert returns[-1]["over"] == [False, True, False]


def test_a_reset_goes_to_the_frame_that_was_chosen(session: Session) -> None:
    episode = session.starts.sequence(1, 49)
    for frame in (0, 7, 49):
        view = session.reset(1, frame)
        assert np.array_equal(view.images[0], episode.obs[0, frame]) and view.facts["step"] == 0
        assert (view.facts["episode"], view.facts["frame"]) == (1, frame)
    assert session.describe()["lengths"] == [51, 51]


def test_the_model_sees_at_most_so_many_frames_before_the_chosen_one(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, monkey = session.starts.sequence(0, 40), 10
    monkeypatch.setattr(starts, "LOOKBACK", monkey)
    part = session.starts.sequence(0, 40)
    assert LOOKBACK == 100 and part.obs.shape[1] == monkey
    assert torch.equal(part.obs, whole.obs[:, -monkey:]) and torch.equal(part.action, whole.action[:, -monkey:])
    assert part.is_first[0].tolist() == [True] + [False] * (monkey - 1)


def test_both_sides_have_the_same_actions_and_a_dream_rejoins_the_real_one(stage: Callable[..., Stage]) -> None:
    desk = stage()
    session = desk.session()
    session.choose(show="both", driver="person")
    begun = session.reset(3, 0)
    env = desk.make()
    env.reset(seed=10_000_000 + 3)
    steps = [env.step(np.array(RIGHT, np.float32)) for _ in range(4)]
    view = drive(session, 4)
    assert np.array_equal(view.images[0], steps[-1].obs) and not np.array_equal(view.images[0], begun.images[0])
    assert view.facts["real"]["return"] == pytest.approx(sum(float(step.reward) for step in steps), abs=1e-4)
    joined = session.rejoin()
    assert joined.facts["dream"]["return"] == [view.facts["real"]["return"]]
    assert joined.facts["dream"]["reward"] == [joined.facts["real"]["predicted"]]
    assert not np.array_equal(joined.images[1], view.images[1])


def test_there_is_one_environment_and_only_while_it_is_shown(stage: Callable[..., Stage]) -> None:
    desk = stage()
    session = desk.session()
    drive(session, 2)
    assert desk.made == 0
    for show in ("real", "both", "real"):
        session.choose(show=show)
        session.reset(1, 0)
        assert (desk.made, desk.open) == (1, 1)
    session.choose(show="dream")
    assert desk.open == 0
    session.choose(show="both")
    session.close()
    assert (desk.made, desk.open) == (2, 0)


def test_nothing_moves_after_the_end_of_a_real_episode(stage: Callable[..., Stage]) -> None:
    session = stage().session()
    session.choose(show="both", driver="agent")
    views = [session.step() for _ in range(53)]
    assert [bool(view.facts["real"]["ended"]) for view in views] == [False] * 49 + [True] * 4
    assert views[-1].facts["real"]["ended"] == "time limit" and same(views[49], views[-1])
    assert session.reset(0, 0).facts["real"]["ended"] == ""


def test_an_environment_that_cannot_be_had_changes_nothing(stage: Callable[..., Stage]) -> None:
    session = stage().session()

    def no_gl() -> Env:
        raise RenderingError("no GL library renders here")

    before, session.make = session.view(), no_gl
    with pytest.raises(ValueError, match="no GL library"):
        session.choose(show="both", futures=4)
    assert same(before, session.view())
    session.step(None)


def test_a_temperature_where_the_model_has_one(stage: Callable[..., Stage]) -> None:
    session = stage("toy:reach", "none", "vae-rnn").session()
    assert session.describe()["no_temperature"] == ""
    dreams = []
    for temperature in (0.05, 3.0, 0.05):
        session.choose(temperature=temperature, driver="person")
        session.reset(1, 5)
        dreams.append([session.step(RIGHT).facts["dream"]["reward"][0] for _ in range(5)])
    assert dreams[0] == dreams[2] != dreams[1]


def test_a_temperature_is_refused_with_a_reason_where_there_is_none(session: Session) -> None:
    assert session.view().facts["temperature"] is None and "vae-rnn" in session.describe()["no_temperature"]
    with pytest.raises(ValueError, match="no temperature"):
        session.choose(temperature=0.5)


def test_a_model_that_cannot_draw_has_its_real_side(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.training.play.session.can_film", lambda model: False)
    session = stage().session()
    assert session.view().facts["show"] == "real" and session.describe()["no_dream"]
    for show in ("dream", "both"):
        with pytest.raises(ValueError, match="no dream"):
            session.choose(show=show)
    assert session.step().facts["dream"] is None


def test_without_a_replay_dreams_begin_where_the_environment_does(stage: Callable[..., Stage]) -> None:
    desk = stage()
    session = Session(desk.trained, FreshStarts(desk.make), desk.make, desk.folder / "videos")
    assert desk.open == 0 and desk.made == 1
    view = session.reset(4, 0)
    assert np.array_equal(view.images[0], desk.make().reset(seed=10_000_004).obs)
    assert len(view.images) == 2


def test_what_cannot_be_is_one_line_and_changes_nothing(session: Session) -> None:
    cases = [
        *(("choose", {"futures": value}) for value in (0, 10, 2.0, True, "3", None, 10**400)),
        *(("choose", {"show": value}) for value in ("", "../..", None, ["dream"])),
        *(("choose", {"seed": value}) for value in (-1, 10**6, 1.5)),
        ("choose", {"driver": "nobody"}),
        *(("reset", {"episode": e, "frame": f}) for e, f in ((2, 0), (-1, 0), (0, 51), (0, -1), ("0", 0), (0, None))),
        *(("step", {"action": a}) for a in (None, 1, [], [0.0], [0.0] * 3, [2.0, 0.0], ["1", 0], [float("nan"), 0])),
        ("record", {"on": 1, "fps": 15}),
        *(("record", {"on": True, "fps": fps}) for fps in (0, 61, "15", float("inf"))),
        ("rejoin", {}),
    ]
    before = drive(session, 2)
    for command, arguments in cases:
        with pytest.raises(ValueError) as caught:
            getattr(session, command)(**arguments)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200, (command, arguments)
        assert same(before, session.view()), (command, arguments)


def test_damaged_episodes_are_named(stage: Callable[..., Stage]) -> None:
    desk = stage()
    session = desk.session()
    before, oldest = session.view(), sorted((desk.folder / "replay").iterdir())[0]
    oldest.write_bytes(oldest.read_bytes()[:1000])
    with pytest.raises(ValueError, match=oldest.name):
        session.reset(0, 3)
    assert same(before, session.view())


# ---- recording


def test_a_recording_is_a_film_of_the_tiles_in_the_runs_folder(session: Session) -> None:
    session.choose(show="both", driver="agent", futures=2)
    session.reset(0, 0)
    session.record(True, 15)
    views = [session.step() for _ in range(4)]
    assert views[-1].facts["recording"]["frames"] == 5
    for change in ({"futures": 3}, {"show": "real"}):
        with pytest.raises(ValueError, match="stop recording"):
            session.choose(**change)
    tiles = session.recording
    assert tiles is not None
    scale, film = tiles.scale, tiles.film()
    assert film[:, 2 : 2 + SIZE * scale : scale, 2 : 2 + SIZE * scale : scale].tobytes() == b"".join(
        image.tobytes() for image in [frames[0] for frames in tiles.frames]
    )
    assert tuple(film[0, 0, 0]) == (52, 199, 108) and tuple(film[0, 0, -1]) == (242, 71, 74), "green: real, red: dreamt"
    path = Path(session.record(False, 15).facts["film"])
    assert path == session.videos / "play-000.mp4" and len(iio.imread(path)) == 5
    session.record(True, 15)
    assert Path(session.record(False, 15).facts["film"]).name == "play-001.mp4"


def test_a_recording_has_an_end(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_BYTES", 3 * 260 * 260 * 3)
    session.record(True, 15)
    views = [drive(session, 1) for _ in range(5)]
    assert views[-1].facts["recording"] == {"frames": 3, "limit": 3}
    assert len(iio.imread(session.record(False, 5).facts["film"])) == 3


# ---- keys


def test_keys_of_continuous_actions_are_pairs() -> None:
    keys = keys_for("dmc:walker-walk", Spaces((SIZE, SIZE, 3), 6, False))
    assert [(key.index, key.value) for key in keys] == [(i, value) for i in range(6) for value in (-1, 1)]
    assert keys[0].codes == ("ArrowLeft", "KeyA") and keys[3].codes == ("ArrowUp", "KeyW")
    codes = [code for key in keys_for("dmc:dog-run", Spaces((SIZE, SIZE, 3), 38, False)) for code in key.codes]
    assert len(codes) == len(set(codes)) and not {"KeyR", "KeyV", "Space", "Period"} & set(codes)


@pytest.mark.parametrize(
    ("task", "actions", "names", "idle", "first"),
    [
        ("toy:catch", 3, ("left", "stay", "right"), 1, ("ArrowLeft", "KeyA", "Digit1")),
        ("toy:sokoban-6-2", 4, ("up", "down", "left", "right"), None, ("ArrowUp", "KeyW", "Digit1")),
        ("toy:minipacman-hunt", 5, ("stay", "right", "up", "left", "down"), 0, ("Digit1",)),
        ("gym:CartPole-v1", 2, ("left", "right"), None, ("ArrowLeft", "KeyA", "Digit1")),
        ("gym:Other-v0", 12, tuple(map(str, range(1, 13))), None, ("Digit1",)),
    ],
)
def test_keys_of_discrete_actions(task: str, actions: int, names: Any, idle: int | None, first: Any) -> None:
    controls = controls_for(task, Spaces((SIZE, SIZE, 3), actions, True))
    assert (controls["names"], controls["idle"], controls["keys"][0]["codes"]) == (names, idle, first)
    assert [key["index"] for key in controls["keys"]] == list(range(min(actions, 10)))


def test_a_person_plays_a_discrete_task(stage: Callable[..., Stage]) -> None:
    session = stage("toy:catch", "dreamer", None).session()
    session.choose(show="both", driver="person")
    assert session.step(2).facts["action"] == [0, 0, 1]
    for action in (3, -1, 1.0, None, [0, 0, 1]):
        with pytest.raises(ValueError, match="action is a whole number from 0 to 2"):
            session.step(action)
