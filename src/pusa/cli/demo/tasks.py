"""The tasks of the demo: for each task, its command line, its input files, and what the page shows with its clip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile

from PIL import Image as PILImage

from pusa import embedded
from pusa.embedded import world
from pusa.files import write_text_atomic
from pusa.media.images import Frames, fit, read_image, write_image
from pusa.media.videos import write_video

ADDED, OVERLAP, LENGTH = 12, 5, world.FRAMES
"""Pixel frames that an extension adds, of its overlap, and of a clip of the embedded model."""
ASSETS = Path(embedded.__file__).parent / "assets"
DENSITIES = {"photo.png": 2.0, "coffee.png": 1.0, "rocket.png": 1.0}
"""Pixels of each photograph along a pixel of the clips that move over it."""


@dataclass(frozen=True)
class Task:
    """A command line and what the page shows with its clip.

    tokens: the command line without `pusa`. given: {column of the matrix: (frames, uint8 [n, H, W, 3]; caption)}.
    first_slot: the latent slot of the clip at which the matrix begins. truth: the frames that a perfect model makes, if
    they are known.
    """

    title: str
    explanation: str
    tokens: Sequence[str]
    given: Mapping[int, tuple[Frames, str]] = field(default_factory=dict)
    first_slot: int = 0
    truth: Frames | None = None


class Scene:
    """A scene whose true frames are known. Its methods write frames of it as files.

    caption: a prompt of the synthetic world. frames: uint8 [N, 64, 64, 3]. name: the path of the files without suffix.
    """

    def __init__(self, caption: str, frames: Frames, name: Path) -> None:
        self.caption, self.frames, self.name = caption, frames, name

    @classmethod
    def of_shape(cls, seed: int, folder: Path, frames: int = LENGTH) -> Scene:
        """A held-out shape of the synthetic world."""
        scene = world.sample(seed, "heldout", "shape")
        assert isinstance(scene, world.ShapeScene)
        return cls(scene.caption, world.render(scene, frames), folder / f"{scene.colour}-{scene.shape}")

    @classmethod
    def of_camera(
        cls, picture: str, motion: str, centre: tuple[float, float], folder: Path, frames: int = LENGTH
    ) -> Scene:
        """A camera over a held-out photograph of the package. centre: of frame 0, in pixels of the clip."""
        pixels = PILImage.fromarray(read_image(ASSETS / picture))
        caption = f"the camera {world.CAMERA_MOTIONS[motion]} over a photograph"
        made = world.film(pixels, motion, *centre, frames, DENSITIES[picture])
        return cls(caption, made, folder / f"{Path(picture).stem}-{motion}")

    def picture(self, frame: int) -> str:
        """Write one frame and return the path of the file."""
        path = self.name.with_name(f"{self.name.name}-{frame}.png")
        write_image(path, self.frames[frame])
        return str(path)

    def clip(self, begin: int = 0, end: int | None = None) -> str:
        """Write the frames from `begin` up to `end`, without it, and return the path of the file."""
        part = self.frames[begin:end]
        suffix = "" if len(part) == len(self.frames) else f"-{begin}-to-{begin + len(part) - 1}"
        path = self.name.with_name(f"{self.name.name}{suffix}.mp4")
        write_video(path, part, world.FPS)
        return str(path)

    def shown(self, *numbers: int) -> dict[int, tuple[Frames, str]]:
        """Return single frames by the column of the matrix to which they belong, as in `Task.given`."""
        return {-(-n // 4): (self.frames[n : n + 1], f"frame {n}") for n in numbers}


def tasks(folder: Path) -> list[Task]:
    """Return all tasks, and write their input files into `folder`."""
    photo = folder / "photo.png"
    copyfile(ASSETS / "photo.png", photo)
    small = fit(read_image(photo), (world.SIZE, world.SIZE))[None]
    _write_batch(folder)
    return [
        Task(
            "Text to video",
            "Only the prompt is given. All latent frames go from noise to clean together.",
            ["generate", "a red circle moves left on a black background"],
        ),
        *_photograph_tasks(folder, photo, small),
        *_shape_tasks(folder),
        Task(
            "Noise multiplier",
            "The same photograph with the noise multiplier 0.4. Its column starts at 0.4 times the noise, so the model "
            "may change the photograph a little.",
            ["generate", "the camera pans right over a photograph", "--image", str(photo), "--noise", "0.4"],
            {0: (small, "frame 0, noise 0.4")},
        ),
    ]


def _write_batch(folder: Path) -> None:
    """Write `clips.jsonl`, a batch file for `pusa generate --prompts`. Its pictures are those of the tasks."""
    lines = [
        {"prompt": "a red circle moves left on a black background", "seed": 1, "name": "circle"},
        {"prompt": "the camera zooms in over a photograph", "image": "photo.png", "name": "photo"},
        {
            "prompt": "a magenta square moves left on a black background",
            "image": "magenta-square-0.png",
            "keyframe": ["magenta-square-8.png@8,noise=0.2"],
            "steps": 6,
            "name": "square",
        },
    ]
    write_text_atomic(folder / "clips.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _image_to_video(title: str, explanation: str, scene: Scene) -> Task:
    tokens = ["generate", scene.caption, "--image", scene.picture(0)]
    return Task(title, explanation, tokens, scene.shown(0), truth=scene.frames)


def _start_end(title: str, explanation: str, scene: Scene) -> Task:
    tokens = ["generate", scene.caption, "--image", scene.picture(0), "--last-image", scene.picture(16)]
    return Task(title, explanation, tokens, scene.shown(0, 16), truth=scene.frames)


def _extension(title: str, explanation: str, scene: Scene) -> Task:
    tokens = ["extend", scene.clip(0, LENGTH), scene.caption]
    given = {0: (scene.frames[12:13], "frame 12"), 1: (scene.frames[13:17], "13–16")}
    return Task(title, explanation, tokens, given, first_slot=3, truth=scene.frames)


def _photograph_tasks(folder: Path, photo: Path, small: Frames) -> list[Task]:
    """small: the frame that the photograph `photo` becomes."""
    zoomed = world.film(PILImage.fromarray(read_image(photo)), "in", world.SIZE / 2, world.SIZE / 2, density=4.0)
    right = Scene.of_camera("coffee.png", "right", (76.0, 56.0), folder)
    up = Scene.of_camera("rocket.png", "up", (84.0, 64.0), folder)
    ends = Scene.of_camera("coffee.png", "left", (92.0, 56.0), folder)
    longer = Scene.of_camera("photo.png", "right", (50.0, 64.0), folder, LENGTH + ADDED)
    return [
        Task(
            "Image to video",
            "The first frame is a photograph that was not in the training data. Its column is clean from the first "
            "step, and the prompt says how the camera moves. The later frames keep the picture and lose fine detail.",
            ["generate", "the camera zooms in over a photograph", "--image", str(photo)],
            {0: (small, "frame 0")},
            truth=zoomed,
        ),
        _image_to_video(
            "Image to video, panning right",
            "The model makes up what comes into view at the right border. The truth shows the real photograph there.",
            right,
        ),
        _image_to_video(
            "Image to video, panning up",
            "The same with another photograph and another prompt. The model makes spots in the plain sky.",
            up,
        ),
        _start_end(
            "Start and end, a photograph",
            "Two crops of a photograph are given, and the camera moves from the first to the second.",
            ends,
        ),
        _extension(
            "Extension, a photograph",
            "The end of a clip with a panning camera is given, and the model continues it.",
            longer,
        ),
    ]


def _shape_tasks(folder: Path) -> list[Task]:
    image, last = Scene.of_shape(16, folder), Scene.of_shape(26, folder)
    ends, keys = Scene.of_shape(35, folder), Scene.of_shape(38, folder)
    parts, edited = Scene.of_shape(25, folder), Scene.of_shape(29, folder)
    longer, earlier = Scene.of_shape(39, folder, LENGTH + ADDED), Scene.of_shape(34, folder, LENGTH + ADDED)
    joined = Scene.of_shape(12, folder, 25)
    return [
        _image_to_video(
            "Image to video, a shape",
            "The first frame and the prompt determine all other frames, so the result can be compared with the truth.",
            image,
        ),
        Task(
            "Last frame",
            "The last frame is given, and the clip ends with it.",
            ["generate", last.caption, "--last-image", last.picture(16)],
            last.shown(16),
            truth=last.frames,
        ),
        _start_end(
            "Start and end",
            "The first and the last frame are given, and the model makes the frames between them.",
            ends,
        ),
        Task(
            "Keyframes",
            "Pictures are given at any frames, here at the first, the ninth and the last.",
            [
                *("generate", keys.caption, "--image", keys.picture(0)),
                *("--keyframe", f"{keys.picture(8)}@8", "--keyframe", f"{keys.picture(16)}@-1"),
            ],
            keys.shown(0, 8, 16),
            truth=keys.frames,
        ),
        _extension(
            "Extension",
            "The end of a clip is given, and the model continues it. The clip and the new frames are decoded together.",
            longer,
        ),
        Task(
            "Extension backwards",
            "The beginning of a clip is given, and the model makes the frames before it. The given frames are at the "
            "end of the matrix.",
            ["extend", earlier.clip(ADDED), earlier.caption, "--backward"],
            {4: (earlier.frames[13:17], "13–16")},
            truth=earlier.frames,
        ),
        Task(
            "Completion",
            "The first five and the last four frames are kept, and the model makes the frames between them.",
            [
                *("generate", parts.caption, "--video", f"{parts.clip()},frames=5"),
                *("--video", f"{parts.clip()}@-1,start=-4"),
            ],
            {
                0: (parts.frames[:1], "frame 0"),
                1: (parts.frames[1:5], "1–4"),
                4: (parts.frames[13:], "13–16"),
            },
            truth=parts.frames,
        ),
        Task(
            "Transition",
            "Two clips are given, and the model makes the frames that join them.",
            ["transition", joined.clip(0, 9), joined.clip(16), joined.caption],
            {
                0: (joined.frames[4:5], "frame 4"),
                1: (joined.frames[5:9], "5–8"),
                4: (joined.frames[17:21], "17–20"),
            },
            first_slot=1,
            truth=joined.frames,
        ),
        Task(
            "Editing",
            "Noise is added to a whole clip, and the model removes it with another prompt.",
            [
                *("generate", edited.caption.replace("green", "red"), "--edit", edited.clip()),
                *("--strength", "0.8"),
            ],
            {slot: (edited.frames[max(0, 4 * slot - 3) : 4 * slot + 1], "") for slot in range(5)},
        ),
    ]
