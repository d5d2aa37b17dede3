"""The command line in this process, as the tests of every command call it."""

from __future__ import annotations

import pytest

from ffr.cli.main import main


@pytest.fixture
def ffr(capsys):
    """Runs `ffr WORDS...`; gives exit code, standard output, standard error."""

    def call(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
