"""A run's episodes with the rewards of another task: their actions are taken once more in the simulator.

Exploration without a task becomes data for any task of the same domain (zero-shot in Plan2Explore, arXiv 2005.05960).
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from worldmodels.envs import Env, EnvConfig, make_env
from worldmodels.replay.convert import Converted
from worldmodels.replay.episodes import (
    Episode,
    EpisodeError,
    EpisodeInfo,
    guarded,
    read_episode,
    require_empty,
    scan,
    write_episode,
)


def relabel(
    source: Path,
    target: Path,
    task: str,
    env: EnvConfig,
    seeds: Sequence[int],
    say: Callable[[str], None] = lambda problem: None,
) -> Converted:
    """Write a run's episodes (a folder of ``.wme``) as those of ``task`` into a new or empty folder.

    ``env`` is how the run saw its task and ``seeds`` what its environments began with, one a stream. The simulator must
    give each episode's first picture and each of its rewards again: one that it does not is left out with all that
    follow in its stream, as are those after a gap. ``say`` gets each problem as it is found.
    Raises ``ValueError`` where no other task's reward is known, and where no episode can be done again.
    """
    require_empty(target)
    found, problems = scan(source)
    for problem in problems:
        say(problem)
    written: list[EpisodeInfo] = []
    for stream in sorted({info.stream for info in found}):
        episodes = sorted((info for info in found if info.stream == stream), key=lambda info: info.position)
        if stream >= len(seeds):
            raise ValueError(f"{source}: episodes of stream {stream}, and the run had {len(seeds)} environments")
        with closing(make_env(episodes[0].task, replace(env, action_repeat=1), seeds[stream])) as world:
            judge, position = world.judge(task), 0
            for done, info in enumerate(episodes):
                try:
                    episode = judged(world, judge, info, position, env.action_repeat)
                except EpisodeError as error:
                    problems.append(str(error))
                    say(f"{error} (with the {len(episodes) - done - 1} after it)")
                    break
                target.mkdir(parents=True, exist_ok=True)
                written.append(write_episode(target, episode._replace(info=replace(episode.info, task=task))))
                position += info.length
    if not written:
        raise ValueError(f"{source}: no episode that the simulator could repeat: {[*problems, 'there is none'][0]}")
    return Converted(written, problems)


def judged(world: Env, judge: Callable[[], float], info: EpisodeInfo, position: int, action_repeat: int) -> Episode:
    """The episode that is to begin at a position of its stream, with the rewards that ``judge`` gives."""
    with guarded(info.path):
        if info.position != position:
            raise EpisodeError(f"rows {position} to {info.position - 1} of its stream are not there")
        episode = read_episode(info.path)
        reward = rewards(world, judge, episode, action_repeat)
        total = float(reward.sum(dtype=np.float64))
        return episode._replace(info=replace(info, episode_return=total), reward=reward)


def rewards(world: Env, judge: Callable[[], float], episode: Episode, action_repeat: int) -> np.ndarray:
    """What ``judge`` gives at each row, float32 [N]. ``EpisodeError`` where the world, a step at a time, differs."""
    step, given = world.reset(), np.zeros_like(episode.reward)
    if not np.array_equal(step.obs, episode.obs[0]):
        raise EpisodeError("does not begin as the simulator does here: another version, renderer, or a resumed run")
    for row, action in enumerate(episode.action[:-1], 1):
        own, taken = 0.0, 0
        while taken < action_repeat and not step.is_last:
            step = world.step(action)
            own, taken = own + float(step.reward), taken + 1
            given[row] += judge()
        if not np.isclose(own, episode.reward[row], rtol=1e-4, atol=1e-5):
            recorded = episode.reward[row]
            raise EpisodeError(f"row {row}: the simulator's reward is {own:.6g}, the recorded one {recorded:.6g}")
    return given
