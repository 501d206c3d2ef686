"""Sokoban and MiniPacman: levels, rules, rewards, ends, pictures, exact state, and who sees which levels."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from playing import play, same

from agents.training.evaluate import evaluation_seeds
from worldmodels.envs import EnvConfig, list_tasks, make_env, resolve_task, sokoban
from worldmodels.envs import minipacman as pacman
from worldmodels.envs.base import HELD_OUT_SEED
from worldmodels.envs.toy import BACKGROUND, BLUE, ORANGE

ROOT = Path(__file__).parents[1]
VALUES = yaml.safe_load((ROOT / "configs/tasks/toy.yaml").read_text())["env"]
GRIDS = [task for task in list_tasks() if "sokoban" in task or "minipacman" in task]
UP, DOWN, LEFT, RIGHT = range(4)


def env(task, seed=0, **changes):
    return make_env(task, EnvConfig(**{**VALUES, **changes}), seed)


def one_hot(action, count=4):
    return np.eye(count, dtype=np.float32)[action]


def actions(game, count, seed=0):
    size = game.spaces.action_dim
    return [one_hot(i, size) for i in np.random.default_rng(seed).integers(size, size=count)]


def set_board(game, *rows):
    game.reset()
    state = game.get_state()
    state["state"]["board"] = "\n".join(rows)
    return game.set_state(state)


# ---- both


def test_every_size_and_mode_is_a_task_and_nothing_else_is():
    assert len(GRIDS) == 6 * 4 - 2 + 5
    assert resolve_task("sokoban-6-2") == resolve_task("toy_sokoban_6_2") == "toy:sokoban-6-2"
    for wrong in ("toy:sokoban", "toy:sokoban-5-3", "toy:sokoban-4-1", "toy:sokoban-7-5", "toy:sokoban-07-1"):
        with pytest.raises(ValueError, match=r"Did you mean 'toy:sokoban-\d+-\d'") as error:
            resolve_task(wrong)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", ["toy:sokoban-5-1", "toy:sokoban-7-2", *GRIDS[-5:]])
def test_a_game_is_determined_by_its_seed_and_its_state_is_exact(task):
    first, again, other = env(task, 3), env(task, 3), env(task, 4)
    moves = actions(first, 150)
    ran = [play(game, moves) for game in (first, again, other)]
    assert all(map(same, *ran[:2])) and not all(map(same, ran[0], ran[2]))
    here = first.reset()
    for move in moves[:7]:
        here = first.reset() if here.is_last else first.step(move)
    there = other.set_state(json.loads(json.dumps(first.get_state())))
    assert same(here, there)
    for move in moves[::-1]:  # past the end of an episode: the generator's state counts
        here, there = (game.reset() if here.is_last else game.step(move) for game in (first, other))
        assert same(here, there)


@pytest.mark.parametrize("task", GRIDS)
def test_every_task_begins_and_shows_an_image_of_the_size_asked_for(task):
    for size in (32, 64):
        game = env(task, size=size)
        step = game.reset()
        assert step.obs.shape == game.spaces.image == (size, size, 3) and step.is_first
        assert game.step(one_hot(0, game.spaces.action_dim)).env_steps == 1
    assert game.fingerprint["toy"] == f"{task.removeprefix('toy:')} 1"


# ---- Sokoban


@pytest.mark.parametrize(("side", "boxes", "count"), [(5, 1, 60), (5, 2, 30), (6, 2, 60), (7, 2, 40), (8, 1, 10)])
def test_every_level_can_be_solved(side, boxes, count):
    rng = np.random.default_rng(side + boxes)
    for _ in range(count):
        board = sokoban.make_level(side, boxes, rng)
        plan = sokoban.solve(board)
        assert plan, board
        for action in plan:
            assert "$" in board
            board = sokoban.moved(board, action)
        assert "$" not in board and board.count("*") == boxes


def test_a_level_has_its_wall_its_boxes_and_none_on_a_target():
    for side, boxes in ((5, 1), (10, 4)):
        for seed in range(20):
            board = sokoban.make_level(side, boxes, np.random.default_rng(seed))
            rows = board.split("\n")
            assert len(rows) == side and {len(row) for row in rows} == {side}
            assert set(rows[0] + rows[-1] + "".join(row[0] + row[-1] for row in rows)) == {"#"}
            assert board.count("$") == boxes and board.count(".") + board.count("+") == boxes
            assert board.count("@") + board.count("+") == 1 and "*" not in board


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        ("#@ $.#", RIGHT, "# @$.#"),
        ("# @$.#", RIGHT, "#  @*#"),
        ("#  @*#", RIGHT, "#  @*#"),  # a wall behind the box
        ("#@$$.#", RIGHT, "#@$$.#"),  # a box behind the box
        ("#@* .#", RIGHT, "# +$.#"),
        ("#.+ $#", LEFT, "#+. $#"),
        ("#@$ .#", LEFT, "#@$ .#"),
        ("#@$ .#", UP, "#@$ .#"),
        ("# $@.#", RIGHT, "# $ +#"),  # nothing is pulled
    ],
)
def test_moves_push_one_box_and_never_pull(before, action, after):
    def room(row):
        return "\n".join(["######", row, "######"])

    assert sokoban.moved(room(before), action) == room(after)


def test_rewards_and_the_end_golden_values():
    game = env("toy:sokoban-5-1")
    set_board(game, "#######", "#@$.  #", "#######")
    step = game.step(one_hot(RIGHT))  # on, and solved
    assert step.reward == pytest.approx(-0.1 + 1 + 10) and step.is_last and step.is_terminal
    set_board(game, "#######", "#@*.$ #", "#######")
    step = game.step(one_hot(RIGHT))  # off one target and onto no other
    assert step.reward == pytest.approx(-0.1 - 1 + 1) and not step.is_last
    set_board(game, "#######", "#@* $.#", "#######")
    assert game.step(one_hot(RIGHT)).reward == pytest.approx(-1.1)
    assert game.step(one_hot(UP)).reward == pytest.approx(-0.1)


def test_an_unsolved_episode_ends_by_time_after_120_steps():
    game = env("toy:sokoban-6-1", 1)
    game.reset()
    steps = [game.step(one_hot(UP)) for _ in range(120)]
    assert [step.is_last for step in steps] == [False] * 119 + [True] and not steps[-1].is_terminal
    assert sum(step.reward for step in steps) == pytest.approx(-12.0, abs=0.01)


def test_scripted_play_solves_held_out_levels_and_random_play_seldom():
    def solved(act, seeds):
        count = 0
        for seed in seeds:
            game = env("toy:sokoban-6-1", seed)
            step = game.reset()
            while not step.is_last:
                step = game.step(act(game))
            count += step.is_terminal
        return count / len(seeds)

    rng = np.random.default_rng(0)
    assert solved(lambda game: game.optimal_action(), evaluation_seeds(20)) == 1.0
    assert solved(lambda game: one_hot(rng.integers(4)), evaluation_seeds(20)) < 0.7


def test_levels_of_evaluation_are_never_seen_in_training():
    for seed, held_out in ((0, False), (HELD_OUT_SEED - 1, False), (HELD_OUT_SEED, True), (HELD_OUT_SEED + 7, True)):
        game = env("toy:sokoban-5-1", seed)
        for _ in range(15):
            game.reset()
            assert sokoban.is_held_out(game.state["board"]) == held_out
    assert all(seed >= HELD_OUT_SEED for seed in evaluation_seeds(5))


def test_which_levels_are_seen_survives_saving_and_a_new_seed():
    training, evaluation = env("toy:sokoban-5-1", 1), env("toy:sokoban-5-1", HELD_OUT_SEED)
    evaluation.reset()
    training.set_state(evaluation.get_state())
    for _ in range(5):
        training.reset()
        assert sokoban.is_held_out(training.state["board"])
    training.reset(seed=3)
    assert not sokoban.is_held_out(training.state["board"])


@pytest.mark.parametrize(("task", "size", "cell"), [("toy:sokoban-5-1", 40, 8), ("toy:sokoban-10-4", 80, 8)])
def test_each_cell_of_a_board_is_a_square_of_one_colour(task, size, cell):
    game = env(task, size=size)
    image = game.reset().obs
    rows = game.state["board"].split("\n")
    squares = image.reshape(len(rows), cell, len(rows), cell, 3).transpose(0, 2, 1, 3, 4)
    for row, letters in zip(squares, rows, strict=True):
        for square, letter in zip(row, letters, strict=True):
            assert (square == np.array(sokoban.COLORS[letter])).all()


def test_colours_of_different_things_are_far_apart():
    colors = [np.array(color) for color in sokoban.COLORS.values()]
    apart = [np.abs(a - b).max() for i, a in enumerate(colors) for b in colors[:i]]
    assert min(apart) >= 80


def test_a_board_that_does_not_fit_the_image_is_in_its_middle():
    image = env("toy:minipacman-regular", size=76).reset().obs
    assert (image[:8] == BACKGROUND).all() and (image[-8:] == BACKGROUND).all()
    assert (image[8:12] == pacman.WALL).all() and not (image[8:12] == ORANGE).all(-1).any()
    small = env("toy:sokoban-10-4", size=32).reset().obs
    assert (small == BLUE).all(-1).sum() >= 9 or (small == sokoban.COLORS["+"]).all(-1).sum() >= 9


# ---- MiniPacman


def at(game, **changes):
    game.reset()
    state = game.get_state()
    state["state"] |= changes
    game.set_state(state)
    return game


CORNER, BESIDE, FAR = 20, 21, 4 * 19 + 9  # top left, the cell to its right, a crossing in the middle
STAY, EAST = one_hot(0, 5), one_hot(1, 5)


def test_the_maze_is_whole_symmetric_and_without_dead_ends():
    assert pacman.WALLS.shape == (15, 19) and np.array_equal(pacman.WALLS, pacman.WALLS[:, ::-1])
    assert min(map(len, pacman.EXITS.values())) >= 2
    seen, todo = {CORNER}, [CORNER]
    while todo:
        place = todo.pop()
        new = [pacman.step_from(place, a) for a in range(1, 5) if pacman.step_from(place, a) not in seen]
        seen |= set(new)
        todo += new
    assert seen == set(pacman.FLOOR)


@pytest.mark.parametrize(
    ("mode", "step", "food", "pill", "ghost", "death"),
    [
        ("regular", 0, 1, 2, 5, 0),
        ("avoid", 0.1, -0.1, -5, -10, -20),
        ("hunt", 0, 0, 1, 10, -20),
        ("ambush", 0, -0.1, 0, 10, -20),
        ("rush", 0, -0.1, 10, 0, 0),
    ],
)
def test_rewards_of_the_modes_golden_values(mode, step, food, pill, ghost, death):
    game = env(f"toy:minipacman-{mode}")
    quiet = dict(player=CORNER, food=[FAR], pills=[FAR], ghosts=[[FAR, 1]], power=0, speed=0.0, time=0)
    assert at(game, **quiet).step(EAST).reward == pytest.approx(step)
    assert at(game, **quiet | {"food": [BESIDE, FAR]}).step(EAST).reward == pytest.approx(step + food)
    assert at(game, **quiet | {"pills": [BESIDE, FAR]}).step(EAST).reward == pytest.approx(step + pill)
    assert game.state["power"] == pacman.POWER
    ghosts = [[BESIDE, 1], [FAR, 1]]
    eaten = at(game, **quiet | {"ghosts": ghosts, "power": 5}).step(EAST)
    assert eaten.reward == pytest.approx(step + ghost) and not eaten.is_last and len(game.state["ghosts"]) == 1
    died = at(game, **quiet | {"ghosts": ghosts}).step(EAST)
    assert died.reward == pytest.approx(step + death) and died.is_last and died.is_terminal


@pytest.mark.parametrize(
    ("mode", "left"),
    [("regular", {"food": [BESIDE]}), ("rush", {"pills": [BESIDE]}), ("hunt", {"ghosts": [[BESIDE, 1]], "power": 9}),
     ("ambush", {"ghosts": [[BESIDE, 1]], "power": 9}), ("avoid", {"time": 127})],
)  # fmt: skip
def test_what_clears_a_level_begins_the_next_faster_one(mode, left):
    game = env(f"toy:minipacman-{mode}")
    quiet = dict(player=CORNER, food=[FAR], pills=[FAR], ghosts=[[FAR, 1]], power=0, speed=0.0, time=0)
    at(game, **quiet).step(EAST)
    assert game.state["level"] == 1
    step = at(game, **quiet | left).step(EAST)
    assert not step.is_last and (game.state["level"], game.state["speed"]) == (2, pytest.approx(0.6))
    assert len(game.state["food"]) == len(pacman.FLOOR) and len(game.state["pills"]) == 2


def test_ghosts_chase_and_flee_with_power():
    rng = np.random.default_rng(0)
    crossing, player = 4 * 19 + 4, 4 * 19 + 9  # the player is to the east
    exits = pacman.EXITS[crossing]
    chosen = [pacman.ghost_heading(crossing, 4, player, False, rng) for _ in range(100)]
    assert chosen.count(1) > 85 and set(chosen) <= set(exits) - {2}  # never back
    assert {pacman.ghost_heading(crossing, 4, player, True, rng) for _ in range(100)} == {3}


def test_a_ghost_moves_half_as_often_under_power():
    moves = []
    for power in (0, 10_000):
        game = at(env("toy:minipacman-regular"), player=CORNER, ghosts=[[FAR, 1]], power=power, speed=0.5)
        count = 0
        for _ in range(300):
            ((place, _),) = game.advance(game.state, STAY)[0]["ghosts"]
            count += place != FAR
        moves.append(count / 300)
    assert moves[0] == pytest.approx(0.5, abs=0.08) and moves[1] == pytest.approx(0.25, abs=0.08)


def test_scripted_play_is_far_above_random_play():
    def mean_return(mode, act):
        totals = []
        for seed in range(3):
            game = env(f"toy:minipacman-{mode}", seed, size=19, time_limit=300)
            step, total = game.reset(), 0.0
            while not step.is_last:
                step = game.step(act(game))
                total += step.reward
            totals.append(total)
        return np.mean(totals)

    rng = np.random.default_rng(0)
    for mode, gap in (("regular", 60), ("avoid", 1), ("hunt", 10), ("rush", 20)):
        random = mean_return(mode, lambda game: one_hot(rng.integers(5), 5))
        assert mean_return(mode, lambda game: game.optimal_action()) > random + gap, mode
