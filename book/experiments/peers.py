"""What a user would pick instead: MONAI's latent diffusion, in the design of its 3-D tutorial, sized to fit two cores.

An autoencoder with a Kullback-Leibler and a patch-adversarial term, then a diffusion model in its codes (Rombach et al.
2022, arXiv 2112.10752; Pinaya et al. 2022, arXiv 2209.07162). Networks, scheduler and losses are MONAI's. Of the
tutorial's design a perceptual loss is missing, whose weights have to be downloaded, and channels are half as many.
Scans have neither padding nor less than their full resolution. minutes.py says for how long it is trained, measures it
and shows it; trained, it goes on where it was stopped (on a GPU but for the last bits).
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from labkit.data import volumes
from labkit.data.augment import AUGMENTATIONS, augment
from labkit.data.cohort import Cohort
from labkit.evidence.metrics.controls import in_memory
from labkit.files import load_state, progress_bar, save_state
from labkit.runs import choose_device

BATCH = 2
CHANNELS = 16, 32, 32
LR = 1e-4
KL, ADVERSARIAL = 1e-6, 0.01
WARM_UP = 0.1
"""Share of the autoencoder's iterations without an adversary: the tutorial has five epochs of some fifty."""

NOISES = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
STEPS = 50
"""Of sampling: DDIM's, a twentieth of those of training."""

EVERY = 50
"""Iterations between checkpoints."""


def autoencoder() -> AutoencoderKL:
    """Scans to codes of a quarter of the resolution, three channels, and back."""
    return AutoencoderKL(
        spatial_dims=3, in_channels=1, out_channels=1, channels=CHANNELS, latent_channels=3, num_res_blocks=1,
        norm_num_groups=16, attention_levels=(False, False, True),
    )  # fmt: skip


def denoiser() -> DiffusionModelUNet:
    """What tells a noisy code's noise."""
    return DiffusionModelUNet(
        spatial_dims=3, in_channels=3, out_channels=3, num_res_blocks=1, channels=(32, 64, 64), norm_num_groups=16,
        attention_levels=(False, True, True), num_head_channels=(0, 64, 64),
    )  # fmt: skip


class Peer:
    """A latent diffusion model of a cohort's scans, trained in two stages, in a folder that it goes on from."""

    def __init__(self, train: Cohort, folder: Path, seed: int = 0, device: str = "auto") -> None:
        self.train, self.folder, self.seed, self.device = train, folder, seed, choose_device(device)
        cubes = train.volumes(volumes.cube_side(train.shape)).to(self.device)
        self.box = volumes.scanned_slices(train.shape, cubes.shape[-1])
        # the autoencoder halves twice, and so does the denoiser
        self.cubes, self.grid = cubes, tuple(16 * -(-n // 16) for n in train.shape)

    def fit(self, iterations: dict[str, int]) -> dict[str, float]:
        """Both stages, `iterations` of each by name; seconds an iteration of those made in this call.

        Checkpoints apart.
        """
        with torch.random.fork_rng():
            paces = {"autoencoder": self._stage("autoencoder", iterations["autoencoder"], self._autoencode)}
            self.encoded = self._encoded()
            paces["diffusion"] = self._stage("diffusion", iterations["diffusion"], self._diffuse)
        return paces

    def _stage(self, name: str, iterations: int, step: Any) -> float:
        """Go on with a stage to so many iterations."""
        path = self.folder / f"{name}.safetensors"
        torch.manual_seed(self.seed)
        parts: dict[str, nn.Module]
        if name == "autoencoder":
            critic = PatchDiscriminator(spatial_dims=3, in_channels=1, channels=16, num_layers_d=3, norm="INSTANCE")
            parts = {"model": autoencoder(), "critic": critic}
        else:
            parts = {"model": denoiser()}
        for part in parts.values():
            part.to(self.device)
        optimisers = {key: torch.optim.Adam(part.parameters(), lr=LR) for key, part in parts.items()}
        done, rng = 0, torch.Generator(self.device).manual_seed(self.seed)
        if path.exists():
            state = load_state(path, self.device)
            done = state["iteration"]
            parts["model"].load_state_dict(state["model"])
        if 0 < done < iterations:
            rng.set_state(state["rng"].cpu())
            torch.set_rng_state(state["global_rng"].cpu())
            for key, part in parts.items():
                part.load_state_dict(state[key])
                optimisers[key].load_state_dict(state[f"{key}_optimiser"])
        first, began, apart = done, time.perf_counter(), 0.0
        for iteration in progress_bar(range(first + 1, iterations + 1), name, max(0, iterations - first)):
            step(parts, optimisers, rng, iteration / iterations)
            if iteration % EVERY == 0 or iteration == iterations:
                states = {key: part.state_dict() for key, part in parts.items()}
                states |= {f"{key}_optimiser": optimiser.state_dict() for key, optimiser in optimisers.items()}
                random = {"rng": rng.get_state(), "global_rng": torch.get_rng_state()}
                self.folder.mkdir(parents=True, exist_ok=True)
                paused = time.perf_counter()
                save_state(path, {"iteration": iteration, **random, **states})
                apart += time.perf_counter() - paused
        setattr(self, name, parts["model"].eval())
        return (time.perf_counter() - began - apart) / (iterations - first) if iterations > first else float("nan")

    def _scans(self, rng: torch.Generator) -> Tensor:
        """Some scans without their padding, augmented as those of the alpha-GANs, (B, 1, X, Y, Z) in [0, 1]."""
        chosen = torch.randint(len(self.cubes), (BATCH,), generator=rng, device=self.device)
        transforms = replace(AUGMENTATIONS["full"], voxel_mm=self.train[0].zooms)
        return self._fitted(augment(self.cubes[chosen], generator=rng, augmentation=transforms))

    def _fitted(self, cubes: Tensor) -> Tensor:
        scans = (cubes[(..., *self.box)] + 1) / 2
        around = [extent for n, m in zip(scans.shape[:1:-1], self.grid[::-1], strict=True) for extent in (0, m - n)]
        return F.pad(scans, around)

    def _autoencode(self, parts: dict, optimisers: dict, rng: torch.Generator, share: float) -> None:
        x, adversary = self._scans(rng), PatchAdversarialLoss(criterion="least_squares")
        back, mean, sd = parts["model"](x)
        kl = 0.5 * (mean.square() + sd.square() - sd.square().log() - 1).flatten(1).sum(1).mean()
        loss = F.l1_loss(back, x) + KL * kl
        if share > WARM_UP:
            judged = parts["critic"](back.contiguous())[-1]
            loss = loss + ADVERSARIAL * adversary(judged, target_is_real=True, for_discriminator=False)
        _descend(loss, optimisers["model"])
        if share > WARM_UP:
            fake, real = (parts["critic"](scan.detach())[-1] for scan in (back, x))
            loss = adversary(fake, target_is_real=False, for_discriminator=True)
            loss = (loss + adversary(real, target_is_real=True, for_discriminator=True)) / 2
            _descend(ADVERSARIAL * loss, optimisers["critic"])

    @torch.no_grad()
    def _encoded(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the training scans' codes; those of a batch are drawn from them."""
        pairs = [self.autoencoder.encode(self._fitted(part)) for part in self.cubes.split(BATCH)]
        means, sds = (torch.cat(part) for part in zip(*pairs, strict=True))
        # the tutorial's scale: codes of about unit variance
        self.scale = 1 / (means.square().mean() + sds.square().mean() - means.mean().square()).sqrt().item()
        return means, sds

    def _diffuse(self, parts: dict, optimisers: dict, rng: torch.Generator, share: float) -> None:
        means, sds = self.encoded
        scheduler = DDPMScheduler(**NOISES)
        here = {"generator": rng, "device": self.device}
        chosen = torch.randint(len(means), (4 * BATCH,), **here)
        z = self.scale * (means[chosen] + sds[chosen] * torch.randn(means[chosen].shape, **here))
        noise = torch.randn(z.shape, **here)
        times = torch.randint(NOISES["num_train_timesteps"], (len(z),), **here)
        told = parts["model"](scheduler.add_noise(z, noise, times), timesteps=times)
        _descend(F.mse_loss(told, noise), optimisers["model"])

    @torch.no_grad()
    def draw(self, n: int, seed: int = 0) -> Cohort:
        """New scans as a cohort in memory, each with the intensity range of a training scan."""
        rng = torch.Generator().manual_seed(seed)
        scheduler = DDIMScheduler(**NOISES, clip_sample=False)
        scheduler.set_timesteps(STEPS)
        made = []
        for start in progress_bar(range(0, n, 8), "drawing", -(-n // 8)):
            z = torch.randn(min(8, n - start), *self.encoded[0].shape[1:], generator=rng).to(self.device)
            for moment in scheduler.timesteps:
                times = torch.full((len(z),), int(moment), device=self.device)
                z, _ = scheduler.step(self.diffusion(z, timesteps=times), int(moment), z)
            made.append(self.autoencoder.decode(z / self.scale).cpu())
        scans = torch.cat(made)[(..., *(slice(0, n) for n in self.train.shape))]
        like = torch.randint(len(self.train), (n,), generator=rng)
        return in_memory("MONAI", self.train, [self.train[place] for place in like.tolist()], scans)


def _descend(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
