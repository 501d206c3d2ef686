"""B environments that step together, in this process or each in its own.

A pool resets by itself, in Dreamer's way: after ``is_last`` the next ``step`` ignores that environment's action and
returns the first step of a new episode. Processes are spawned, never forked: a forked child of a process that has
rendered hangs. Scripts that use them need the usual ``if __name__ == "__main__":``.
"""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple

import numpy as np

from worldmodels.base import Spaces
from worldmodels.envs import gl
from worldmodels.envs.base import Env, EnvConfig, Step
from worldmodels.envs.tasks import make_env, suite_of

EnvFactory = Callable[[EnvConfig, int], Env]
START_TIMEOUT_S = 180.0  # imports and the first GL context, on a busy machine
MAX_FAILURES = 3  # of one environment, without a step in between
GRACE_S = 10.0  # that a worker lives after SIGTERM, for the parent to save what it holds


class EnvPool:
    """B environments of one task; the policy acts in all of them at once.

    ``task`` is a name or a factory (a top-level function where ``workers`` is ``process``); environment ``i`` is
    seeded with ``seeds[i]``. A worker process that dies or does not answer within ``timeout_s`` is replaced; its
    episode is closed by a step that repeats the last image with ``is_last``, not terminal, reward 0, no env steps.
    In ``serial`` nothing is caught. Raises ``ValueError`` for what ``make_env`` refuses, ``RuntimeError`` where an
    environment fails again and again.
    """

    def __init__(
        self, task: str | EnvFactory, config: EnvConfig, seeds: Sequence[int], workers: str, timeout_s: float
    ) -> None:
        if workers not in ("serial", "process"):
            raise ValueError(f"workers must be 'serial' or 'process', not {workers!r}")
        if not seeds:
            raise ValueError("a pool needs at least one seed")
        if isinstance(task, str) and suite_of(task) == "dmc":
            gl.choose_backend()  # once, and the workers inherit it
        self.num_envs = len(seeds)
        self.restarts = 0
        """Worker processes that had to be replaced since the pool was made."""
        seat: Any = _ProcessSeat if workers == "process" else _LocalSeat
        self._seats: list[_Seat] = []
        try:
            self._seats += [seat(task, config, seed, timeout_s) for seed in seeds]
            ready = [seat.ready() for seat in self._seats]
        except BaseException:
            self.close()
            raise
        for message in dict.fromkeys(message for one in ready for message in one.warnings):
            warnings.warn(message, stacklevel=2)
        self.spaces, self.action_repeat, self.fingerprint = ready[0][:3]
        self._last: list[Step | None] = [None] * self.num_envs
        self._failures = [0] * self.num_envs

    def reset(self) -> Step:
        """Begin an episode in every environment."""
        return self._all("reset", [None] * self.num_envs, [True] * self.num_envs)

    def step(self, actions: np.ndarray) -> Step:
        """Act in every environment, float32 [B, A]; where the last step was ``is_last``, reset instead."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs, self.spaces.action_dim):
            raise ValueError(f"actions have shape {(self.num_envs, self.spaces.action_dim)}, not {actions.shape}")
        if any(last is None for last in self._last):
            raise ValueError("no episodes are open: reset first")
        is_new = [last is None or bool(last.is_last) for last in self._last]
        return self._all("step", list(actions), is_new)

    def get_state(self) -> list[dict[str, Any] | None]:
        """The exact state of each environment, None where it has none to give (see ``Env.get_state``)."""
        states: list[dict[str, Any] | None] = []
        for seat in self._seats:
            try:
                seat.ask("get_state")
                states.append(seat.answer())
            except (NotImplementedError, ValueError):  # ValueError: replaced, and not yet reset
                states.append(None)
            except WorkerLostError:
                states.append(None)  # the next step finds it lost too, and replaces it
        return states

    def set_state(self, states: list[dict[str, Any] | None]) -> Step:
        """Go to states from ``get_state``; a new episode begins where it is None."""
        if len(states) != self.num_envs:
            raise ValueError(f"{len(states)} states for a pool of {self.num_envs} environments")
        return self._all("set_state", states, [state is None for state in states])

    def close(self) -> None:
        """End the workers. The pool cannot be used afterwards."""
        for seat in self._seats:
            seat.close()

    def __enter__(self) -> "EnvPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _all(self, verb: str, arguments: Sequence[Any], is_new: Sequence[bool]) -> Step:
        for seat, argument, new in zip(self._seats, arguments, is_new, strict=True):
            seat.ask("reset" if new else verb, None if new else argument)
        steps = [self._arrival(index, new) for index, new in enumerate(is_new)]
        self._last = list(steps)
        obs, reward, is_first, is_last, is_terminal, env_steps = zip(*steps, strict=True)
        return Step(
            np.stack(obs),
            np.array(reward, np.float32),
            np.array(is_first, bool),
            np.array(is_last, bool),
            np.array(is_terminal, bool),
            np.array(env_steps, np.int64),
        )

    def _arrival(self, index: int, is_new: bool) -> Step:
        """The step an environment was asked for; where its worker is lost, that which closes its episode."""
        while True:
            try:
                step = self._seats[index].answer()
            except WorkerLostError as lost:
                self._replace(index, lost)
                last = self._last[index]
                if last is not None and not is_new:
                    return Step(last.obs, np.float32(0), False, True, False, 0)
                self._seats[index].ask("reset")
                is_new = True
            else:
                if not step.is_first:
                    self._failures[index] = 0
                return step

    def _replace(self, index: int, lost: "WorkerLostError") -> None:
        self.restarts += 1
        self._failures[index] += 1
        if self._failures[index] > MAX_FAILURES:
            raise RuntimeError(f"environment {index} failed {self._failures[index]} times in a row: {lost}") from lost
        warnings.warn(f"environment {index} is started again: {lost}", stacklevel=4)
        self._seats[index].restart()


class WorkerLostError(RuntimeError):
    """A worker process died, or did not answer in time."""


class _Ready(NamedTuple):
    spaces: Spaces
    action_repeat: int
    fingerprint: dict[str, str]
    warnings: list[str]


class _Seat(ABC):
    """One environment, wherever it runs: ``ask``, then ``answer``."""

    @abstractmethod
    def ready(self) -> _Ready: ...

    @abstractmethod
    def ask(self, verb: str, argument: Any = None) -> None: ...

    @abstractmethod
    def answer(self) -> Any: ...

    @abstractmethod
    def restart(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class _LocalSeat(_Seat):
    def __init__(self, task: str | EnvFactory, config: EnvConfig, seed: int, timeout_s: float) -> None:
        self._env = _build(task, config, seed)
        self._question: tuple[str, Any] = ("", None)

    def ready(self) -> _Ready:
        return _Ready(self._env.spaces, self._env.action_repeat, self._env.fingerprint, [])

    def ask(self, verb: str, argument: Any = None) -> None:
        self._question = (verb, argument)

    def answer(self) -> Any:
        return _perform(self._env, *self._question)

    def restart(self) -> None:
        raise AssertionError("what runs in this process cannot be lost")

    def close(self) -> None:
        self._env.close()


class _ProcessSeat(_Seat):
    """Messages go through a pipe, images through memory that parent and child share.

    The memory is anonymous (an unlinked file, inherited), not a named ``SharedMemory`` block: the system frees it
    with the last process that has it, however that ends.
    """

    def __init__(self, task: str | EnvFactory, config: EnvConfig, seed: int, timeout_s: float) -> None:
        self._task, self._config, self._seed, self._timeout_s = task, config, seed, timeout_s
        self._starts = 0
        self._memory: Any = RawArray("B", config.size * config.size * 3)
        self._deadline = 0.0
        self._start()

    def ready(self) -> _Ready:
        """Wait until the worker has built its environment."""
        if self._ready is None:
            ready: _Ready = self._receive(0, self._started + START_TIMEOUT_S)
            self._image = _image_in(self._memory, ready.spaces)
            self._ready = ready
        return self._ready

    def ask(self, verb: str, argument: Any = None) -> None:
        self._ticket += 1
        self._deadline = time.monotonic() + self._timeout_s
        try:
            self._pipe.send((self._ticket, verb, argument))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the worker is lost: answer says so

    def answer(self) -> Any:
        if self._ready is None:
            self.ready()
            self._deadline = time.monotonic() + self._timeout_s
        reply = self._receive(self._ticket, self._deadline)
        return reply._replace(obs=self._image.copy()) if isinstance(reply, Step) else reply

    def restart(self) -> None:
        self._end()
        self._start()

    def close(self) -> None:
        self.ask("close")
        self._process.join(5)
        self._end()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # a replaced worker must not play the same episodes again
        seed = np.random.SeedSequence([self._seed, self._starts]).generate_state(1)[0] if self._starts else self._seed
        arguments = (theirs, self._memory, self._task, self._config, int(seed))
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._starts += 1
        self._started = time.monotonic()
        self._ticket = 0  # of the last question; 0 is the worker's being ready
        self._ready: _Ready | None = None

    def _end(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._pipe.close()

    def _receive(self, ticket: int, deadline: float) -> Any:
        number, reply = -1, None
        while number != ticket:  # answers to questions whose asker gave up are passed over
            left_s = max(0.0, deadline - time.monotonic())
            try:
                if not self._pipe.poll(left_s):
                    raise WorkerLostError("its worker did not answer in time")
                number, reply = self._pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                self._process.join(5)
                raise WorkerLostError(f"its worker died with exit code {self._process.exitcode}") from error
        if isinstance(reply, Exception):
            raise reply
        return reply


def _build(task: str | EnvFactory, config: EnvConfig, seed: int) -> Env:
    return make_env(task, config, seed) if isinstance(task, str) else task(config, seed)


def _image_in(memory: Any, spaces: Spaces) -> np.ndarray:
    return np.frombuffer(memory, np.uint8, int(np.prod(spaces.image))).reshape(spaces.image)


def _perform(env: Env, verb: str, argument: Any) -> Any:
    if verb == "reset":
        return env.reset()
    return env.get_state() if verb == "get_state" else getattr(env, verb)(argument)


def _end_soon(*_: Any) -> None:
    """A scheduler may send SIGTERM to the whole group, and the parent wants the environments' states to save them."""
    end = threading.Timer(GRACE_S, os._exit, (128 + signal.SIGTERM,))
    end.daemon = True
    end.start()


def _work(
    pipe: multiprocessing.connection.Connection, memory: Any, task: str | EnvFactory, config: EnvConfig, seed: int
) -> None:
    """A worker process: build, then answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the whole group; the parent ends its workers
    signal.signal(signal.SIGTERM, _end_soon)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("LP_NUM_THREADS", "1")  # llvmpipe: workers would fight over the cores
    env: Env | None = None
    try:
        with warnings.catch_warnings(record=True) as caught:
            env = _build(task, config, seed)
        messages = [str(one.message) for one in caught]
        pipe.send((0, _Ready(env.spaces, env.action_repeat, env.fingerprint, messages)))
        image = _image_in(memory, env.spaces)
        while True:
            ticket, verb, argument = pipe.recv()
            if verb == "close":
                return
            try:
                reply = _perform(env, verb, argument)
            except Exception as error:
                reply = _sendable(error)
            if isinstance(reply, Step):
                image[...] = reply.obs
                reply = reply._replace(obs=np.empty(0, np.uint8))
            pipe.send((ticket, reply))
    except (EOFError, BrokenPipeError):
        pass  # the pool is gone
    except Exception as error:
        pipe.send((0, _sendable(error)))
    finally:
        if env is not None:
            env.close()


def _sendable(error: Exception) -> Exception:
    """A user's error as it is; anything else with its traceback, which does not cross the pipe by itself."""
    if isinstance(error, (ValueError, NotImplementedError)):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:  # an exception class whose constructor wants more than its message
            return ValueError(str(error))
    return RuntimeError(f"in a worker: {''.join(traceback.format_exception(error)).rstrip()}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)  # the pipe's end would do, but not in an environment that hangs
