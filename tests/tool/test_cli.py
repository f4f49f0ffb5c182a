"""How a command ends: one line that says what this command can do about it."""

import pytest
import torch

from tool.shared import cli


@pytest.mark.fast
@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError(), 2, "error: out of memory: no more is said; use a smaller --size"),
        (MemoryError("Unable to allocate 112. GiB"), 2, "112. GiB; use a smaller --size"),
        (torch.OutOfMemoryError("CUDA out of memory.\nIn detail"), 2, "CUDA out of memory; use a smaller --size"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
    ],
)
def test_what_to_do_is_the_command_s_own(error, status, said, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.command(main, on_memory="use a smaller --size", on_interrupt="goes on")
    message = capsys.readouterr().err
    assert end.value.code == status and said in message and message.count("\n") == 1
