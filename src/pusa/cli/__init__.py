"""The command line. One file per verb; a verb's typed signature is its interface.

A verb is registered by name and imported when it is used. No verb imports torch at the top of its file, so `--help` is
fast. `main` turns every outcome into an exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from pusa import __version__
from pusa.cli.shared.flag_aliases import renamed, translate
from pusa.cli.shared.help_formatter import HelpFormatter
from pusa.cli.shared.ranks import as_one_command, first_to_fail
from pusa.cli.shared.terminal import Report, print_anything, print_json, printable
from pusa.errors import Adjustment, PusaError, sentence

VERBS = {
    "generate": "Make a clip from a prompt and from pictures or clips at any frames.",
    "extend": "Continue a clip forwards or backwards.",
    "transition": "Join two clips with new frames between them.",
    "serve": "Answer requests for clips over HTTP, with a queue that survives restarts.",
    "ui": "Open the page on which clips are made, with the server behind it.",
    "calibrate": "Measure the accelerations on a model and this machine.",
    "demo": "Run every task on real input and write an HTML page with the results.",
    "check": "Check the clips of a folder and estimate the memory and time of a training.",
    "prepare": "Encode the clips and captions of a folder once, for all trainings.",
    "train": "Train an adapter on a folder of clips.",
    "export": "Convert a LoRA for other programs, reduce its rank, or merge it into a model.",
    "evaluate": "Measure the quality of clips, from this or any other program.",
    "benchmark": "Score models on every task of the synthetic world.",
    "inspect": "Inspect a model: attention between frames, and the change of weights.",
    "reproduce": "Train and score the paper's comparisons on the embedded model.",
    "vbench": "VBench-I2V: make the videos, run the official scorer, compute the total.",
    "physics-iq": "Physics-IQ: make the videos and score them.",
    "info": "Show versions, the device, or the properties of a model.",
}
GROUPS: dict[str, tuple[str, ...]] = {
    "inspect": ("attention", "weights"),
    "physics-iq": ("generate", "score"),
    "vbench": ("manifest", "generate", "verify", "score", "total"),
}
"""The verbs that are a group of commands, such as `pusa vbench total`."""
GO_ON = {("train",), ("prepare",), ("benchmark",), ("reproduce",), ("vbench", "generate"), ("physics-iq", "generate")}
"""The commands that keep what they have done when they are interrupted. A batch file does so, too."""


app = App(
    name="pusa",
    help="Make video from text, images and clips. Every frame of a clip has its own timestep.",
    version=__version__,
    help_format="plaintext",
    help_formatter=HelpFormatter(),
    help_epilogue="""Start with `pusa demo`, or `pusa generate "a red circle moves left on a black background"`.""",
    suppress_keyboard_interrupt=False,
)
for _position, (_verb, _help) in enumerate(VERBS.items()):
    _module = _verb.replace("-", "_")
    _options = {} if _verb in GROUPS else {"help_epilogue": ""}
    app.command(f"pusa.cli.{_module}:{_module}", name=_verb, help=_help, sort_key=_position, **_options)

app.register_install_completion_command(
    help="Install the completion of commands and options for this shell (bash, zsh, fish).", show=False
)


def run(tokens: Sequence[str]) -> Report | None:
    """Run one command line in this process and return its report, or None if it only printed help.

    Raises an error instead of printing it: `CycloptsError` for wrong usage, else `PusaError`.
    """
    tokens, notes = renamed(translate(tokens))
    if not {"--json", "--quiet", "-q"} & set(tokens):
        for note in notes:
            print(f"pusa: {note}", file=sys.stderr)
    result: Report | None = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    return result


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the console command, print its report or its error, and return the exit code."""
    tokens = sys.argv[1:] if tokens is None else tokens
    as_json = "--json" in tokens
    print_anything()
    _show_warnings_as_notes()
    try:
        with as_one_command(tokens):
            report = run(tokens)
            if report:
                report.print(as_json)
        return report.exit_code if report else 0
    except BrokenPipeError:  # `pusa … | head` has closed the pipe; Python must not flush to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        message, code = explain(error)
        if isinstance(error, KeyboardInterrupt):
            message = f"{message} {_what_remains(tokens)}".rstrip()
        if (reported_code := first_to_fail(code)) is not None:
            return reported_code
        if "--debug" in tokens or os.environ.get("PUSA_DEBUG", "0") not in ("", "0"):
            import traceback

            traceback.print_exc()
        details = error.details if isinstance(error, PusaError) else ()
        if as_json:
            listed = {"details": details} if details else {}
            print_json({"error": {"message": message, **listed, "exit_code": code}})
        first = error.summary if isinstance(error, PusaError) else message
        print("\n  ".join(map(printable, [f"pusa: {first}", *details])), file=sys.stderr)
        return code


def _what_remains(tokens: Sequence[str]) -> str:
    """Return a sentence that says whether the same command goes on after Ctrl-C."""
    words = [token for token in tokens if not token.startswith("-")]
    if tuple(words[:1]) in GO_ON or tuple(words[:2]) in GO_ON or any(t.split("=")[0] == "--prompts" for t in tokens):
        return "The same command goes on with what is missing."
    if words[:1] and words[0] in ("generate", "extend", "transition"):
        return "The clip was not saved; the same command begins it again. Clips that were saved before stay."
    return ""


_CHATTY = ("bitsandbytes", "torchao", "diffusers.quantizers", "torch.utils._pytree")
"""Libraries that log, when diffusers imports them, what they lack here and pusa does not use."""


def _show_warnings_as_notes() -> None:
    """Print the warnings of pusa on stderr, and hide those of libraries, which address programmers."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", category=UserWarning, module=r"pusa\.")
    warnings.filterwarnings("ignore", category=Adjustment)  # commands print them before the model is loaded
    warnings.showwarning = lambda message, *_: print(f"pusa: {printable(str(message))}", file=sys.stderr)
    for library in _CHATTY:
        logging.getLogger(library).setLevel(logging.ERROR)


def explain(error: BaseException) -> tuple[str, int]:
    """Return the message for an exception, one sentence on each line, and the exit code."""
    if isinstance(error, CycloptsError):
        from pusa.cli.shared.usage import usage

        return usage(error), 2
    if isinstance(error, PusaError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; no file is half written.", 130
    if "gloo" in str(error) or type(error).__name__ in ("DistBackendError", "DistNetworkError"):
        return "another process ended without an error message; it may have been killed for lack of memory.", 1
    return sentence(error), 1
