"""The command line. One file per verb; a verb's typed signature is its interface.

Verbs are registered by name and imported when they are used, and none of them imports torch at the top of its file, so
`--help` answers at once. `main` turns every outcome into an exit code: 0 done, 1 failed, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.exceptions import RepeatArgumentError, UnusedCliTokensError

from pusa import __version__
from pusa.cli.shared.flag_aliases import renamed, translate
from pusa.cli.shared.ranks import first_to_fail, together
from pusa.cli.shared.terminal import Report, printable
from pusa.errors import PusaError

VERBS = {
    "generate": "Make a clip from a prompt and from pictures or clips at any frames.",
    "extend": "Go on with a clip, forwards or backwards.",
    "transition": "Join two clips with new frames between them.",
    "demo": "Run every task on real input and write a page that shows them.",
    "check": "Say what clips a folder holds, what becomes of them, and what a training will take.",
    "prepare": "Encode the clips and captions of a folder once, for training.",
    "train": "Train an adapter from a folder of clips.",
    "export": "Write a LoRA for other programs, at a lower rank, or merged into a model.",
    "evaluate": "Measure clips of any program.",
    "benchmark": "Score models on every task of the synthetic world.",
    "inspect": "Look inside a model: attention between frames, and how far weights moved.",
    "reproduce": "Train and score the paper's comparisons on the embedded model.",
    "vbench": "VBench-I2V: make its videos, run the official scorer, add its results up.",
    "physics-iq": "Physics-IQ: make its videos, and score them.",
    "info": "Show versions, the device, and what a model is.",
}
GROUPS: dict[str, tuple[str, ...]] = {
    "inspect": ("attention", "weights"),
    "physics-iq": ("generate", "score"),
    "vbench": ("manifest", "generate", "verify", "score", "total"),
}
"""The verbs that are a group of commands: `pusa vbench total`."""


app = App(
    name="pusa",
    help="Every frame of a clip has its own timestep: text, images and clips become video with one call.",
    version=__version__,
    help_format="plaintext",
    help_epilogue="""Start with `pusa demo`, or `pusa generate "a red circle moves left on a black background"`.""",
    suppress_keyboard_interrupt=False,
)
for _place, (_verb, _help) in enumerate(VERBS.items()):
    _module = _verb.replace("-", "_")
    _told = {} if _verb in GROUPS else {"help_epilogue": ""}
    app.command(f"pusa.cli.{_module}:{_module}", name=_verb, help=_help, sort_key=_place, **_told)


def run(tokens: Sequence[str]) -> Report | None:
    """Run one command line in this process and return what it did; None when it only printed help.

    Raises what went wrong instead of printing it: `PusaError`, or `CycloptsError` for wrong usage.
    """
    tokens, notes = renamed(translate(tokens))
    if not {"--json", "--quiet", "-q"} & set(tokens):
        for note in notes:
            print(f"pusa: {note}", file=sys.stderr)
    result: Report | None = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    return result


def main(tokens: Sequence[str] | None = None) -> int:
    """The console command: run, print, and return the exit code."""
    tokens = sys.argv[1:] if tokens is None else tokens
    as_json = "--json" in tokens
    _show_warnings_as_notes()
    try:
        with together(tokens):
            report = run(tokens)
            if report:
                report.print(as_json)
        return report.exit_code if report else 0
    except BrokenPipeError:  # `pusa … | head`: what read the output wants no more, and nor shall Python's last flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        sentence, code = explain(error)
        if (said := first_to_fail(code)) is not None:
            return said
        if "--debug" in tokens or os.environ.get("PUSA_DEBUG", "0") not in ("", "0"):
            import traceback

            traceback.print_exc()
        if as_json:
            import json

            print(json.dumps({"error": {"message": sentence, "exit_code": code}}, ensure_ascii=False))
        print(f"pusa: {printable(sentence)}", file=sys.stderr)
        return code


def _show_warnings_as_notes() -> None:
    """Our own warnings are for the person at the keyboard; those of libraries are for programmers."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", category=UserWarning, module=r"pusa\.")
    warnings.showwarning = lambda message, *_: print(f"pusa: {message}", file=sys.stderr)


def explain(error: BaseException) -> tuple[str, int]:
    """An exception as one sentence and an exit code."""
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        extra = " ".join(error.unused_tokens)
        return f"{extra!r} is one argument too many; a prompt of several words goes in quotes.", 2
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given more than once; keep the one that is meant.", 2
    if isinstance(error, CycloptsError):
        return str(error), 2
    if isinstance(error, PusaError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; no file was left half written.", 130
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}.", 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; use fewer --frames, a smaller --size, or close other programs.", 1
    if "gloo" in str(error) or type(error).__name__ in ("DistBackendError", "DistNetworkError"):
        return "another process ended without a word; it may have been killed because memory ran out.", 1
    summary = str(error).strip().splitlines()
    detail = f"{type(error).__name__}: {summary[0]}" if summary else type(error).__name__
    return f"{detail} (unexpected: run again with --debug to see where it comes from).", 1
