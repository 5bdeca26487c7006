"""An acceleration's text is its policies, and a wrong text is one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pusa.acceleration.names import POLICIES, Acceleration
from pusa.errors import InputError


@pytest.mark.parametrize("name", POLICIES)
def test_a_name_alone_has_its_defaults_and_reads_itself_again(name: str) -> None:
    read = Acceleration.parse(name)
    assert Acceleration.parse(str(read)) == read
    assert dict(read.parts[0][1]) == {key: one.default for key, one in POLICIES[name].items()}


def test_spaces_several_policies_and_shares() -> None:
    joined = Acceleration.parse(" steps , threshold = 0.2 + held,every=3")
    assert str(joined) == "steps,threshold=0.2,first=0.2+held,every=3"
    assert Acceleration.parse(str(Acceleration.parse("uniform,every=1000000"))).parts[0][1]["every"] == 1000000
    assert Acceleration.parse("tokens,share=1/0.5/0.25").parts[0][1] == {"share": (1.0, 0.5, 0.25)}
    by_frame = Acceleration.parse("tokens,share=1/0:0.5:0.25")
    assert by_frame.parts[0][1] == {"share": (1.0, (0.0, 0.5, 0.25))}
    assert Acceleration.parse(str(by_frame)) == by_frame


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("step", "'step' is unknown: did you mean 'steps'"),
        ("", "has an empty part: choose steps, frames"),
        ("steps+", "'steps+' has an empty part"),
        ("steps,limit=1", "unknown part 'limit=1': steps takes threshold=…, first=…"),
        ("steps,threshold", "has threshold without a value: write threshold=, a number from 0"),
        ("steps,threshold=-1", "threshold=-1: give a number from 0"),
        ("steps,threshold=nan", "threshold=nan: give a number"),
        ("held,every=0", "every=0: give a number of steps, at least 1"),
        ("held,every=1.5", "every=1.5: give"),
        ("held,every=2,every=3", "gives every twice"),
        ("tokens,share=1.5", "share=1.5: give a share from 0 to 1"),
        ("tokens,share=1/0.5:", "share=1/0.5:: give a share from 0 to 1"),
        ("tokens+held", "joins tokens with others: it runs alone"),
        ("held+held,every=2", "has a policy twice"),
    ],
)
def test_wrong_texts(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        Acceleration.parse(text)
    assert sentence in str(error.value)


def test_reading_a_name_needs_no_torch() -> None:
    code = "import sys, pusa.acceleration.names as n; n.Acceleration.parse('steps'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
