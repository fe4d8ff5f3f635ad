"""The two Java programs of caption scoring: METEOR 1.5 and the Penn Treebank tokeniser.

Both come with the package pycocoevalcap as .jar files. Each caption is one line of their input.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dermino_core.evaluation.measure import FloatArray

_UTF8 = "-Dfile.encoding=UTF-8"


class JavaFailedError(RuntimeError):
    """A program could not be run; the message is a sentence that says why."""


def penn_words(texts: Sequence[str]) -> list[str]:
    """Words of each text, separated by spaces: lower case, no punctuation, as COCO scores them.

    Raises
    ------
    JavaFailedError
        Without Java.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    jar = _jar("tokenizer", STANFORD_CORENLP_3_4_1_JAR)
    program = "edu.stanford.nlp.process.PTBTokenizer"
    # The tokeniser may swallow empty lines at the end: a full stop ends the list.
    lines = "".join(" ".join(text.split()) + "\n" for text in (*texts, "."))
    done = subprocess.run(  # noqa: S603
        [_java(), _UTF8, "-cp", jar, program, "-preserveLines", "-lowerCase"],
        input=lines.encode(),
        capture_output=True,
        check=False,
    )
    found = done.stdout.decode(errors="replace").split("\n")[: len(texts)]
    if done.returncode or len(found) < len(texts):
        raise JavaFailedError(f"Java failed ({_first_words(done.stderr)}).")
    return [" ".join(w for w in line.split() if w not in PUNCTUATIONS) for line in found]


def meteor_scores(
    generated: Sequence[str], references: Sequence[str], weights: FloatArray
) -> FloatArray:
    """METEOR 1.5 for English (Denkowski & Lavie 2014) of every row of weights.

    METEOR of several captions is that of the sums of their statistics, not the mean of theirs.

    Parameters
    ----------
    generated, references
        n texts, one reference each.
    weights
        How often each caption was drawn, [B, n].

    Returns
    -------
    [B], from 0 to 1.

    Raises
    ------
    JavaFailedError
        Without Java, or with too little memory (it takes 2 GB).
    """
    jar = _jar("meteor", "meteor-1.5.jar")
    command = [_java(), _UTF8, "-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile() as said:
        try:
            with subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
            ) as java:
                lines = [
                    _ask(java, f"SCORE ||| {_one_line(reference)} ||| {_one_line(text)}", 1)[0]
                    for text, reference in zip(generated, references, strict=True)
                ]
                statistics = np.array([line.split() for line in lines], dtype=np.float64)
                sums = [" ".join(map(str, row)) for row in (weights @ statistics).tolist()]
                # After one answer for each part comes one for all parts together, not needed.
                scores = _ask(java, " ||| ".join(["EVAL", *sums]), len(sums) + 1)
                return np.array(scores[:-1], dtype=np.float64)
        except (OSError, ValueError):
            said.seek(0)
            raise JavaFailedError(f"Java failed ({_first_words(said.read())}).") from None


def _ask(process: subprocess.Popen[bytes], line: str, n_answers: int) -> list[str]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("not started with pipes")
    process.stdin.write(line.encode() + b"\n")
    process.stdin.flush()
    return [process.stdout.readline().decode() for _ in range(n_answers)]


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise JavaFailedError("there is no Java on this machine.")
    return java


def _jar(folder: str, name: str) -> str:
    package = find_spec("pycocoevalcap")
    for place in (package.submodule_search_locations or ()) if package else ():
        if (jar := Path(place) / folder / name).is_file():
            return str(jar)
    raise JavaFailedError(f"the package pycocoevalcap has no {name}.")


def _one_line(text: str) -> str:
    return " ".join(text.replace("|||", " ").split())


def _first_words(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").split("\n") if line.strip()]
    return " ".join(lines[:2])[:200] or "no reason given"
