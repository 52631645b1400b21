"""The arms of the experiment: which real and which synthetic scans a network is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.fields import known

SOURCES = {
    "none": "nothing",
    "teacher": "synthetic scans, with labels by a network trained on the arm's own real scans",
    "gaussian": "samples of a Gaussian with the real training scans' mean and covariance, labelled in the same way: a "
    "control that needs no generator",
    "elastic": "the arm's own real scans under random warps",
    "atlas": "scans drawn from an atlas that sees the arm's own labels, with labels of its own",
    "own": "scans of a generator that moves that atlas, with the atlas's labels moved along",
    "registered": "the other real training scans, without labels or as if they had none, labelled by that atlas",
    "contrast": "scans drawn from that atlas, each tissue's brightness drawn anew",
    "true": "new simulated rats with their true labels: what synthetic scans would be if they were perfect, a control",
}
"""What an arm adds, and where its labels are from."""

ATLAS_SOURCES = ("atlas", "own", "registered", "contrast")
"""Those for which an atlas has to be trained."""

WORDS = {
    "teacher": "synthetic", "gaussian": "Gaussian", "elastic": "warped", "atlas": "atlas", "own": "self-labelled",
    "registered": "registered", "contrast": "recoloured", "true": "true",
}  # fmt: skip
"""Sources, in a word."""

FEW = 20
"""Labelled training scans below which a twentieth of them is no whole animal."""


@dataclass(frozen=True)
class Arm:
    """A training set."""

    name: str  # a letter a source, r for real, each with a percentage of the real training scans
    real: float  # part of the labelled real training scans, [0, 1]
    added: float = 0.0  # scans, in parts of all real training scans, with or without labels; 2 is 348 for 174
    source: str = "none"  # of the added scans' labels, a key of SOURCES
    augmentation: str = "full"  # the paper's conventional one, or "none"
    reference: str = ""  # the arm it is compared with, if any
    unlabelled: bool = False  # what is added are the real training scans without labels, however many

    def counts(self, n_train: int, unlabelled: int = 0) -> tuple[int, int]:
        """Real and added scans, where there are `n_train` labelled real ones to train on, and others without labels."""
        added = unlabelled if self.unlabelled else round(self.added * (n_train + unlabelled))
        return round(self.real * n_train), added

    def words(self, n_train: int, unlabelled: int = 0) -> str:
        """What it is, for people."""
        real, added = self.counts(n_train, unlabelled)
        parts = [f"{real} real"] if real else []
        parts += [f"{added} {WORDS[self.source]}"] if added else []
        return " + ".join(parts) + ("" if self.augmentation == "full" else ", no augmentation")


def _arms() -> list[Arm]:
    found = []
    for plain in ("", "-plain"):
        how = "none" if plain else "full"
        found.append(Arm(f"r100{plain}", 1.0, augmentation=how, reference="" if plain else "r100-plain"))
        found += [
            Arm(f"r100+s{dose}{plain}", 1.0, dose / 100, "teacher", how, f"r100{plain}") for dose in (50, 100, 200)
        ]
    found.append(Arm("s200", 0.0, 2.0, "teacher", reference="r100"))
    for part in (5, 25, 50):
        found.append(Arm(f"r{part}", part / 100, reference="r100"))
        found.append(Arm(f"r{part}+s200", part / 100, 2.0, "teacher", reference=f"r{part}"))
        found.append(Arm(f"r{part}+a200", part / 100, 2.0, "atlas", reference=f"r{part}"))
        found.append(Arm(f"r{part}+o200", part / 100, 2.0, "own", reference=f"r{part}"))
        found.append(Arm(f"r{part}+u{100 - part}", part / 100, 1 - part / 100, "registered", reference=f"r{part}"))
    found += [Arm(f"a{dose}", 0.0, dose / 100, "atlas", reference="r100") for dose in (100, 200)]
    found += [Arm(f"r100+a{dose}", 1.0, dose / 100, "atlas", reference="r100") for dose in (50, 200)]
    found += [Arm("o200", 0.0, 2.0, "own", reference="r100"), Arm("r100+o200", 1.0, 2.0, "own", reference="r100")]
    found.append(Arm("r100+u", 1.0, source="registered", reference="r100", unlabelled=True))
    for letter, source in (("s", "teacher"), ("a", "atlas"), ("o", "own"), ("e", "elastic"), ("t", "true")):
        found.append(Arm(f"r100+{letter}1000", 1.0, 10.0, source, reference="r100"))
    found.append(Arm("r5+c200", 0.05, 2.0, "contrast", reference="r5"))
    for part in (5, 100):
        found.append(Arm(f"r{part}+e200", part / 100, 2.0, "elastic", reference=f"r{part}"))
        found.append(Arm(f"r{part}+g200", part / 100, 2.0, "gaussian", reference=f"r{part}"))
        found.append(Arm(f"r{part}+t200", part / 100, 2.0, "true", reference=f"r{part}"))
    return found


ARMS = {arm.name: arm for arm in _arms()}
"""All arms by name."""

SETS = {
    "full": tuple(name for name in ARMS if not name.endswith("1000")),  # tens of thousands of scans of hundreds
    "reduced": (
        "r100-plain", "r100", "r100+s50", "r100+s200", "r100+g200", "r100+a200", "r100+o200", "r100+t200",
        "r5", "r5+s200", "r5+e200", "r5+a200", "r5+o200", "r5+u95", "r5+t200",
    ),
    "few": ("r100-plain", "r100", "r100+s1000", "r100+a1000", "r100+o1000", "r100+u", "r100+e1000", "r100+t1000"),
    "least": ("r100-plain", "r100", "r100+s200", "r100+g200", "r100+a200", "r100+o200", "r100+t200"),
}  # fmt: skip
"""Arms by name of a set: all; the laptop scale's; those for fewer than :data:`FEW` labelled scans; a smoke test's."""


def chosen(
    arms: str | Sequence[str], simulated: bool, atlas: bool = True, unlabelled: bool = True, moves: bool = True
) -> list[Arm]:
    """Arms by name of a set, or by their own, in the order of :data:`ARMS`, with the arms they are compared with.

    An arm's reference is trained on the same real scans, and so it is also the teacher of its synthetic ones. `arms` is
    a key of :data:`SETS`, or names, which one text may hold with commas. Where no new rats can be `simulated`, true
    controls are left out of a set, and refused by name; so are arms of an `atlas` where none was trained, of
    `unlabelled` scans where there are none, and of a generator that labels its scans where the run's `moves` no atlas.
    """
    names, a_set = arms, isinstance(arms, str) and arms in SETS
    if isinstance(arms, str):
        names = SETS[arms] if a_set else [part.strip() for part in arms.split(",") if part.strip()]
    for name in names:
        known("arm", name, [*ARMS, *SETS])
    wanted = set()
    for arm in (ARMS[name] for name in names):
        if arm.source == "true" and not simulated:
            if a_set:
                continue
            raise ValueError(f"arm {arm.name!r} adds new simulated rats, and the run's cohort is not a simulated one")
        if arm.source in ATLAS_SOURCES and not atlas:
            if a_set:
                continue
            raise ValueError(
                f"arm {arm.name!r} needs an atlas of the same training scans: papermill book/02_train.ipynb out.ipynb "
                "-p model atlas, with the cohort of this run"
            )
        if arm.source == "own" and not moves:
            if a_set:
                continue
            raise ValueError(
                f"arm {arm.name!r} needs a generator that moves an atlas, and that atlas in the run's folder, which a "
                "packed run has not: train the model sigmarat3"
            )
        if arm.unlabelled and not unlabelled:
            if a_set:
                continue
            raise ValueError(f"arm {arm.name!r} adds the training scans without labels, and all of them have labels")
        wanted |= {arm.name, arm.reference or arm.name}
    return [arm for arm in ARMS.values() if arm.name in wanted]
