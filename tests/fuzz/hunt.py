"""Inputs for a surface, one after another: drawn, tried, judged, and reduced where they break a promise."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distill3d.cli import main

from .box import Box, Seen, differences
from .mutations import COMMAND_LINE, Mutation, Place, draw
from .surfaces import Surface
from .trial import Answer, Fault, call, fault_of

NEUTRAL_SHARE, WORDS_SHARE = 0.12, 0.2
#: How long, s, and how often an input is tried again to make it smaller.
REDUCING, ATTEMPTS = 60.0, 40


@dataclass(frozen=True)
class Input:
    """A sound input of a surface and what is changed in it."""

    surface: str
    variant: int
    mutations: tuple[Mutation, ...]

    def to_plain(self) -> dict[str, object]:
        return {
            "surface": self.surface, "variant": self.variant, "mutations": [m.to_plain() for m in self.mutations],
        }  # fmt: skip

    @classmethod
    def from_plain(cls, plain: dict) -> Input:
        return cls(plain["surface"], plain["variant"], tuple(Mutation(**m) for m in plain["mutations"]))


class Unsound(Exception):
    """A sound input breaks a promise: its answer, and which."""


@dataclass(frozen=True)
class Verdict:
    """What an input came to."""

    answer: Answer
    fault: Fault | None


class Hunter:
    """A surface in a box of its own below ``folder``; templates are kept there from one process to the next.

    ``thorough``: every sound input is tried twice before anything is made of it.

    Raises:
        RuntimeError: the sound input is not accepted.
    """

    def __init__(self, surface: Surface, folder: Path, thorough: bool = False) -> None:
        self.surface, self.thorough = surface, thorough
        template = folder / "made" / surface.make.__name__
        done = template / "done"
        if not done.is_file():
            shutil.rmtree(template, ignore_errors=True)
            (template / "cwd").mkdir(parents=True)
            made = call(lambda _: surface.make(), [], template / "cwd", 300)
            if made.error is not None or made.code:
                raise RuntimeError(f"{surface.name}: could not be made: {made.error!r} {made.err}") from made.error
            done.touch()
        self.box = Box(folder / surface.name.replace(" ", "_"), template)
        self.files = [found for pattern in surface.files if (found := self.box.files([pattern]))]
        self._baselines: dict[int, Answer] = {}

    def baseline(self, variant: int) -> Answer:
        """What the sound input gives.

        Raises:
            Unsound: it is answered badly, or not in the same way again.
        """
        if variant not in self._baselines:
            before = self.box.look()
            answer = self._call(variant, ())
            fault = fault_of(answer, self.surface.lists) or self._changed(before, additions=True)
            if fault is None and not answer.accepted and not self.surface.lists:
                fault = Fault("fuzzer", "the sound input is refused", answer.err[-300:])
            self.box.restore()
            different = answer.same_as(self._call(variant, ())) if self.thorough and fault is None else None
            self.box.restore()
            if different:
                fault = Fault("unequal", "the sound input, tried again", different)
            if fault is not None:
                raise Unsound(answer, fault)
            self._baselines[variant] = answer
        return self._baselines[variant]

    # ------------------------------------------------------------------------------------------------------- one input

    def input(self, seed: int, index: int) -> Input:
        """The input of this number."""
        surface, rng = self.surface, random.Random(f"{seed}/{self.surface.name}/{index}")
        variant = rng.randrange(len(surface.variants))
        if self.files and rng.random() < NEUTRAL_SHARE:
            file = self._file(rng)
            return Input(surface.name, variant, (draw(rng, file, self.box.original(file), neutral=True),))
        count = rng.choices((1, 2, 3, 4), (60, 25, 10, 5))[0]
        of_words = surface.words and (not self.files or rng.random() < WORDS_SHARE)
        if of_words:
            words = json.dumps(surface.variants[variant]).encode()
            return Input(surface.name, variant, tuple(draw(rng, COMMAND_LINE, words) for _ in range(count)))
        chosen: list[Mutation] = []
        file = self._file(rng)
        for _ in range(count):
            chosen.append(draw(rng, file, self.box.original(file)))
            file = file if rng.random() < 0.5 else self._file(rng)
        return Input(surface.name, variant, tuple(chosen))

    def _file(self, rng: random.Random) -> str:
        return rng.choice(rng.choice(self.files))

    def try_input(self, given: Input) -> Verdict:
        """Tries an input, and judges what it came to; a fault of the fuzzer itself is one, too."""
        try:
            return self._try_input(given)
        except Exception as error:
            self.box.fill()
            where = traceback.format_exc().strip().splitlines()[-3].strip()
            return Verdict(Answer(), Fault("fuzzer", where, repr(error)))

    def _try_input(self, given: Input) -> Verdict:
        surface, mutations = self.surface, given.mutations
        neutral = bool(mutations) and all(m.neutral for m in mutations)
        guarded = bool(mutations) and all(surface.guarded(m) for m in mutations)
        try:
            sound = self.baseline(given.variant)  # also where nothing is compared: of what it refuses nothing is tried
        except Unsound as unsound:
            return Verdict(*unsound.args)
        self._put(mutations)
        try:
            before = self.box.look()
            answer = self._call(given.variant, mutations)
            of_words = any(m.file == COMMAND_LINE for m in mutations)
            changed = self._changed(before, additions=not of_words)
            fault = fault_of(answer, surface.lists) or changed
            if fault is None and sound is not None and (neutral or (guarded and answer.accepted)):
                different = answer.same_as(sound)
                if different:
                    how = mutations[0].how if neutral else "damaged bytes"
                    fault = Fault("unequal", f"{how} of {_kind(mutations[0].file)}", different)
            if fault is None and answer.accepted and not of_words:
                fault = self._silent(given.variant, answer)
        finally:
            self.box.restore()
        return Verdict(answer, fault)

    def _changed(self, before: Seen, additions: bool) -> Fault | None:
        """What a call did to what is not its own; the box is filled anew after anything."""
        after = self.box.look()
        changed = differences(before, after, additions)
        if before != after:
            self.box.spoilt = True
        return Fault("changed", re.sub(r"\d+", "N", changed[0]), changed[0]) if changed else None

    def _put(self, mutations: Sequence[Mutation]) -> None:
        contents: dict[str, bytes | Place] = {}
        for mutation in mutations:
            if mutation.file == COMMAND_LINE:
                continue
            content = contents.get(mutation.file, None)
            if content is None:
                content = self.box.original(mutation.file) if (self.box.template / mutation.file).is_file() else b""
            if isinstance(content, bytes):
                contents[mutation.file] = mutation.apply(content)
        for file, content in contents.items():
            self.box.put(file, content)

    def _words(self, variant: int, mutations: Sequence[Mutation]) -> list[str]:
        data = json.dumps(self.surface.variants[variant]).encode()
        for mutation in mutations:
            if mutation.file == COMMAND_LINE:
                changed = mutation.apply(data)
                assert isinstance(changed, bytes)
                data = changed
        return json.loads(data)

    def _call(self, variant: int, mutations: Sequence[Mutation]) -> Answer:
        os.environ["HOME"] = str(self.box.root / "home")
        answer = call(self.surface.run, self._words(variant, mutations), self.box.root / "cwd")
        torch.set_num_threads(1)
        answer.written = self.box.written(self.surface.compared) if answer.accepted else {}
        return answer

    def _silent(self, variant: int, answer: Answer) -> Fault | None:
        """What ``distill3d check`` says of a file that was used without a word."""
        if not self.surface.checked or any(re.search(told, answer.out) for told in self.surface.tells):
            return None
        checked = self.surface.checked[variant]
        said = call(main, ["check", "../in", "--layout", checked.layout], self.box.root / "cwd")
        for line in said.out.splitlines():
            place, _, sentence = line.removeprefix("../in/").partition(": ")
            file = re.sub(r":\d+$", "", place)
            if line.startswith("../in/") and checked.uses(file, self.box.root / "in"):
                abstract = re.sub(r"'[^']*'|[0-9a-f]{32}|[-\d.]*\d[-\d.e+]*|\b(nan|inf)\b", "N", sentence)[:70]
                kind = re.sub(r"\d+", "N", place.split(":")[0])
                return Fault("silent", f"{kind}: {abstract}", f"exit code 0, though check says {line[:300]}")
        return None

    # -------------------------------------------------------------------------------------------------------- reducing

    def reduced(self, given: Input, fault: Fault) -> tuple[Input, Fault]:
        """The least input that was found to break the same promise at the same place."""
        end, left = time.monotonic() + REDUCING, ATTEMPTS

        def still(other: Input) -> Fault | None:
            nonlocal left
            left -= 1
            if left < 0 or time.monotonic() > end:
                return None
            found = self.try_input(other).fault
            return found if found is not None and found.signature == fault.signature else None

        for index in reversed(range(len(given.mutations))):
            fewer = replace(given, mutations=given.mutations[:index] + given.mutations[index + 1 :])
            if fewer.mutations and (found := still(fewer)):
                given, fault = fewer, found
        for index, mutation in enumerate(given.mutations):
            for name in ("times", "length", "depth", "count"):
                while isinstance(size := given.mutations[index].given.get(name), int) and size > 1:
                    smaller = replace(mutation, given={**given.mutations[index].given, name: size // 2})
                    other = replace(given, mutations=(*given.mutations[:index], smaller, *given.mutations[index + 1 :]))
                    if not (found := still(other)):
                        break
                    given, fault = other, found
        return given, fault


def _kind(file: str) -> str:
    return file if file == COMMAND_LINE else re.sub(r"\d+|[0-9a-f]{32}", "N", file)
