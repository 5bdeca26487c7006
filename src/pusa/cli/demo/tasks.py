"""The tasks of the demo: each a command line, the files that it needs, and what to show beside its clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile

from pusa import embedded
from pusa.embedded import world
from pusa.images import Frames, fit, read_image, write_image
from pusa.videos import write_video

ADDED, OVERLAP, LENGTH = 12, 5, world.FRAMES
"""pixel frames: what an extension adds, the part of the given clip that it sees, and a clip of the embedded model"""


@dataclass(frozen=True)
class Task:
    """A command line and what to show beside its clip.

    given: {column of the matrix: (frames [n, H, W, 3], caption)}. first_slot: the clip's latent slot at which the
    matrix begins. truth: the frames that a perfect model would make, where there is such a thing.
    """

    title: str
    explanation: str
    tokens: Sequence[str]
    given: Mapping[int, tuple[Frames, str]] = field(default_factory=dict)
    first_slot: int = 0
    truth: Frames | None = None


class Scene:
    """A held-out scene of the world whose frames can be written as files into a folder."""

    def __init__(self, seed: int, folder: Path, frames: int = LENGTH) -> None:
        scene = world.sample(seed, "heldout", "shape")
        assert isinstance(scene, world.ShapeScene)
        self.caption = scene.caption
        self.frames = world.render(scene, frames)
        self.name = folder / f"{scene.colour}-{scene.shape}"

    def picture(self, frame: int) -> str:
        """The file of one frame."""
        path = self.name.with_name(f"{self.name.name}-{frame}.png")
        write_image(path, self.frames[frame])
        return str(path)

    def clip(self, begin: int = 0, end: int | None = None) -> str:
        """The file of the frames from `begin` up to `end`."""
        part = self.frames[begin:end]
        suffix = "" if len(part) == len(self.frames) else f"-{begin}-to-{begin + len(part) - 1}"
        path = self.name.with_name(f"{self.name.name}{suffix}.mp4")
        write_video(path, part, world.FPS)
        return str(path)

    def shown(self, *numbers: int) -> dict[int, tuple[Frames, str]]:
        """Single frames over the columns that hold them."""
        return {-(-n // 4): (self.frames[n : n + 1], f"frame {n}") for n in numbers}


def tasks(folder: Path) -> list[Task]:
    """All tasks, with their input files written into `folder`."""
    photo = folder / "photo.png"
    copyfile(Path(embedded.__file__).parent / "assets" / "photo.png", photo)
    small = fit(read_image(photo), (world.SIZE, world.SIZE))[None]
    return [
        Task(
            "Text to video",
            "Nothing is given but the words: every latent frame runs from noise to clean, all at the same pace.",
            ["generate", "a red circle moves left on a black background"],
        ),
        Task(
            "Image to video",
            "The first frame is a photograph the model never saw. Its column is clean from the first step. What "
            "follows dissolves: photographs are more than this small model has learnt.",
            ["generate", "the camera zooms in over a photograph", "--image", str(photo)],
            {0: (small, "frame 0")},
        ),
        *_shape_tasks(folder),
        Task(
            "Noise multiplier",
            "The same photograph, held loosely: its column starts at 0.4 times the noise and may change that much.",
            ["generate", "the camera pans right over a photograph", "--image", str(photo), "--noise", "0.4"],
            {0: (small, "frame 0, noise 0.4")},
        ),
    ]


def _shape_tasks(folder: Path) -> list[Task]:
    image, last = Scene(16, folder), Scene(26, folder)
    ends, keys = Scene(35, folder), Scene(38, folder)
    parts, edited = Scene(25, folder), Scene(29, folder)
    longer, earlier = Scene(39, folder, LENGTH + ADDED), Scene(34, folder, LENGTH + ADDED)
    joined = Scene(12, folder, 25)
    return [
        Task(
            "Image to video, a shape",
            "First frame and words determine the rest, so the result can be compared with the truth.",
            ["generate", image.caption, "--image", image.picture(0)],
            image.shown(0),
            truth=image.frames,
        ),
        Task(
            "Last frame",
            "The clip has to arrive at a given picture.",
            ["generate", last.caption, "--last-image", last.picture(16)],
            last.shown(16),
            truth=last.frames,
        ),
        Task(
            "Start and end",
            "Both ends are given and the model finds the way.",
            ["generate", ends.caption, "--image", ends.picture(0), "--last-image", ends.picture(16)],
            ends.shown(0, 16),
            truth=ends.frames,
        ),
        Task(
            "Keyframes",
            "Pictures at any frames, here the first, the ninth and the last.",
            [
                *("generate", keys.caption, "--image", keys.picture(0)),
                *("--keyframe", f"{keys.picture(8)}@8", "--keyframe", f"{keys.picture(16)}@-1"),
            ],
            keys.shown(0, 8, 16),
            truth=keys.frames,
        ),
        Task(
            "Extension",
            "The end of a clip is known and the model goes on. Clip and new frames are decoded as one.",
            ["extend", longer.clip(0, LENGTH), longer.caption],
            {0: (longer.frames[12:13], "frame 12"), 1: (longer.frames[13:17], "13–16")},
            first_slot=3,
            truth=longer.frames,
        ),
        Task(
            "Extension backwards",
            "What happened before? The beginning of a clip is known and stands at the end of the matrix.",
            ["extend", earlier.clip(ADDED), earlier.caption, "--backward"],
            {4: (earlier.frames[13:17], "13–16")},
            truth=earlier.frames,
        ),
        Task(
            "Completion",
            "The first five frames and the last four are kept, the part between is made anew.",
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
            "Two clips are joined by frames that lead from one to the other.",
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
            "A whole clip is noised part of the way and made clean again under other words.",
            [
                *("generate", edited.caption.replace("green", "red"), "--edit", edited.clip()),
                *("--strength", "0.8"),
            ],
            {slot: (edited.frames[max(0, 4 * slot - 3) : 4 * slot + 1], "") for slot in range(5)},
        ),
    ]
