"""Files of a folder that is not trusted: whole, no link is followed, no pipe is opened."""

import errno
import os
import shutil
import threading

import pytest

from tool.shared import cli
from util.record.files import open_plain, read_text, replacing, write_named, write_text
from util.record.log import log, open_log, printable

pytestmark = pytest.mark.fast


@pytest.fixture
def precious(tmp_path):
    """A file outside of the run's folder, which nobody may touch."""
    file = tmp_path / "precious"
    file.write_text("mine")
    yield file
    assert file.read_text() == "mine"


def test_a_file_that_takes_the_place_of_a_link_leaves_what_it_points_to(tmp_path, precious):
    (tmp_path / "config.yaml").symlink_to(precious)
    write_text(tmp_path / "config.yaml", "ours")
    assert (tmp_path / "config.yaml").read_text() == "ours" and not (tmp_path / "config.yaml").is_symlink()


def test_what_a_person_names_is_written_into_where_it_is_no_file(tmp_path):
    """As root the device /dev/stdout, or /dev/null, was replaced by a file."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_named(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_named(pipe, b"through")
    reader.join(30)
    assert found == [b"through"] and pipe.is_fifo()
    write_named(tmp_path / "file", b"plain")
    assert (tmp_path / "file").read_bytes() == b"plain"


@pytest.mark.parametrize(
    "make",
    [
        lambda path, precious: path.symlink_to(precious),
        lambda path, precious: path.symlink_to(path),
        lambda path, precious: path.mkdir(),
        lambda path, precious: os.mkfifo(path),
    ],
    ids=["link", "loop", "folder", "pipe"],
)
def test_what_is_no_file_is_refused_by_name(tmp_path, precious, make):
    make(tmp_path / "train.log", precious)
    with pytest.raises(ValueError, match="train.log: not a file, but a link, folder, pipe or device"):
        open_plain(tmp_path / "train.log", os.O_WRONLY)
    with pytest.raises(ValueError, match="train.log"):
        open_log(tmp_path / "train.log")


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path):
    (tmp_path / "env.json").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_text(tmp_path / "env.json", "x")
    assert error.value.filename == str(tmp_path / "env.json")
    with pytest.raises(OSError) as error, replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(tmp_path / "file")
    assert os.listdir(tmp_path) == ["env.json"]


def test_a_loop_of_links_is_named_when_read(tmp_path):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(ValueError, match="a: too many levels of symbolic links"):
        read_text(tmp_path / "a", 10)


def test_a_log_on_a_full_disk_is_told_once_and_goes_on(tmp_path, capsys, monkeypatch):
    open_log(tmp_path / "train.log")
    try:
        handler = log.handlers[1]

        def full(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(handler.stream, "write", full, raising=False)
            log.info("lost")
            log.info("lost too")
        printed = capsys.readouterr()
        assert printed.out.count("train.log cannot be written (No space left on device); the run goes on") == 1
        assert "Traceback" not in printed.err
    finally:
        open_log(None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢字 \U0001f600", "plain é 漢字 \U0001f600"),
        ("two\nlines\tof a table", "two\nlines\tof a table"),
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("a\rb\x9b2J\x7f", "a\\rb\\x9b2J\\x7f"),
        ("bad\udcffname", "bad\\udcffname"),
        ("a\u2028b\u202eexe.png", "a\\u2028b\\u202eexe.png"),
    ],
)
def test_no_text_moves_the_cursor(text, shown):
    assert printable(text) == shown


def test_a_log_line_moves_no_cursor(tmp_path, capsys):
    open_log(tmp_path / "train.log")
    log.info("list line %s", "\x1b[2J")
    open_log(None)
    assert "\\x1b[2J" in (tmp_path / "train.log").read_text() and "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("letter", ["x", "ß", "漢"])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path, letter):
    name = letter * (255 // len(letter.encode()))
    write_text(tmp_path / name, "ours")
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(OSError) as error:
        write_text(tmp_path / (name + letter), "ours")
    assert error.value.filename == str(tmp_path / (name + letter)) and os.listdir(tmp_path) == [name]


def test_a_log_that_was_closed_takes_nothing_and_says_nothing(tmp_path, capsys):
    open_log(tmp_path / "run" / "train.log")
    for handler in log.handlers:
        handler.close()
    shutil.rmtree(tmp_path / "run")
    cli._log_file_only("error: something else")
    assert not (tmp_path / "run").exists() and capsys.readouterr().err == ""
    open_log(None)
