"""Imagined rollouts of a world that is known exactly: a bright square on a ring, moved by the action."""

import io
import json
import subprocess
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from agents.training.imagined import MAX_PSNR, Dream, headline, imagine_open_loop, open_loop_metrics, policy_dream, ssim
from agents.training.video import (
    BORDER,
    IMAGINES,
    LABELS,
    MARGIN,
    NEUTRAL,
    PREDICTED,
    SEES,
    TITLE,
    draw_dream,
    draw_rollouts,
    gif_bytes,
    summary_gif,
    write_json,
    write_video,
)
from worldmodels.base import Decoding, Losses, Rewarded, Sequence, Spaces, WorldModel

SIZE, CONTEXT = 16, 3


class Place(NamedTuple):
    x: Tensor  # [...], where the square is


def picture(x: Tensor) -> Tensor:
    """uint8 [..., 16, 16, 3], a square of 4 pixels at column x on a ring."""
    columns = (torch.arange(SIZE) - x[..., None].long()) % SIZE < 4
    rows = (torch.arange(SIZE) >= 6) & (torch.arange(SIZE) < 10)
    return ((columns[..., None, :] & rows[:, None])[..., None] * torch.tensor([200, 120, 40])).to(torch.uint8)


class Knows(WorldModel, Decoding, Rewarded):
    """Knows the square's place from the image and its law; ``bias`` is what it gets wrong in every imagined step."""

    spaces, feature_dim = Spaces((SIZE, SIZE, 3), 1, False), 1

    def __init__(self, bias: int = 0):
        super().__init__()
        self.bias = bias

    def initial(self, batch: int) -> Place:
        return Place(torch.zeros(batch))

    def observe(
        self, latent: Place, prev_action: Tensor, obs: Tensor, is_first: Tensor, generator: Any = None
    ) -> Place:
        lit = obs[..., 7, :, 0] > 0
        return Place((lit & ~lit.roll(1, -1)).float().argmax(-1).float())

    def imagine(self, latent: Place, action: Tensor, generator: Any = None) -> Place:
        return Place((latent.x + (2 * action[..., 0]).round() + self.bias) % SIZE)

    def features(self, latent: Place) -> Tensor:
        return latent.x[..., None]

    def loss(self, batch: Sequence) -> tuple[Place, Losses]:
        raise NotImplementedError

    def filter(self, batch: Sequence, generator: Any = None) -> Place:
        return self.observe(Place(batch.reward), batch.action, batch.obs, batch.is_first)

    def rollout(self, latent: Place, actions: Tensor, generator: Any = None) -> Place:
        places = []
        for action in actions.unbind(1):
            latent = self.imagine(latent, action)
            places.append(latent.x)
        return Place(torch.stack(places, 1))

    def decode(self, latent: Place) -> Tensor:
        return picture(latent.x)

    def reward(self, latent: Place) -> Tensor:
        return latent.x / SIZE

    def continues(self, latent: Place) -> Tensor:
        return torch.full_like(latent.x, 0.9)


def recorded(batch: int = 2, steps: int = 9, boundary: int | None = None) -> Sequence:
    """Random moves of -2 to 2; at ``boundary`` the second sequence begins anew elsewhere."""
    generator = torch.Generator().manual_seed(0)
    move = torch.randint(-2, 3, (batch, steps), generator=generator)
    x = torch.cat((torch.full((batch, 1), 5), 5 + move[:, :-1].cumsum(1)), 1) % SIZE
    is_first = torch.zeros(batch, steps, dtype=torch.bool)
    if boundary is not None:
        is_first[1, boundary] = True
        x[1, boundary:] = (x[1, boundary:] + 7) % SIZE
    nothing = torch.zeros_like(is_first)
    return Sequence(
        picture(x), move[..., None] / 2, x / SIZE, is_first, nothing, nothing, torch.zeros(batch, 1), context=None
    )


def test_a_perfect_model_reaches_the_cap_and_beats_copying():
    imagined = imagine_open_loop(Knows(), recorded(), CONTEXT)
    assert (imagined.reconstruction == imagined.truth).all() and (imagined.imagination == imagined.truth).all()
    assert (imagined.psnr == MAX_PSNR).all() and np.allclose(imagined.ssim, 1) and (imagined.reward_error == 0).all()
    assert imagined.psnr.shape == (2, 6) and imagined.psnr_copy_last_frame.min() < 20


def test_the_first_imagined_step_takes_the_action_that_left_the_last_frame_seen():
    sequence = recorded()
    for index in range(sequence.action.shape[1]):
        changed = sequence._replace(action=sequence.action.clone())
        changed.action[:, index] += 1.0  # two pixels further
        imagination = imagine_open_loop(Knows(), changed, CONTEXT).imagination
        differs = [t for t in range(9) if (imagination[:, t] != sequence.obs[:, t].numpy()).any()]
        assert differs == (list(range(index + 1, 9)) if index >= CONTEXT - 1 else [])


def test_psnr_of_a_known_error():
    imagined = imagine_open_loop(Knows(bias=1), recorded(), CONTEXT)
    wrong = 2 * 4 * (200**2 + 120**2 + 40**2) / (SIZE * SIZE * 3)  # one column missing, one too many
    assert np.allclose(imagined.psnr[:, 0], 10 * np.log10(255**2 / wrong), atol=1e-4)
    error = (imagined.reward_imagination - imagined.reward)[:, CONTEXT:]
    assert np.allclose(np.abs(error), imagined.reward_error) and imagined.reward_error.min() > 0
    assert (imagined.reward_imagination[:, :CONTEXT] == imagined.reward_reconstruction[:, :CONTEXT]).all()


def test_copy_baseline_compares_with_the_last_context_frame():
    imagined = imagine_open_loop(Knows(), recorded(), CONTEXT)
    last = np.broadcast_to(imagined.truth[:, CONTEXT - 1 : CONTEXT], imagined.truth[:, CONTEXT:].shape).astype(float)
    mse = ((last - imagined.truth[:, CONTEXT:]) ** 2).mean((-3, -2, -1))
    with np.errstate(divide="ignore"):
        assert np.allclose(imagined.psnr_copy_last_frame, np.minimum(10 * np.log10(255**2 / mse), MAX_PSNR), atol=1e-4)


@pytest.mark.parametrize("boundary", [1, CONTEXT - 1, CONTEXT, 6, 8])
def test_nothing_is_compared_across_an_episode_boundary(boundary: int):
    imagined = imagine_open_loop(Knows(), recorded(boundary=boundary), CONTEXT)
    expected = [boundary < CONTEXT or t < boundary for t in range(CONTEXT, 9)]
    assert imagined.compared[1].tolist() == expected and imagined.compared[0].all()
    for curve in (imagined.psnr, imagined.psnr_copy_last_frame, imagined.ssim, imagined.reward_error):
        assert (np.isfinite(curve) == imagined.compared).all()
    assert headline(imagined)["imagined/psnr"] == MAX_PSNR  # the model is perfect wherever it is compared


def test_metrics_are_null_where_no_sequence_is_left(tmp_path):
    sequence = recorded(boundary=6)
    alone = sequence._replace(**{k: v[1:] for k, v in sequence._asdict().items() if v is not None})
    metrics = open_loop_metrics(imagine_open_loop(Knows(), alone, CONTEXT), env_steps=7)
    read = json.loads(write_json(metrics, tmp_path / "new" / "a.json").read_text())
    assert read["psnr"] == [MAX_PSNR] * 3 + [None] * 3 and read["compared"] == [1, 1, 1, 0, 0, 0]
    assert (read["env_steps"], read["context"], read["horizon"], read["sequences"]) == (7, 3, 6, 1)
    assert len(read["psnr_copy_last_frame"]) == len(read["ssim"]) == len(read["reward_error"]) == 6
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_ssim_of_flat_images_is_the_luminance_term():
    grey = torch.full((2, 3, SIZE, SIZE, 3), 100, dtype=torch.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert torch.allclose(ssim(grey, grey + 50), torch.full((2, 3), expected), atol=5e-4)  # float32 cancels


def test_ssim_is_per_image():
    torch.manual_seed(0)
    truth = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8)
    image = truth.clone()
    image[2] = 255 - image[2]
    values = ssim(image, truth)
    assert (
        values[[0, 1, 3]].allclose(torch.ones(3)) and values[2] < 0 and values[2].allclose(ssim(image[2:3], truth[2:3]))
    )


@pytest.mark.parametrize("context", [0, 9])
def test_a_context_that_leaves_nothing_is_refused(context: int):
    with pytest.raises(ValueError, match="1 <= context < 9"):
        imagine_open_loop(Knows(), recorded(), context)


def test_a_model_that_cannot_draw_is_refused_by_name():
    body = {name: value for name, value in vars(Knows).items() if name not in ("__init__", "decode")}
    blind = type("Blind", (WorldModel, Rewarded), body)()
    with pytest.raises(ValueError, match="Blind cannot be filmed, it lacks Decoding"):
        imagine_open_loop(blind, recorded(), CONTEXT)


def test_a_dream_starts_at_its_latent_and_follows_the_policy():
    dream = policy_dream(Knows(), lambda latent: torch.ones(2, 1), Place(torch.tensor([0.0, 5.0])), horizon=4)
    x = torch.tensor([[0, 2, 4, 6, 8], [5, 7, 9, 11, 13]])
    assert (dream.image == picture(x).numpy()).all() and np.allclose(dream.reward, x / SIZE)
    assert dream.continues.shape == (2, 5)
    with pytest.raises(ValueError, match="horizon of 1 or more"):
        policy_dream(Knows(), lambda latent: torch.ones(2, 1), Place(torch.zeros(2)), horizon=0)


def borders(film: np.ndarray, tile: int) -> list[tuple[int, ...]]:
    """The colour of the left border of row ``tile``, first column, in every frame; tiles are 4 times 16 pixels."""
    top = TITLE + tile * (4 * SIZE + 2 * BORDER + 2)
    return [tuple(frame[top + 20, MARGIN + LABELS].tolist()) for frame in film]


def test_borders_switch_at_the_first_imagined_frame():
    film = draw_rollouts(imagine_open_loop(Knows(), recorded(), CONTEXT), task="square", env_steps=1000)
    assert film.dtype == np.uint8 and film.shape[0] == 9
    assert borders(film, 0) == [NEUTRAL] * 9 and borders(film, 1) == [SEES] * 9
    assert borders(film, 2) == borders(film, 3) == [SEES] * CONTEXT + [IMAGINES] * 6
    dream = policy_dream(Knows(), lambda latent: torch.ones(2, 1), Place(torch.zeros(2)), horizon=4)
    assert borders(draw_dream(dream, task="square", env_steps=0), 0) == [SEES] + [IMAGINES] * 4


def test_error_is_grey_where_right_and_columns_are_limited():
    imagined = imagine_open_loop(Knows(), recorded(batch=3), CONTEXT)
    film = draw_rollouts(imagined, task="square", env_steps=0)
    pixel = TITLE + 3 * (4 * SIZE + 2 * BORDER + 2) + 32
    assert (film[:, pixel, MARGIN + LABELS + 10 : MARGIN + LABELS + 50] == 128).all()
    narrow = draw_rollouts(imagined, task="square", env_steps=0, columns=1)
    one = draw_rollouts(imagine_open_loop(Knows(), recorded(batch=1), CONTEXT), task="square", env_steps=0)
    assert narrow.shape == one.shape and narrow.shape[2] < film.shape[2] + 1


def test_after_an_episode_boundary_the_tile_is_dimmed_and_no_reward_is_predicted():
    imagined = imagine_open_loop(Knows(bias=1), recorded(boundary=6), CONTEXT)
    alone = imagined._replace(**{k: v[1:] for k, v in imagined._asdict().items() if k != "context"})
    film = draw_rollouts(alone, task="square", env_steps=0)
    assert borders(film, 2) == [SEES] * 3 + [IMAGINES] * 3 + [NEUTRAL] * 3
    plot = film[:, -80:, MARGIN + LABELS :].astype(int)
    orange = (np.abs(plot - PREDICTED).max(-1) < 40).sum((1, 2))
    assert orange[5] > 0 and orange[8] <= orange[5]


def test_images_that_cannot_be_drawn_are_refused():
    image = np.zeros((1, 3, 8, 8, 4), np.uint8)
    with pytest.raises(ValueError, match="4 channels"):
        draw_dream(Dream(image, np.zeros((1, 3)), np.ones((1, 3))), task="x", env_steps=0)
    grey = draw_dream(Dream(image[..., :1] + 7, np.zeros((1, 3)), np.ones((1, 3))), task="x", env_steps=0)
    assert (grey[0, TITLE + 10, MARGIN + LABELS + 10] == 7).all()


def a_film(steps: int = 7, height: int = 45, width: int = 61) -> np.ndarray:
    film = np.zeros((steps, height, width, 3), np.uint8)
    for t in range(steps):
        film[t, 4 * t : 4 * t + 12, 10:50] = (230, 60, 40)
    return film


def decoded(path, height: int, width: int) -> np.ndarray:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


def test_mp4_decodes_to_the_same_frames_padded_to_even(tmp_path):
    film = a_film()
    path = write_video(film, tmp_path / "videos" / "a.mp4")
    back = decoded(path, 46, 62)
    assert path.name == "a.mp4" and len(back) == len(film)
    assert np.abs(back[:, :45, :61].astype(int) - film).mean() < 3
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    head = path.read_bytes()
    assert b"avc1" in head and head.index(b"moov") < head.index(b"mdat")  # H.264, plays before it is loaded


def test_without_ffmpeg_a_gif_is_written_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("agents.training.video._find_ffmpeg", lambda: None)
    path = write_video(a_film(), tmp_path / "a.mp4")
    assert path == tmp_path / "a.gif" and path.read_bytes()[:6] == b"GIF89a"
    assert len(caplog.records) == 1 and "pip install imageio-ffmpeg" in caplog.text


def test_gif_keeps_frames_size_time_and_thin_lines(tmp_path):
    film = a_film(steps=12)
    film[:, 0] = SEES  # one line among thousands of pixels
    path = write_video(film, tmp_path / "a.gif", fps=10)
    with Image.open(path) as gif:
        assert len(list(ImageSequence.Iterator(gif))) == 12
        gif.seek(0)
        assert (gif.size, gif.info["duration"]) == ((61, 45), 100)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - film[0]).max() < 8
    with Image.open(summary_gif(film, tmp_path / "s.gif")) as gif:
        assert gif.size == (61, 45)
    with Image.open(io.BytesIO(gif_bytes(film, max_width=30))) as gif:
        assert gif.size == (30, 22)


def test_a_failed_encoder_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="ffmpeg could not encode"):
        write_video(np.zeros((1, 2, 40000, 3), np.uint8), path)  # wider than H.264 allows
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("film", "name", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "a.mp4", "float32"),
        (np.zeros((0, 4, 4, 3), np.uint8), "a.mp4", "a frame at least"),
        (np.zeros((2, 4, 4), np.uint8), "a.gif", r"uint8 \[T, H, W, 3\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), "a.avi", "ends in .mp4 or .gif"),
    ],
)
def test_what_is_no_film_is_refused(film: np.ndarray, name: str, message: str, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_video(film, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_gif_that_cannot_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        summary_gif(a_film(), tmp_path / "s.gif", max_bytes=100)
