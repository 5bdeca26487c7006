"""Wrong usage is one sentence that says what to write, in the form of all other messages."""

from __future__ import annotations

import pytest

from pusa.cli import main


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("extend", "pusa extend needs CLIP; pusa extend --help shows how to give it."),
        ("transition a.mp4", "pusa transition needs B; pusa transition --help shows how to give it."),
        ("vbench generate m.jsonl", "pusa vbench generate needs --images; pusa vbench generate --help shows"),
        ("generate x --steps", "--steps has no value; write one after it, or leave --steps out."),
        ("generate x --steps --seed 3", "--steps has no value; write one after it, or leave --steps out."),
        ("generate x --image -o a.mp4", "--image has no value; write one after it, or leave --image out."),
        ("generate x --image -a.png", "--image has no value, because -a.png begins with a dash; write --image=-a.png."),
        ("generate x --steps abc", "--steps: 'abc' is not a whole number; write for example 9."),
        ("generate x --guidance abc", "--guidance is 'abc': give a number."),
        ("generate x --fit zoom", "--fit is 'zoom': choose crop, pad or stretch."),
        ("generate x --nois", "pusa generate has no option --nois; did you mean --noise?"),
        ("generate x --qqqqqqqq", "pusa generate has no option --qqqqqqqq; pusa generate --help lists all."),
        ("generat x", "There is no command 'generat'; did you mean generate?"),
        ("qqq", "There is no command 'qqq'; choose generate, extend, transition,"),
        ("generate a b", "'b' is an unexpected argument; put a prompt of several words in quotes."),
        ("generate x --seed 1 --seed 2", "--seed is given more than once; give it once."),
    ],
)
def test_wrong_usage_is_a_sentence(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pusa: {says}")
    assert said.count("\n") == 1
