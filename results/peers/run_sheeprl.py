"""sheeprl's DreamerV3, one call of its own ``train`` on a batch that is there already: run_sheeprl.py SIZE PRECISION

    pip install torch==2.13.0 torchvision==0.28.0 sheeprl==0.8.4    (in an environment of its own, see compare.py)

SIZE is the end of ``dreamer_v3_XS``, PRECISION fp32 or bf16. The environment is not made: only its spaces matter.
Metrics are off, and so is torch.compile, as sheeprl has it unless told otherwise.
"""

import sys
from importlib.resources import files

import torch


def declare_missing_operators() -> torch.library.Library:
    """A CUDA build of torchvision beside a CPU build of torch is only imported when these are declared."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def main(size: str, precision: str) -> None:
    import gymnasium as gym
    import hydra
    import numpy as np
    from omegaconf import OmegaConf
    from serve import ACTIONS, BATCH, LENGTH, SIZE, parameters, serve
    from sheeprl.algos.dreamer_v3.agent import build_agent
    from sheeprl.algos.dreamer_v3.dreamer_v3 import train
    from sheeprl.algos.dreamer_v3.utils import Moments
    from sheeprl.utils.metric import MetricAggregator
    from sheeprl.utils.utils import dotdict

    with hydra.initialize_config_dir(str(files("sheeprl") / "configs"), version_base="1.3"):
        cfg = hydra.compose(
            "config",
            [
                "exp=dreamer_v3", f"algo=dreamer_v3_{size}", "env=dummy", "algo.cnn_keys.encoder=[rgb]",
                "algo.mlp_keys.encoder=[]", f"algo.per_rank_sequence_length={LENGTH}",
                f"algo.per_rank_batch_size={BATCH}", f"env.screen_size={SIZE}",
                f"fabric.precision={'bf16-mixed' if precision == 'bf16' else '32-true'}", "fabric.callbacks=[]",
            ],
        )  # fmt: skip
        fabric = hydra.utils.instantiate(cfg.fabric, _convert_="all")
    cfg = dotdict(OmegaConf.to_container(cfg, resolve=True))
    MetricAggregator.disabled = True
    fabric.seed_everything(0)
    space = gym.spaces.Dict({"rgb": gym.spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8)})
    world_model, actor, critic, target_critic, _ = build_agent(fabric, [ACTIONS], True, cfg, space)
    optimizers = fabric.setup_optimizers(*(
        hydra.utils.instantiate(config.optimizer, params=module.parameters(), _convert_="all")
        for config, module in ((cfg.algo.world_model, world_model), (cfg.algo.actor, actor), (cfg.algo.critic, critic))
    ))  # fmt: skip
    moments = Moments(*(cfg.algo.actor.moments[name] for name in ("decay", "max")), 0.05, 0.95)
    shape = (LENGTH, BATCH)
    batch = {
        "rgb": torch.randint(256, (*shape, 3, SIZE, SIZE), dtype=torch.uint8), "actions": torch.rand(*shape, ACTIONS),
        "rewards": torch.randn(*shape, 1), "terminated": torch.zeros(*shape, 1), "truncated": torch.zeros(*shape, 1),
        "is_first": torch.zeros(*shape, 1),
    }  # fmt: skip

    def update() -> None:
        for mine, theirs in zip(target_critic.parameters(), critic.module.parameters(), strict=True):
            mine.data.copy_(cfg.algo.critic.tau * theirs.data + (1 - cfg.algo.critic.tau) * mine.data)
        data = {name: values.float() for name, values in batch.items()}  # as its ``sample_batches`` does
        train(
            fabric, world_model, actor, critic, target_critic, *optimizers, data, None, cfg, True, [ACTIONS], moments
        )  # fmt: skip

    parts = {"encoder": world_model.encoder, "decoder": world_model.observation_model}
    counts = parameters(**parts, world_model=world_model, actor=actor, critic=critic)
    serve(update, name=f"sheeprl dreamer_v3_{size}", precision=precision, parameters=counts)


if __name__ == "__main__":
    library = declare_missing_operators()
    main(*sys.argv[1:])
