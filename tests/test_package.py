"""The front door: what `import pusa` offers, and what it must not cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pusa
from pusa.errors import Cancelled, InputError, PusaError


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, pusa; pusa.InputError; dir(pusa); sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [n for n in pusa.__all__ if n != "__version__"])
def test_public_names_resolve(name: str) -> None:
    assert getattr(pusa, name).__name__ == name
    assert name in dir(pusa)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Generate'"):
        _ = pusa.Generate


def test_errors_carry_the_exit_code_of_the_command_line() -> None:
    assert (PusaError.exit_code, InputError.exit_code, Cancelled.exit_code) == (1, 2, 130)
    assert issubclass(InputError, ValueError)
