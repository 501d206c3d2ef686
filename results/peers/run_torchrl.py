"""TorchRL's DreamerV3, one step of its own ``DreamerV3OptimizationStepper`` on a sample: run_torchrl.py PRECISION

    pip install torch==2.13.0 torchrl==0.14.1 'hydra-core<1.4' gymnasium tqdm   (in an environment of its own)

Networks and losses are built by the example that is in its wheel, ``sota-implementations/dreamer_v3``, whose YAML is
not: the values below are those of its ``config.yaml`` and ``config_dmc_walker.yaml`` ("size1m"), with images of depth
4 in place of vectors. It computes in bfloat16 on CUDA only: PRECISION bf16 is autocast around its step, from outside.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torchrl
from omegaconf import OmegaConf
from serve import ACTIONS, BATCH, LENGTH, SIZE, parameters, serve
from tensordict import TensorDict

NETWORKS = {
    "rnn_hidden_dim": 512, "num_categoricals": 32, "num_classes": 4, "unimix": 0.01, "recurrent_model": "block_gru",
    "num_blocks": 8, "dynamics_layers": 1, "prior_layers": 2, "posterior_layers": 1, "norm_eps": 1e-4,
    "decoder_event_dims": None, "num_reward_bins": 255, "num_value_bins": 255, "hidden_dim": 64, "encoder_layers": 3,
    "decoder_layers": 3, "reward_layers": 1, "actor_layers": 3, "value_layers": 3, "policy_min_std": 0.1,
    "policy_max_std": 1.0, "image_depth": 4, "image_mults": [2, 3, 4, 4], "image_kernel_size": 5,
    "image_decoder_blocks": 8,
}  # fmt: skip
OPTIMIZATION = {
    "compile": "off", "compile_train_step": None, "compile_rssm": None, "cudagraph_train_step": None,
    "compile_train_step_mode": "default", "rssm_scan_unroll": 8, "mixed_precision": False, "lr": 4e-5,
    "optimizer_eps": 1e-20, "adaptive_grad_clip": 0.3, "warmup_steps": 1000, "imagination_horizon": 15,
    "continuation_horizon": 333, "use_reinforce": True, "return_normalization_rate": 0.01,
    "return_normalization_min_scale": 1.0, "slow_critic_regularization": 1.0, "slow_critic_tau": 0.02,
    "replay_value_loss_weight": 0.3, "free_bits": 1.0, "dynamic_loss_weight": 1.0, "representation_loss_weight": 0.1,
    "gamma": 1.0, "lmbda": 0.95,
}  # fmt: skip


class Images(gym.Env):
    """Spaces and nothing else."""

    observation_space = gym.spaces.Dict({"pixels": gym.spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8)})
    action_space = gym.spaces.Box(-1, 1, (ACTIONS,), np.float32)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, _: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def make_images(**_: Any) -> Any:
    from torchrl.envs import GymWrapper

    return GymWrapper(Images())


def main(precision: str) -> None:
    sys.path.insert(0, str(Path(torchrl.__file__).parents[1] / "sota-implementations" / "dreamer_v3"))
    import train  # of that folder

    cfg = OmegaConf.create({
        "env": {"backend": "custom", "factory": "run_torchrl:make_images", "seed": 0, "use_seed": False,
                "max_episode_steps": 1000, "vector_key": None, "pixels_key": "pixels"},
        "collector": {"num_envs": 1},
        "networks": NETWORKS, "optimization": OPTIMIZATION,
    })  # fmt: skip
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    learner = train._build_learner(cfg, cpu, 0, ACTIONS, (3, SIZE, SIZE))
    stepper = train._make_learner_update(cfg, cpu, learner)
    shape = (BATCH, LENGTH)
    flags = {name: torch.zeros(*shape, 1, dtype=torch.bool) for name in ("done", "terminated")}
    sample = TensorDict(
        {
            "action": torch.rand(*shape, ACTIONS) * 2 - 1, "is_init": torch.zeros(*shape, 1, dtype=torch.bool),
            "state": torch.zeros(*shape, 32 * 4), "belief": torch.zeros(*shape, 512),
            "next": {"reward": torch.randn(*shape, 1), **flags,
                     "pixels": torch.randint(256, (*shape, 3, SIZE, SIZE), dtype=torch.uint8)},
        },
        batch_size=shape,
    )  # fmt: skip

    def update() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            stepper.step(None, sample.clone(recurse=False))

    encoder, rollout, decoder = learner.world_model[0], learner.world_model[1], learner.world_model[2]
    counts = parameters(
        encoder=encoder, recurrence=rollout, decoder=decoder, world_model=learner.world_model,
        actor=learner.real_world_actor.module[-2], critic=learner.value_loss,
    )  # fmt: skip
    serve(update, name="torchrl dreamer_v3 size1m", precision=precision, parameters=counts)


if __name__ == "__main__":
    main(*sys.argv[1:])
