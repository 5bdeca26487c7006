"""The whole embedded model on one GPU, in the minutes that it is given. `gpu.sh` calls this.

    bash recipes/embedded/gpu.sh --minutes 9
    bash recipes/embedded/gpu.sh --smoke

Clips are rendered on the device (`torch_world.py`) and encoded on the way by three matrix products (`linear.py`).
Stages, each by its share of the time: the decoder; the text-to-video base, one timestep a clip; the adapter, a LoRA
with a timestep a frame. A stage plans by the clock: its learning rate follows the share of its time that is gone, and
after its first seconds it prints how many steps that will be. Every minute it writes a checkpoint that can be used
(`model/`, float16) and one to go on from (`state_*.pt`). The same command goes on where an interrupted one was.

Needs torch, diffusers, transformers, Pillow; no scikit-image and no network. The photographs are in the pack.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pictures as packs
import torch
from adapter import FRAMES, RANK, TASKS, Adapted, adapt, levels, write
from assemble import forget_sources
from base import CAPTION_DROPOUT, SHIFT, TRANSFORMER, TextToVideo, build_tokenizer, load, stratified, tokenize
from data import SCALES, heldout
from decoder import CUTS, NOISE, decode, distance
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from linear import CHANNELS, CONFIG, WHITENING, Linear, silence, tensor, write_decoder, write_encoder
from muon import Muon, fast
from PIL import Image
from torch import Tensor, nn
from torch_world import Atlas, batch, captions, texture

from pusa.embedded import judge, world

SIDE = 16
SHARES = {"decoder": 0.22, "base": 0.58, "adapter": 0.2}
"""Of the time that is left after `RESERVE`."""
RESERVE = 0.17
"""Share of the minutes for the start, compiling and the numbers at the end."""
STEPS = 10


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class BatchedMuon(Muon):
    """`Muon`, with all matrices of one shape made orthogonal together: a tenth of the kernel launches."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, same in shapes.items():
                velocities = [self.state[p].setdefault("velocity", torch.zeros_like(p)) for p in same]
                gradients = [p.grad for p in same]
                torch._foreach_lerp_(velocities, gradients, 1 - group["momentum"])
                x = torch.stack([g.lerp(v, group["momentum"]) for g, v in zip(gradients, velocities, strict=True)])
                x = x.flatten(2).to(fast(x.device))
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                tall = x.shape[1] > x.shape[2]
                x = x.mT if tall else x
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                x = (x.mT if tall else x).reshape(len(same), *shape).to(same[0].dtype)
                scale = group["lr"] * max(1.0, shape[0] / math.prod(shape[1:])) ** 0.5
                torch._foreach_add_(same, list(x), alpha=-scale)


def train(
    name: str,
    out: Path,
    parameters: dict[str, nn.Parameter],
    loss: Callable[[int, torch.Generator], Tensor],
    seconds: float,
    device: torch.device,
    *,
    lr: float,
    muon: Callable[[str], bool] = lambda name: False,
    muon_lr: float = 0.02,
    ema: float = 0.999,
    every: float = 60.0,
    save: Callable[[dict[str, Tensor]], None],
) -> dict[str, Tensor]:
    """Minimise `loss(step, generator)` for `seconds` and return the moving average of the weights."""
    hidden = [p for n, p in parameters.items() if muon(n) and p.ndim >= 2]
    others = [p for n, p in parameters.items() if not (muon(n) and p.ndim >= 2)]
    optimisers: list[torch.optim.Optimizer] = [BatchedMuon(hidden, muon_lr)] if hidden else []
    if others:
        optimisers.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0))
    peaks = [o.param_groups[0]["lr"] for o in optimisers]
    average = {n: p.detach().clone() for n, p in parameters.items()}
    step, before = 0, 0.0
    path = out / f"state_{name}.pt"
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(state["weights"][n])
        average, step, before = state["average"], state["step"], state["seconds"]
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        say(f"{name}: resuming at step {step}, {before:.0f} of {seconds:.0f} s")
    rng, started, saved = torch.Generator(device), time.monotonic(), time.monotonic()
    first, mark, planned, gone = step, 0.0, False, before
    log = (out / f"log_{name}.jsonl").open("a")
    while gone < seconds:
        progress = gone / seconds
        factor = min(1.0, progress / 0.03 + 0.02) * (0.01 + 0.99 * min(1.0, (1 - progress) / 0.5))
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * factor
        rng.manual_seed(step * 1_000_003 + sum(map(ord, name)))
        value = loss(step, rng)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
        step += 1
        if step - first in (3, 10) or step % 20 == 0:
            item = float(value.detach())  # waits for the device: without it the clock would run ahead
            gone = before + time.monotonic() - started
            if step - first == 3:
                mark = gone
            if step - first >= 10 and not planned:
                rate = (step - first - 3) / max(1e-6, gone - mark)
                say(f"{name}: {rate:.2f} steps a second, about {step + int(rate * (seconds - gone)):,} steps planned")
                planned = True
            line = {"step": step, "loss": item, "norm": float(norm), "seconds": round(gone, 1)}
            print(json.dumps(line), file=log, flush=True)
            if step % 200 == 0:
                say(f"{name} {step:,} loss {item:.4f}, {seconds - gone:.0f} s left")
        else:
            gone = before + time.monotonic() - started
        if time.monotonic() - saved > every or gone >= seconds:
            state = {"weights": {n: p.detach() for n, p in parameters.items()}, "average": average, "step": step}
            state |= {"seconds": gone, "optimisers": [o.state_dict() for o in optimisers]}
            torch.save(state, path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
            save(average)
            saved = time.monotonic()
    say(f"{name}: {step:,} steps")
    return average


class Trainer:
    """Everything that the stages share: the parts of the model, the pictures, the captions."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        self.device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
        self.out.mkdir(parents=True, exist_ok=True)
        if args.pictures is not None:
            packs.install(args.pictures)
        self.atlas = self.pictures()
        self.autoencoder()
        self.tokenizer = build_tokenizer()
        ids, mask = tokenize(self.tokenizer, [*captions(), ""])
        self.ids, self.mask = ids.to(self.device), mask.to(self.device)
        torch.manual_seed(0)
        self.channels = int(self.vae.config.z_dim)
        shape = dict(patch_size=(1, args.patch, args.patch), num_layers=args.layers)
        self.model = TextToVideo(self.channels, **shape) if args.init is None else load(args.init)
        self.patch = self.model.transformer.config.patch_size[1]
        self.model.to(self.device)
        self.layers: dict[str, Adapted] = {}

    def pictures(self) -> Atlas:
        args = self.args
        photographs = []
        if args.pictures is not None:
            chosen = packs.load(args.pictures)[:: args.thin]
            for picture in chosen:
                for scale in SCALES:
                    ratio = scale / min(picture.size)
                    size = [max(scale, round(side * ratio)) for side in picture.size]
                    photographs.append(picture.resize(size, Image.Resampling.LANCZOS))
            photographs += [world._scaled(name, scale) for name in world.PHOTOGRAPHS["train"] for scale in SCALES]
        textures = [texture(index, SCALES[index % len(SCALES)]) for index in range(args.textures)]
        say(f"{len(textures)} textures, {len(photographs)} scaled photographs, {self.device}")
        return Atlas(textures, photographs, self.device)

    def autoencoder(self) -> None:
        """The closed form, from clips rendered here, or the one of --autoencoder."""
        args, folder = self.args, self.args.autoencoder or self.out / "linear"
        if not (folder / "linear.pt").exists():
            rng = torch.Generator(self.device).manual_seed(1)
            parts = [batch(min(32, args.fit), self.atlas, rng)[0].cpu() for _ in range(max(1, args.fit // 32))]
            x = torch.cat(parts)
            linear = Linear(x, args.channels, args.whitening)
            z = args.channels
            flat = dict(z_dim=z, latents_mean=[0.0] * z, latents_std=[1.0] * z)
            vae = AutoencoderKLWan(**CONFIG, **flat).eval()
            silence(vae.encoder)
            write_encoder(vae, linear)
            write_decoder(vae, linear, x[: max(8, len(x) // 4)])
            vae.save_pretrained(folder / "vae")
            torch.save(vars(linear), folder / "linear.pt")
        self.linear = Linear.__new__(Linear)
        maps = torch.load(folder / "linear.pt", map_location=self.device, weights_only=True)
        vars(self.linear).update(maps)
        self.vae = AutoencoderKLWan.from_pretrained(folder / "vae").to(self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast(self.device) == torch.bfloat16)

    def compile(self) -> None:
        if self.args.compile:
            if self.device.type == "cpu":  # there the backward of fused attention costs more than all the rest
                self.model.transformer.set_attention_backend("_native_math")
            self.model.transformer.compile_repeated_blocks(fullgraph=True)

    # --- stages -----------------------------------------------------------------------------------------------------

    def decoder(self, seconds: float) -> None:
        args, vae = self.args, self.vae
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
        parameters = {n: p for n, p in vae.named_parameters() if p.requires_grad}
        made = torch.compile(decode) if args.compile else decode

        def loss(step: int, rng: torch.Generator) -> Tensor:
            with torch.no_grad():
                x, _ = batch(args.decoder_batch, self.atlas, rng)
                other = x.roll(1, 0)
                still = torch.rand(len(x), 1, 1, 1, 1, generator=rng, device=x.device) < 0.7
                other = torch.where(still, other[:, :, :1], other)
                first = 1 + 4 * torch.randint(FRAMES - 1, (len(x), 1), generator=rng, device=x.device)
                at = torch.arange(x.shape[2], device=x.device)
                here = (at >= first) & (torch.rand(len(x), 1, generator=rng, device=x.device) < CUTS)
                here &= (at < first + 4) | (torch.rand(len(x), 1, generator=rng, device=x.device) < 0.5)
                x = torch.where(here[:, None, :, None, None], other, x)
                z = self.linear.encode(x)
                z = z + NOISE * torch.randn(z.shape, generator=rng, device=z.device)
            with self.autocast():
                y = made(vae, z)
            return distance(y.float(), x)

        average = train(
            "decoder",
            self.out,
            parameters,
            loss,
            seconds,
            self.device,
            lr=args.decoder_lr,
            muon_lr=args.decoder_muon_lr,
            muon=lambda n: ".resnets." in n and "shortcut" not in n and "norm" not in n,
            every=args.every,
            save=lambda _: None,
        )
        vae.load_state_dict(average, strict=False)
        vae.requires_grad_(False)

    def context(self, which: Tensor, rng: torch.Generator | None = None) -> Tensor:
        if rng is not None:
            drop = torch.rand(len(which), generator=rng, device=which.device) < CAPTION_DROPOUT
            which = torch.where(drop, len(self.ids) - 1, which)
        text = self.model.context(self.ids[which], self.mask[which])
        if self.device.type == "cuda":
            assert self.model.padding.bias is not None
            self.model.padding.bias = self.model.padding.bias.bfloat16()
        return text

    def tokens(self, sigma: Tensor) -> Tensor:
        """sigma [B, F] as stock diffusers takes it: 1000 sigma of every token."""
        return 1000 * sigma.repeat_interleave((SIDE // self.patch) ** 2, 1)

    def base(self, seconds: float) -> None:
        args, model = self.args, self.model
        self.compile()

        def loss(step: int, rng: torch.Generator) -> Tensor:
            with torch.no_grad():
                x, which = batch(args.batch, self.atlas, rng)
                x0 = self.linear.encode(x)
                noise = torch.randn(x0.shape, generator=rng, device=x0.device)
                u = stratified(len(x0), torch.Generator().manual_seed(step)).to(x0.device)
                t = SHIFT * u / (1 + (SHIFT - 1) * u)
            text = self.context(which, rng)
            with self.autocast():
                v = model.transformer(torch.lerp(x0, noise, t.view(-1, 1, 1, 1, 1)), 1000 * t, text, return_dict=False)[
                    0
                ]
            return (v.float() - (noise - x0)).square().mean()

        average = train(
            "base",
            self.out,
            dict(model.named_parameters()),
            loss,
            seconds,
            self.device,
            lr=args.lr,
            muon_lr=args.muon_lr,
            muon=lambda n: "transformer.blocks." in n and n.endswith("weight") and "norm" not in n,
            every=args.every,
            save=lambda average: self.write(average),
        )
        model.load_state_dict(average, strict=False)
        self.write()

    def adapter(self, seconds: float) -> None:
        args, model = self.args, self.model
        if not (self.out / "model" / "model_index.json").exists():
            self.write()  # a base that was trained elsewhere
        model.requires_grad_(False)
        self.layers = adapt(model.transformer, args.rank)
        self.compile()
        parameters = {f"{n}.{k}": getattr(layer, k) for n, layer in self.layers.items() for k in ("a", "b")}

        def loss(step: int, rng: torch.Generator) -> Tensor:
            with torch.no_grad():
                x, which = batch(args.batch, self.atlas, rng)
                x0 = self.linear.encode(x)
                noise = torch.randn(x0.shape, generator=rng, device=x0.device)
                sigma = levels(len(x0), args.tasks, rng)
                wide = sigma[:, None, :, None, None]
                text = self.context(which, rng)
            with self.autocast():
                v = model.transformer(torch.lerp(x0, noise, wide), self.tokens(sigma), text, return_dict=False)[0]
            learnt = (wide > 0).float()
            error = (v.float() - (noise - x0)).square() * learnt
            return error.sum() / (learnt.sum() * x0.shape[1] * SIDE * SIDE)

        average = train(
            "adapter",
            self.out,
            parameters,
            loss,
            seconds,
            self.device,
            lr=args.adapter_lr,
            ema=0.99,
            every=args.every,
            save=self.write_adapter,
        )
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(average[name])
        self.write_adapter(average)

    # --- files ------------------------------------------------------------------------------------------------------

    def write(self, average: dict[str, Tensor] | None = None) -> None:
        """The diffusers folder, float16."""
        model = copy.deepcopy(self.model).cpu()
        if average is not None:
            model.load_state_dict({n: v.cpu() for n, v in average.items()}, strict=False)
        pipeline = WanPipeline(
            tokenizer=self.tokenizer,
            text_encoder=model.text_encoder.half(),
            transformer=model.transformer.half(),
            vae=copy.deepcopy(self.vae).cpu().half(),
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        )
        folder = self.out / "model"
        pipeline.save_pretrained(folder)
        forget_sources(folder)
        told = {"fps": world.FPS, "frames": world.FRAMES, "size": [world.SIZE] * 2, "steps": STEPS}
        (folder / "pusa.json").write_text(
            json.dumps(told | {"guidance": self.args.guidance, "shift": SHIFT}, indent=2) + "\n"
        )

    def write_adapter(self, average: dict[str, Tensor]) -> None:
        write(self.layers, average, self.out / "model" / "pusa.safetensors")

    # --- numbers ----------------------------------------------------------------------------------------------------

    def velocity(self, x: Tensor, sigma: Tensor, which: Tensor) -> Tensor:
        text = self.context(which)
        same = not self.layers or all(layer.scale == 0 for layer in self.layers.values())
        told = 1000 * sigma.amax(1) if same and bool((sigma == sigma[:, :1]).all()) else self.tokens(sigma)
        with self.autocast():
            out: Tensor = self.model.transformer(x, told, text, return_dict=False)[0].float()
        return out

    @torch.no_grad()
    def sample(self, words: Sequence[str], known: Tensor | None = None, slots: Sequence[int] = ()) -> Tensor:
        """Latents for captions, with `slots` held at `known`; Euler, as `recipes/embedded/measure.py` samples."""
        places = {caption: i for i, caption in enumerate([*captions(), ""])}
        which = torch.tensor([places[word] for word in words], device=self.device)
        empty = torch.full_like(which, places[""])
        s = torch.linspace(1, 0, STEPS + 1)
        grid = (SHIFT * s / (1 + (SHIFT - 1) * s)).tolist()
        noise = [
            torch.randn(self.channels, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(i))
            for i in range(len(words))
        ]
        x = torch.stack(noise).to(self.device)
        free = torch.ones(FRAMES, device=self.device)
        if known is not None:
            free[list(slots)] = 0
            x = torch.where(free.view(1, 1, -1, 1, 1) > 0, x, known)
        for now, then in pairwise(grid):
            sigma = (now * free).expand(len(x), -1)
            v = self.velocity(x, sigma, which)
            if self.args.guidance != 1:
                plain = self.velocity(x, sigma, empty)
                v = plain + self.args.guidance * (v - plain)
            x = x + (then - now) * v * free.view(1, 1, -1, 1, 1)
        return x

    @torch.no_grad()
    def frames(self, z: Tensor) -> np.ndarray:
        made = torch.cat([decode(self.vae, part) for part in z.split(16)]).clamp(-1, 1)
        return ((made + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()

    def encode(self, clips: np.ndarray) -> Tensor:
        return self.linear.encode(tensor(clips).to(self.device))

    def strength(self, scale: float) -> None:
        for layer in self.layers.values():
            layer.scale = scale

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """The judge's numbers on held-out scenes, with the base alone and simple baselines beside, and a sheet."""
        count, later = self.args.count, slice(1, None)

        def db(a: np.ndarray, b: np.ndarray) -> float:
            return round(float(20 * np.log10(255) - 10 * np.log10(np.square(a.astype(float) - b).mean())), 3)

        def repeated(clips: np.ndarray, at: int = 0) -> np.ndarray:
            return np.repeat(clips[:, at : at + 1], world.FRAMES, 1)

        numbers: dict[str, Any] = {"clips": count, "guidance": self.args.guidance, "steps": STEPS}
        kinds = ["shape", "camera"] + (["photograph"] if self.args.pictures is not None else [])
        if self.args.pictures is None:  # scikit-image may be missing: textures only
            truth = {"shape": heldout("shape", count), "camera": heldout_textures(count)}
        else:
            truth = {kind: heldout(kind, count) for kind in kinds}
        rows = []
        for kind in kinds:
            clips, scenes = truth[kind]
            z, words = self.encode(clips), [scene.caption for scene in scenes]
            through = self.frames(z)
            row: dict[str, Any] = {
                "autoencoder": db(through, clips),
                "autoencoder_first": db(through[:, :1], clips[:, :1]),
            }
            row["repeated"] = db(repeated(clips)[:, later], clips[:, later])
            for name, scale in (("adapted", 1.0), ("base", 0.0)):
                self.strength(scale)
                made = self.frames(self.sample(words, z, [0]))
                row[name] = db(made[:, later], clips[:, later])
                if kind == "shape":
                    verdicts = [judge.judge(clip) for clip in made]
                    right = [v.motion == s.motion for v, s in zip(verdicts, scenes, strict=True)]
                    free = [judge.judge(clip) for clip in self.frames(self.sample(words))]
                    for key in ("colour", "shape", "motion"):
                        hits = [getattr(v, key) == getattr(s, key) for v, s in zip(free, scenes, strict=True)]
                        row[f"{name}_t2v_{key}"] = round(float(np.mean(hits)), 3)
                else:
                    right = [judge.judge_camera(c) == s.motion for c, s in zip(made, scenes, strict=True)]
                row[f"{name}_motion"] = round(float(np.mean(right)), 3)
                if scale:
                    for pair in zip(clips[:2], made[:2], strict=True):
                        rows += list(pair)
            self.strength(1.0)
            still = np.concatenate([clips[:, :1], np.repeat(clips[:, -1:], 4, 1)], 1)
            ends = z.clone()
            ends[:, :, -1] = self.encode(still)[:, :, -1]
            made = self.frames(self.sample(words, ends, [0, 4]))
            weight = np.linspace(0, 1, world.FRAMES)[None, :, None, None, None]
            fade = (1 - weight) * clips[:, :1] + weight * clips[:, -1:]
            row["start_end"], row["cross_fade"] = db(made[:, 4:13], clips[:, 4:13]), db(fade[:, 4:13], clips[:, 4:13])
            row["last_given"] = db(made[:, -1], clips[:, -1])
            rows += list(made[:1])
            made = self.frames(self.sample(words, z, [0, 1, 2]))
            row["extension"], row["frozen"] = db(made[:, 9:], clips[:, 9:]), db(repeated(clips, 8)[:, 9:], clips[:, 9:])
            numbers[kind] = row
            say(f"{kind}: {row}")
        Image.fromarray(world.contact_sheet(rows)).save(self.out / "sheet.png")
        (self.out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
        return numbers


def heldout_textures(count: int) -> tuple[np.ndarray, list[world.Scene]]:
    """Held-out camera clips over textures only."""
    scenes = []
    for seed in range(count):
        rng = np.random.default_rng([seed, 1])
        motion = str(rng.choice(list(world.CAMERA_MOTIONS)))
        scenes.append(world.CameraScene(f"texture{world.TEXTURES + seed}", motion, 112, 56.0, 56.0))
    return np.stack([world.render(scene) for scene in scenes]), scenes  # type: ignore[return-value]


def shares(text: str) -> dict[str, float]:
    """independent=0.5,image-to-video=0.5"""
    return {name: float(share) for name, share in (part.split("=") for part in text.split(","))}


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="wall clock of the whole command")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/gpu"))
    parser.add_argument("--pictures", type=Path, help="the pack of pictures.py; without it textures only")
    parser.add_argument("--autoencoder", type=Path, help="a folder of linear.py or decoder.py with linear.pt and vae/")
    parser.add_argument("--init", type=Path, help="begin with the base of this folder, and its shape")
    parser.add_argument("--stages", default="decoder,base,adapter", help="of these; empty: only measure")
    parser.add_argument("--tasks", type=shares, default=TASKS, help="shares of the adapter's rows")
    parser.add_argument("--patch", type=int, default=2, help="latent pixels of a token along a side")
    parser.add_argument("--channels", type=int, default=CHANNELS, help="of the latents: 8, 12 or 16")
    parser.add_argument("--whitening", type=float, default=WHITENING, help="of the latents, see linear.py")
    parser.add_argument("--layers", type=int, default=TRANSFORMER["num_layers"])
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--decoder-batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--decoder-lr", type=float, default=1e-4)
    parser.add_argument("--decoder-muon-lr", type=float, default=0.002)
    parser.add_argument("--adapter-lr", type=float, default=2e-3)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--textures", type=int, default=1536)
    parser.add_argument("--thin", type=int, default=1, help="take every so-manieth picture of the pack")
    parser.add_argument("--fit", type=int, default=512, help="clips that the closed form is fitted to")
    parser.add_argument("--count", type=int, default=64, help="held-out scenes of each kind")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="all of it at toy size, on a CPU")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args(None if argv is None else list(argv))
    started = time.monotonic()
    if args.smoke:
        args.cpu, args.compile, args.minutes = True, False, min(args.minutes, 0.5)
        args.layers, args.rank, args.batch, args.decoder_batch, args.textures = 2, 4, 4, 1, 6
        args.thin, args.fit, args.count, args.every = 60, 12, 2, 5.0
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    trainer = Trainer(args)
    stages = [stage for stage in args.stages.split(",") if stage]
    total = 60 * args.minutes * (1 - RESERVE)
    whole = sum(SHARES[stage] for stage in stages)
    for stage in stages:
        getattr(trainer, stage)(total * SHARES[stage] / whole)
    trainer.measure()
    if torch.cuda.is_available():
        say(f"most memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    say(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
