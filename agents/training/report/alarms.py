"""What is wrong with runs, or may be: one line each, with what to do where that is known."""

import functools
import math
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from agents.training.report.runs import Alarm, Group, RunData

COLLAPSED = 0.1  # nats of KL in all, below which a latent says almost nothing
AT_THE_FLOOR = 1.01  # times the free nats
TOO_DEAR = 1.0  # times the mean absolute reward
LATELY = 0.1  # share of the log that says how a run is now


def alarms(groups: Sequence[Group], problems: Sequence[Alarm]) -> list[Alarm]:
    """Everything that is to be said, grave things first; ``problems`` are those of reading the runs."""
    found = list(problems)
    for group in groups:
        for run in group.runs:
            found += [*not_numbers(run), *latents(run), *doubt(run), *unfinished(run), *no_better_than_random(run)]
        found += same_seed(group) + unequal(group)
    runs = [run for group in groups for run in group.runs]
    found += between_runs(runs) + [alarm for run in runs for alarm in since_then(run)]
    return sorted(merged(found), key=lambda alarm: not alarm.grave)


def not_numbers(run: RunData) -> list[Alarm]:
    """Metrics that were logged as null."""
    bad: dict[str, int] = {}
    for entry in run.history:
        for name in (name for name, value in entry.items() if math.isnan(value)):
            bad.setdefault(name, int(entry["env_steps"]))
    grave = any(name == "total" or name.startswith(("gradient_norm", "eval/")) for name in bad)
    listed = ", ".join(f"{name} from {steps} env steps on" for name, steps in list(bad.items())[:3])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return [Alarm(grave, run.name, f"not a number: {listed}{more}")] if bad else []


def latents(run: RunData) -> list[Alarm]:
    """Posterior collapse, and a KL that has come to rest on the floor of free nats."""
    kl, floored = lately(run, "model/kl"), lately(run, "model/dyn")
    free = run.config.get("world_model.free_nats", run.config.get("world_model.rssm.free_nats"))
    if kl < COLLAPSED:
        return [Alarm(True, run.name, f"posterior collapse: the KL is {kl:.3g} nats, so the latent says almost nothing "
                      "about the image; lower free_nats or the KL's scales")]  # fmt: skip
    if (
        isinstance(free, int | float)
        and 0 < free
        and max(kl, floored if math.isfinite(floored) else kl) <= (AT_THE_FLOOR * free)
    ):
        return [Alarm(False, run.name, f"the KL lies at the floor of {free:g} free nats ({kl:.3g}): the prior gets no "
                      "gradient from it; lower free_nats if the dreams are bad")]  # fmt: skip
    return []


def doubt(run: RunData) -> list[Alarm]:
    """An agent in whose dreams being doubtful costs more than there is to earn."""
    price = lately(run, "agent/penalty_to_reward")
    key = "agent.penalty.weight" if "agent.penalty.weight" in run.config else "agent.penalty"
    said = f"in its dreams doubt costs {price:.2g} times what is earned, so it may shun all that is new; lower {key}"
    return [Alarm(False, run.name, said)] if price > TOO_DEAR else []


def lately(run: RunData, name: str) -> float:
    """Mean of the end of the log; NaN where there is nothing."""
    _, y = run.metric(name)
    return float(y[-max(1, round(LATELY * len(y))) :].mean()) if len(y) else math.nan


def unfinished(run: RunData) -> list[Alarm]:
    """Fewer env steps than were asked for."""
    asked, done = run.config.get("training.env_steps"), run.total("env_steps")
    if isinstance(asked, int) and done < asked:
        return [Alarm(False, run.name, f"not finished: {done:.0f} of {asked} env steps")]
    return []


def no_better_than_random(run: RunData) -> list[Alarm]:
    random = run.baselines.get("random", math.nan)
    if run.last_return <= random:
        return [Alarm(False, run.name, f"plays no better than random: {run.last_return:.4g} against {random:.4g}")]
    return []


def same_seed(group: Group) -> list[Alarm]:
    seeds = [run.seed for run in group.runs]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    said = f"seed {', '.join(map(str, twice))} is there more than once, so the intervals are too narrow"
    return [Alarm(True, group.label, said)] if twice else []


def unequal(group: Group) -> list[Alarm]:
    """Last returns of a group that are not of the same age."""
    ages = sorted({int(run.evaluations[0][-1]) for run in group.evaluated})
    said = f"last evaluations at {', '.join(map(str, ages))}: they are compared all the same"
    return [Alarm(False, f"{group.label} on {group.task}", said)] if len(ages) > 1 else []


def between_runs(runs: Sequence[RunData]) -> list[Alarm]:
    """Runs on one task whose environments or packages were not the same."""
    found = []
    for task in dict.fromkeys(run.task for run in runs):
        same = [run for run in runs if run.task == task and run.fingerprint]
        for part, grave in (("env", True), ("versions", False)):
            keys = dict.fromkeys(key for run in same for key in run.fingerprint.get(part, {}))
            for key in keys:
                values: dict[str, list[str]] = {}
                for run in same:
                    values.setdefault(str(run.fingerprint.get(part, {}).get(key, "–")), []).append(run.name)
                if len(values) > 1:
                    said = "; ".join(f"{value} in {some(names)}" for value, names in values.items())
                    found.append(Alarm(grave, task, f"fingerprints differ in {key}: {said}"))
    return found


def since_then(run: RunData) -> list[Alarm]:
    """What is installed here is not what the run was made with."""
    before = run.fingerprint.get("versions", {})
    changed = [f"{name} {old} -> {now}" for name, old in before.items() if (now := installed(name)) != old]
    return [Alarm(False, run.name, f"made with other versions than are installed: {', '.join(changed)}")] * bool(
        changed
    )


@functools.cache
def installed(name: str) -> str:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def merged(found: Sequence[Alarm]) -> list[Alarm]:
    """The same said of several is said once."""
    who: dict[tuple[bool, str], list[str]] = {}
    for alarm in found:
        who.setdefault((alarm.grave, alarm.what), []).append(alarm.who)
    return [Alarm(grave, some(names), what) for (grave, what), names in who.items()]


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
