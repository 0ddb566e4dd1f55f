"""Random models and options of a run, with what they give to a text by the oracle."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.fuzzing.models import (
    FixedPoint,
    Models,
    Neural,
    Ngram,
    OfFairseq,
    Reading,
    Scored,
    interpolated,
)
from tests.fuzzing.words import spoken

Words = Sequence[str]
NAMES = ("A", "B-2", "Old.LM", "D", "e5")  # that a run may give to its models, as many as it has


@dataclass
class Setup:
    """Models of a run by the name of their score.

    Attributes:
        arguments: that name the models, and say how they read.
        subtracted: the scores with a weight below 0, which give no penalty of unknown words back.
    """

    reading: Reading
    neural: dict[str, Neural] = field(default_factory=dict)
    ngrams: dict[str, Ngram] = field(default_factory=dict)
    interpolation: float | None = None
    arguments: list[object] = field(default_factory=list)
    subtracted: Collection[str] = ()

    @property
    def names(self) -> list[str]:
        """In the order of the new scores."""
        both = [*self.neural, *self.ngrams]
        return both if self.interpolation is None else ["Interpolated0"]

    def spoken(self, text: str) -> list[str]:
        models = [*self.neural.values(), *self.ngrams.values()]
        return spoken(text, models, self.reading.lowercase)

    def score(self, words: Words, previous: Sequence[Words] = ()) -> dict[str, Scored]:
        """What each model says of a text, by the name of its score."""
        without = replace(self.reading, unknown_penalty=0.0)
        is_subtracted = "Interpolated0" in self.subtracted

        def reading(name: str) -> Reading:
            return without if is_subtracted or name in self.subtracted else self.reading

        actual = {
            name: model.score(words, reading(name), previous) for name, model in self.neural.items()
        }
        actual |= {name: model.score(words, reading(name)) for name, model in self.ngrams.items()}
        if self.interpolation is None:
            return actual
        return {"Interpolated0": interpolated(*actual.values(), self.interpolation)}

    def can_subtract(self, name: str, scores: Iterable[Mapping[str, Scored]]) -> bool:
        """Whether the model has a probability for all words of texts that have these scores."""
        ngrams = self.ngrams if self.interpolation is not None else {name: self.ngrams.get(name)}
        is_closed = any(ngram is not None and not ngram.has_unknown for ngram in ngrams.values())
        return not is_closed or not any(each[name].unknown for each in scores)


def random_setup(
    chooser: random.Random, models: Models, single: bool = False, previous: bool = False
) -> Setup:
    """Models and options that go together.

    Args:
        single: whether there has to be one score.
        previous: whether models may see the text before.
    """
    how = chooser.choice(("neural", "neural", "ngram", "both", "interpolated"))
    if how == "both" and single:
        how = "neural"
    is_fixedpoint = chooser.random() < 0.75
    kind: Sequence[Neural] = models.fixedpoint if is_fixedpoint else models.of_fairseq
    count = 0 if how == "ngram" else 1
    if how in ("neural", "both") and not single and chooser.random() < 0.3:
        count = 2
        if chooser.random() < 0.3:
            kind = (*models.fixedpoint, *models.of_fairseq)
    chosen = [chooser.choice(kind) for _ in range(count)]
    ngrams = [chooser.choice(models.ngrams)] * (how != "neural")
    setup = Setup(_random_reading(chooser, chosen, previous))
    for model in chosen:
        _name(setup, chooser, model)
    for ngram in ngrams:
        _name(setup, chooser, ngram)
    if how == "interpolated":
        setup.interpolation = chooser.choice((0.0, 0.3, 0.5, 0.9, 1.0))
        setup.arguments += ["--interpolate", setup.interpolation]
    setup.arguments += reading_arguments(setup.reading, chooser)
    return setup


def lattice_setup(chooser: random.Random, models: Models) -> Setup:
    """Models of some order, of words or of letters, and n-gram models."""
    letters = chooser.random() < 0.2
    of_words = [each for each in models.fixedpoint if not each.adds_bos_token]
    count = chooser.choice((1, 1, 2))
    chosen = chooser.choices(models.of_letters if letters else of_words, k=count)
    iterations = chooser.choice((None, None, 1, 2, 3))
    if any(model.order(Reading()) is None for model in chosen):
        iterations = iterations or 2
    reading = _random_reading(chooser, chosen, False)
    setup = Setup(replace(reading, iterations=iterations, letters=letters))
    for model in chosen:
        _name(setup, chooser, model)
    for ngram in models.ngrams:
        if chooser.random() < 0.2:
            _name(setup, chooser, ngram)
    setup.arguments += reading_arguments(setup.reading, chooser)
    return setup


def again(setup: Setup, chooser: random.Random) -> list[object]:
    """Arguments of a run that has the same models as `Again0`, `Again1`, ..., and weighs none."""
    actual = reading_arguments(setup.reading, chooser)
    for place, model in enumerate((*setup.neural.values(), *setup.ngrams.values())):
        option = "--kenlm" if isinstance(model, Ngram) else "--model"
        actual += [option, f"Again{place}={_path(model)}", f"--weight=Again{place}=0"]
    return actual


def number(chooser: random.Random, value: float) -> str:
    """A number as people and programs write it."""
    return format(value, chooser.choice((".10f", ".12g", ".9e"))) if value else "0"


def reading_arguments(reading: Reading, chooser: random.Random) -> list[object]:
    actual: list[object] = []
    if reading.lowercase:
        actual.append("--lowercase")
    if reading.unknown_penalty:
        actual += ["--unknown-penalty", number(chooser, reading.unknown_penalty)]
    if reading.iterations is not None:
        actual += ["--iterations", reading.iterations]
    if reading.letters:
        actual += ["--bpe", "characters"]
    if not reading.normalized:
        actual.append("--unnormalized")
    if reading.previous_context is None:
        actual.append("--previous-context")
    elif reading.previous_context:
        actual += ["--previous-context", reading.previous_context]
    return actual


def _random_reading(chooser: random.Random, chosen: list[Neural], previous: bool) -> Reading:
    of_fixedpoint = bool(chosen) and all(isinstance(model, FixedPoint) for model in chosen)
    reading = Reading(
        lowercase=chooser.random() < 0.3,
        unknown_penalty=chooser.choice((0.0, 0.0, 0.75, 50.0, -0.5)),
        iterations=chooser.choice((None, None, 0, 1, 3)) if of_fixedpoint else None,
        normalized=not (
            of_fixedpoint
            and all(model.can_be_unnormalized for model in chosen)
            and chooser.random() < 0.15
        ),
    )
    if not (previous and chosen) or any(model.name == "reset" for model in chosen):
        return reading
    limits = [model.order(reading) for model in chosen]
    contexts = (1, 2, 5, 12) if None in limits else (1, 2, 5, 12, None, None)
    return replace(reading, previous_context=chooser.choice((0, *contexts)))


def _name(setup: Setup, chooser: random.Random, model: Neural | Ngram) -> None:
    """Adds a model under a name that is given, or under the one that it then has."""
    option = "--kenlm" if isinstance(model, Ngram) else "--model"
    of_kind = setup.ngrams if isinstance(model, Ngram) else setup.neural
    kind = {Ngram: "KenLM", FixedPoint: "FixedPoint", OfFairseq: "Fairseq"}[type(model)]
    taken = {*setup.neural, *setup.ngrams}
    name = f"{kind}{sum(each.startswith(kind) for each in taken)}"
    if chooser.random() < 0.3:
        name = chooser.choice(
            [each for each in ("A", "B-2", "Old.LM", "D", "e5") if each not in taken]
        )
        setup.arguments += [option, f"{name}={_path(model)}"]
    else:
        setup.arguments += [option, _path(model)]
    of_kind[name] = model


def _path(model: Neural | Ngram):
    return model.path if isinstance(model, Ngram) else model.checkpoint
