"""Fuzzing that is guided by coverage, for long runs outside of the test suite (Python 3.11 or 3.12, Linux).

    python -m pip install atheris
    python -m tests.fuzz.run_atheris "YAML of experiments" -max_total_time=600

The name is one of `hostile.READERS`; further arguments are libFuzzer's. An input that breaks the rule is left as
`crash-*` in the present folder.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dataset", "util", "yaml", "PIL", "zipfile", "pickletools"]):
    from tests.fuzz import hostile


def main() -> None:
    reader = hostile.READERS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "seeds"
        corpus.mkdir()
        for number, seed in enumerate(reader.seeds()):
            (corpus / str(number)).write_bytes(seed)
        dictionary = Path(folder) / "tokens"
        quoted = ["".join(f"\\x{byte:02x}" for byte in token) for token in reader.tokens if len(token) <= 60]
        dictionary.write_text("".join(f'"{text}"\n' for text in quoted))
        options = [*([f"-dict={dictionary}"] if quoted else []), f"-timeout={hostile.HANG}", "-rss_limit_mb=4096"]
        atheris.Setup([*sys.argv, *options, str(corpus)], lambda data: hostile.judge(reader, Path(folder), data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
