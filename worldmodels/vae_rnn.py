"""World Models: a variational autoencoder sees (V), a recurrent mixture density network remembers and predicts (M).

Paper: Ha and Schmidhuber, "World Models", 2018, arXiv 1803.10122; code: hardmaru/WorldModelsExperiments.

    V:  z_t ~ N(mu(obs_t), sigma(obs_t)),  image = decoder(z_t)
    M:  h_t, c_t = LSTM([z_{t-1}, a_{t-1}], h_{t-1}, c_{t-1}), both 0 where an episode begins
        z_t ~ prod_d sum_k pi_dk(h_t) N(mean_dk(h_t), std_dk(h_t)),  K components for each number d of z
    features_t = [z_t, h_t], of which h_t has not seen obs_t: what the paper's controller decides from

z is a sample wherever an image is encoded, in acting too (the authors' code), so M learns from a fresh one each time.

Loss terms. V: ``image``, squared error summed over pixels, and ``kl`` = max(KL(q(z | obs) || N(0, 1)), kl_tolerance
times the size of z), each image by itself. M: ``mdn``, negative log-likelihood of the next z in nats, mean over its
numbers; where an episode begins, and at a window's first step if it has no context, nothing is foretold and nothing
counts. ``reward`` and ``continue`` are those of heads on the features; in the latter an end counts ``end_weight``
times, or dreams of a world where ends are rare would never end. M's terms see z detached: in one loss V and M get the
gradients that they get when trained one after the other, and ``vae`` and ``rnn`` are all parameters there are. An
agent's term that reaches the features teaches V through z and M through h.

Temperature tau, in dreams alone and never in the loss: logits of the components / tau, variance * tau. It is a value of
the model, since it says which world is dreamt; ``tempered`` gives the same networks another one.

Gradients of a dream go through the mean and the deviation of the component that was drawn, to h and from there to
latent and action. None goes through the choice of the component: where its odds depend on the action, that is missing.

Deviations. The paper's M foretells no rewards, and ends only for Doom, by one more linear output of h, cut off at 0.5;
here both are heads of DreamerV3's kind on z too. ``continues`` is a probability where ``end_weight`` is 1; at 10 an end
of probability q comes out as 10 q / (1 + 9 q), so that the cut-off, as the authors', is at 1/11, and agents that
discount by it live shorter. M has no restart flag among its inputs. Log standard deviations are held in [-10, 5].
Images are centred before the encoder; weights begin as in DreamerV3. The authors clip M's gradients by value,
optimisers here by norm. Their Doom controller sees c as well. Images are neither cropped nor inverted.

Metrics: ``posterior_kl`` (nats, before the floor); ``posterior_entropy`` (nats, mean over the numbers of z), which is
the least that ``mdn`` can be on average.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Real, UInt8
from torch import Generator, Tensor, nn

from worldmodels.base import Decoding, Losses, Rewarded, Sequence, Spaces, Storing, WorldModel, map_latent
from worldmodels.decoders import PatchDecoder, TransposedDecoder, to_image
from worldmodels.distributions import NormalMixture, random_normal
from worldmodels.encoders import Encoder
from worldmodels.heads import HeadConfig
from worldmodels.latents import gaussian_kl
from worldmodels.layers import linear
from worldmodels.rssm import mean
from worldmodels.strict import above, at_least


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int  # numbers in z
    encoder: Encoder
    decoder: TransposedDecoder | PatchDecoder  # those that one vector is enough for
    kl_tolerance: float  # nats for each number of z; a smaller KL costs as much
    memory: int  # units of the LSTM
    mixtures: int  # components of the prediction of each number of z
    temperature: float  # of dreams: below 1 they are more certain than what was learned, above 1 less
    reward: HeadConfig
    continues: HeadConfig
    end_weight: float = 1.0  # how often an end counts in the loss of ``continues``; 1 as in models saved before
    scales: dict[str, float]  # weight of every loss term

    def __post_init__(self) -> None:
        at_least(self, 1, "latent", "memory", "mixtures")
        at_least(self, 0, "kl_tolerance")
        above(self, 0, "temperature", "end_weight")

    def build(self, spaces: Spaces) -> "VAERNN":
        return VAERNN(self, spaces)


WATCHED = 64  # images of a batch whose error is logged while V does not learn


class VAERNNLatent(NamedTuple):
    """Float32; leading dimensions as the caller has them."""

    z: Float[Tensor, "*B Z"]
    h: Float[Tensor, "*B M"]
    c: Float[Tensor, "*B M"]


class VAE(nn.Module):
    """V: images to independent normals, and numbers to images."""

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__()
        self.encoder = config.encoder.build(spaces.image)
        self.posterior = linear(self.encoder.size, 2 * config.latent)
        self.decoder = config.decoder.build(spaces.image, 0, config.latent)

    def forward(self, image: Real[Tensor, "N h w c"]) -> tuple[Float[Tensor, "N Z"], Float[Tensor, "N Z"]]:
        """Mean and log variance, float32."""
        mu, log_variance = self.posterior(self.encoder(image)).float().chunk(2, -1)
        return mu, log_variance

    def draw(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N h w c"]:
        return self.decoder(z[:, :0], z)

    def image_loss(self, z: Float[Tensor, "N Z"], image: Real[Tensor, "N h w c"]) -> Float[Tensor, " N"]:
        """Squared error summed over the pixels of an image scaled to [0, 1]."""
        return self.decoder.loss(z[:, :0], z, image)


def sample_normal(
    mu: Float[Tensor, "*B Z"], log_variance: Float[Tensor, "*B Z"], generator: Generator | None
) -> Float[Tensor, "*B Z"]:
    """Reparameterised."""
    return mu + (0.5 * log_variance).exp() * random_normal(mu.shape, mu, generator)


class LSTM(nn.Module):
    """Long short-term memory, its forget gates open by 1 more than learned, as TensorFlow's cell is by default.

    Not ``nn.LSTM``: windows begin episodes in the middle, the state stays float32 in low precision, and what reads
    actions is a tensor of its own, which transfer can begin anew.
    """

    def __init__(self, latent: int, action: int, memory: int):
        super().__init__()
        fan_in = latent + action + memory
        self.from_latent = linear(latent, 4 * memory, scale=(latent / fan_in) ** 0.5)
        self.from_action = linear(action, 4 * memory, scale=(action / fan_in) ** 0.5, bias=False)
        self.from_memory = linear(memory, 4 * memory, scale=(memory / fan_in) ** 0.5, bias=False)

    def inputs(self, z: Float[Tensor, "*B Z"], action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B G"]:
        """The share of the gates that does not depend on the state."""
        return self.from_latent(z) + self.from_action(action)

    def forward(
        self, inputs: Float[Tensor, "N G"], h: Float[Tensor, "N M"], c: Float[Tensor, "N M"]
    ) -> tuple[Float[Tensor, "N M"], Float[Tensor, "N M"]]:
        write, forget, candidate, read = (inputs + self.from_memory(h)).float().chunk(4, -1)
        c = torch.sigmoid(forget + 1.0) * c + torch.sigmoid(write) * torch.tanh(candidate)
        return torch.sigmoid(read) * torch.tanh(c), c


class MDNRNN(nn.Module):
    """M: memory, the next z as it is foretold, and what it means for rewards and ends."""

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__()
        self.mixtures = config.mixtures
        self.lstm = LSTM(config.latent, spaces.action_dim, config.memory)
        self.mdn = linear(config.memory, 3 * config.mixtures * config.latent)
        self.reward_head = config.reward.build(config.latent + config.memory)
        self.continue_head = config.continues.build(config.latent + config.memory)

    def predict(self, h: Float[Tensor, "*B M"]) -> NormalMixture:
        """The z that comes with this memory."""
        return NormalMixture(self.mdn(h), self.mixtures)


def foretold(batch: Sequence) -> Float[Tensor, "B T"]:
    """1 where a step has one before it in its episode that is known, 0 where not."""
    known = (~batch.is_first).to(torch.float32)
    if batch.context is None:
        known[:, 0] = 0
    return known


class VAERNN(WorldModel, Rewarded, Decoding, Storing):
    """See the card at the top of the file."""

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__()
        self.config, self.spaces = config, spaces
        self.feature_dim = config.latent + config.memory
        self.packed_bytes = 2 * (config.latent + 2 * config.memory)
        self.vae, self.rnn = VAE(config, spaces), MDNRNN(config, spaces)

    def tempered(self, temperature: float) -> "VAERNN":
        """This model, its weights shared and not copied, with another temperature. Raises ``ValueError``."""
        other = copy.copy(self)
        other.config = replace(self.config, temperature=temperature)
        return other

    def initial(self, batch: int) -> VAERNNLatent:
        device, memory = self.rnn.mdn.weight.device, self.config.memory
        z = torch.zeros(batch, self.config.latent, device=device)
        return VAERNNLatent(z, torch.zeros(batch, memory, device=device), torch.zeros(batch, memory, device=device))

    def observe(
        self,
        latent: VAERNNLatent,
        prev_action: Float[Tensor, "B A"],
        obs: UInt8[Tensor, "B h w c"],
        is_first: Bool[Tensor, " B"],
        generator: Generator | None = None,
    ) -> VAERNNLatent:
        mu, log_variance = self.vae(obs)
        h, c = self._remember(latent, self.rnn.lstm.inputs(latent.z, prev_action), is_first)
        return VAERNNLatent(sample_normal(mu, log_variance, generator), h, c)

    def _remember(
        self, latent: VAERNNLatent, inputs: Float[Tensor, "B G"], is_first: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M"]]:
        """The memory one step on, 0 where an episode begins."""
        h, c = self.rnn.lstm(inputs, latent.h, latent.c)
        return h.masked_fill(is_first.unsqueeze(-1), 0), c.masked_fill(is_first.unsqueeze(-1), 0)

    def imagine(
        self, latent: VAERNNLatent, action: Float[Tensor, "B A"], generator: Generator | None = None
    ) -> VAERNNLatent:
        """One step at ``config.temperature``; how it is differentiated is on the card."""
        h, c = self.rnn.lstm(self.rnn.lstm.inputs(latent.z, action), latent.h, latent.c)
        return VAERNNLatent(self.rnn.predict(h).sample(self.config.temperature, generator), h, c)

    def features(self, latent: VAERNNLatent) -> Float[Tensor, "*B F"]:
        return torch.cat([latent.z, latent.h], -1)

    def filter(self, batch: Sequence, generator: Generator | None = None) -> VAERNNLatent:
        return self._scan(batch, generator)[0]

    def _scan(
        self, batch: Sequence, generator: Generator | None
    ) -> tuple[VAERNNLatent, Float[Tensor, "N Z"], Float[Tensor, "N Z"]]:
        """The posterior ``[B, T]``, and mean and log variance of its z ``[B * T]``. M sees z detached."""
        size, length = batch.reward.shape
        mu, log_variance = self.vae(batch.obs.flatten(0, 1))
        z = sample_normal(mu, log_variance, generator).unflatten(0, (size, length))
        latent = self.initial(size) if batch.context is None else self.unpack(batch.context)
        past = torch.cat([latent.z.unsqueeze(1), z[:, :-1].detach()], 1)
        inputs = self.rnn.lstm.inputs(past, torch.cat([batch.prev_action.unsqueeze(1), batch.action[:, :-1]], 1))
        steps = []
        for t in range(length):
            latent = VAERNNLatent(z[:, t], *self._remember(latent, inputs[:, t], batch.is_first[:, t]))
            steps.append(latent)
        return map_latent(lambda *parts: torch.stack(parts, 1), *steps), mu, log_variance

    def loss(self, batch: Sequence) -> tuple[VAERNNLatent, Losses]:
        latent, mu, log_variance = self._scan(batch, None)
        kl = gaussian_kl(mu, log_variance.exp(), torch.zeros_like(mu), torch.ones_like(mu))
        learning = any(parameter.requires_grad for parameter in self.vae.parameters())
        shown = None if learning else WATCHED  # where V stands still, the images are drawn for the log alone
        terms = {
            "image": self.vae.image_loss(latent.z.flatten(0, 1)[:shown], batch.obs.flatten(0, 1)[:shown]).mean(),
            "kl": kl.clamp_min(self.config.kl_tolerance * self.config.latent).mean(),
        }
        seen = latent._replace(z=latent.z.detach())
        surprise = -self.rnn.predict(seen.h).log_prob(seen.z).mean(-1)
        terms["mdn"] = mean(surprise, foretold(batch))
        features = self.features(seen)
        terms["reward"] = self.rnn.reward_head(features).loss(batch.reward).mean()
        live = (~batch.is_terminal).float()
        weight = live + self.config.end_weight * (1 - live)
        terms["continue"] = (weight * self.rnn.continue_head(features).loss(live)).mean()
        entropy = 0.5 * (log_variance.detach().mean() + math.log(2 * math.pi * math.e))
        return latent, Losses(terms, {"posterior_kl": kl.detach().mean(), "posterior_entropy": entropy})

    def reward(self, latent: VAERNNLatent) -> Float[Tensor, "*B"]:
        return self.rnn.reward_head(self.features(latent)).mean

    def continues(self, latent: VAERNNLatent) -> Float[Tensor, "*B"]:
        return self.rnn.continue_head(self.features(latent)).mean

    @torch.no_grad()
    def decode(self, latent: VAERNNLatent) -> UInt8[Tensor, "*B h w c"]:
        leading = latent.z.shape[:-1]
        return to_image(self.vae.draw(latent.z.reshape(-1, self.config.latent))).unflatten(0, leading)

    def pack(self, latent: VAERNNLatent) -> UInt8[Tensor, "*B L"]:
        """All in bfloat16 (8 bits of precision)."""
        return torch.cat(latent, -1).detach().to(torch.bfloat16).view(torch.uint8)

    def unpack(self, packed: UInt8[Tensor, "*B L"]) -> VAERNNLatent:
        numbers = packed.clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()  # aligned
        return VAERNNLatent(*numbers.split([self.config.latent, self.config.memory, self.config.memory], -1))
