"""Statistics of the experiment: differences per animal, their intervals and tests, and what it could have seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from labkit.markup import styled

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

PAPER_GAINS = {
    ("whole brain", "r100+s200"): 0.0172,
    ("white matter", "r100+s200"): 0.0129,
    ("grey matter", "r100+s50"): 0.0038,
    ("CSF", "r100+s50"): 0.0764,
}
"""Published gains in Dice over 174 real scans alone, by tissue and this study's arm (Ferreira et al. 2022)."""

OTHERWISE = {
    "r100": "conventional augmentation",
    "r25": "a quarter of the real scans",
    "r5": "a twentieth of the real scans",
    "r5+u95": "the other real scans added, labelled by registration",
    "r100+u": "the scans without labels added, labelled by registration",
    "r100+s1000": "synthetic scans added",
} | {
    f"r{part}+{letter}{dose}": what
    for letter, what in (
        ("g", "samples of a Gaussian added"),
        ("e", "the same scans under random warps added"),
        ("a", "scans of an atlas with its own labels added"),
        ("o", "scans that the generator labels itself added"),
        ("t", "new rats with true labels added"),
    )
    for part, dose in ((5, 200), (100, 200), (100, 1000))
}
"""Arms without synthetic scans, which tell what the experiment can see, and what is said of them."""

RIVALS = {
    "r5+e200": "warping the same scans, in place of drawing new ones from the atlas",
    "r5+u95": "labelling the other real scans with the atlas, in place of drawing new ones from it",
    "r5+t200": "new rats with true labels, in place of the atlas's",
}
"""What stands in place of an atlas's scans (`r5+a200`), which has to beat the first two to be worth drawing from."""

FEW_RIVALS = {
    "r100+e1000": RIVALS["r5+e200"],
    "r100+u": "labelling the scans without labels with the atlas, in place of drawing new ones from it",
    "r100+t1000": RIVALS["r5+t200"],
}
"""The same of `r100+a1000`, where labelled scans are too few for a twentieth of them."""

BESIDE_PUBLISHED = {
    1: "a gain, as published",
    0: "not told apart from no difference",
    -1: "a loss",
}
"""What is said of a difference where the paper found a gain."""

CONTROL = "r100+t200"
"""New rats with true labels: what it gains is what there was to gain."""

ALPHA, POWER = 0.05, 0.8


def difference_matrix(scores: pd.DataFrame, arm: str, reference: str, tissue: str, score: str = "dice") -> np.ndarray:
    """Score of an arm minus its reference's, (seeds that both have, animals): each animal is its own control.

    Of a table with columns ``arm``, ``seed``, ``subject``, ``session``, ``tissue`` and the scores.
    """
    part = scores[scores["tissue"] == tissue]
    tables = [
        part[part["arm"] == name].pivot_table(index="seed", columns=["subject", "session"], values=score)
        for name in (arm, reference)
    ]
    seeds = tables[0].index.intersection(tables[1].index)
    if not len(seeds):
        raise ValueError(f"no seed has both {arm!r} and {reference!r}")
    return (tables[0].loc[seeds] - tables[1].loc[seeds]).to_numpy()


def of_networks(values: np.ndarray) -> tuple[float, float, float, float]:
    """95 % interval (low, high), standard error and p of a mean of (seeds, animals); NaN for a single seed.

    Animals alone say nothing of other networks, of which there are few. The error has a part of each, var(seed means)
    / S + var(animal means) / A; Student's t has S - 1 degrees of freedom, as many as networks leave to estimate it.
    """
    from scipy.stats import t

    seeds, animals = values.shape
    if seeds < 2:
        return (float("nan"),) * 4
    parts = [values.mean(1).var(ddof=1) / seeds, values.mean(0).var(ddof=1) / animals if animals > 1 else 0.0]
    mean, error = float(values.mean()), float(np.sqrt(sum(parts)))
    reach = float(t.ppf(1 - ALPHA / 2, seeds - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, seeds - 1)) if error else float(mean == 0)
    return mean - reach, mean + reach, error, p


def differences(scores: pd.DataFrame, references: dict[str, str], score: str = "dice") -> pd.DataFrame:
    """Every arm against its reference, tissue by tissue.

    Parameters
    ----------
    scores : pandas.DataFrame
        As for :func:`difference_matrix`.
    references : dict of str to str
        Each arm's reference.
    score : str
        ``dice``, ``hd95_mm`` or ``volume_bias``.

    Returns
    -------
    pandas.DataFrame
        One row an arm and tissue: ``arm``, ``reference``, ``tissue``, ``difference``, ``ci_low``, ``ci_high``, ``p``
        (:func:`of_networks`), ``p_holm`` (corrected over all rows), ``detectable`` (the smallest difference seen with a
        power of 80 % at 5 %, corrected over all rows), ``seeds_sd`` (standard deviation of the seeds' means),
        ``seeds``, ``animals``. Without a second seed there is neither interval nor p.
    """
    import pandas as pd
    from scipy.stats import t
    from statsmodels.stats.multitest import multipletests

    tissues, rows = scores["tissue"].unique(), []
    for tissue in tissues:
        for arm, reference in references.items():
            values = difference_matrix(scores, arm, reference, tissue, score)
            low, high, error, p = of_networks(values)
            seeds, animals = values.shape
            degrees, looked_at = max(1, seeds - 1), len(tissues) * len(references)
            reach = (t.ppf(1 - ALPHA / 2 / looked_at, degrees) + t.ppf(POWER, degrees)) * error
            spread = float(values.mean(1).std(ddof=1)) if seeds > 1 else np.nan
            rows.append([arm, reference, tissue, float(values.mean()), low, high, p, np.nan, float(reach), spread,
                         seeds, animals])  # fmt: skip
    table = pd.DataFrame(rows, columns=["arm", "reference", "tissue", "difference", "ci_low", "ci_high", "p", "p_holm",
                                        "detectable", "seeds_sd", "seeds", "animals"])  # fmt: skip
    known = table["p"].notna()
    if known.any():
        table.loc[known, "p_holm"] = multipletests(table.loc[known, "p"], method="holm")[1]
    return table


def means(scores: pd.DataFrame, score: str = "dice") -> pd.DataFrame:
    """Mean score of every ``arm`` and ``tissue``, ``mean``, with ``ci_low`` and ``ci_high`` over seeds and animals."""
    import pandas as pd

    rows = []
    for (arm, tissue), part in scores.groupby(["arm", "tissue"], sort=False):
        values = part.pivot_table(index="seed", columns=["subject", "session"], values=score).to_numpy()
        low, high, *_ = of_networks(values)
        if score == "dice":
            low, high = np.clip((low, high), 0, 1)
        rows.append((arm, tissue, float(values.mean()), low, high))
    return pd.DataFrame(rows, columns=["arm", "tissue", "mean", "ci_low", "ci_high"])


def shown(table: pd.DataFrame) -> Styler:
    """A table of :func:`differences` for a notebook: rounded, a row a comparison."""
    p = dict.fromkeys(("p", "p_holm"), lambda value: "< 0.001" if value < 0.001 else f"{value:.3f}")
    signed = dict.fromkeys(("difference", "ci_low", "ci_high"), _signed)
    return styled(table, formats={**p, **signed, "detectable": "{:.4f}", "seeds_sd": "{:.4f}"}, na="").hide(
        axis="index"
    )


def conclusions(table: pd.DataFrame) -> list[str]:
    """What the differences say, in sentences made from the numbers.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`differences`, of Dice.

    Returns
    -------
    list of str
        One sentence a published gain; one each on conventional augmentation, on fewer real scans and on the controls
        with true labels, where those arms are there: they tell whether the experiment could have seen a benefit.
    """
    found = []
    by_key = table.set_index(["tissue", "arm"])
    for (tissue, arm), gain in PAPER_GAINS.items():
        if (tissue, arm) not in by_key.index:
            continue
        row, control = by_key.loc[(tissue, arm)], (tissue, CONTROL)
        verdict = BESIDE_PUBLISHED[_direction(row)]
        if control in by_key.index and by_key.loc[control, "ci_high"] < gain:
            verdict = f"not testable here, where new rats with true labels gained {stated(by_key.loc[control])}"
        found.append(
            f"{tissue}, {arm} against {row['reference']}: {_signed(row['difference'])} "
            f"({_signed(row['ci_low'])} to {_signed(row['ci_high'])}, {_p(row['p_holm'])} corrected), published "
            f"{_signed(gain)}: {verdict}. Smallest difference this design sees: {row['detectable']:.4f}."
        )
    for arm, what in OTHERWISE.items():
        rows = [row for _, row in table[table["arm"] == arm].iterrows()]
        if rows:
            seen = [f"{row['tissue']} {stated(row)}" for row in rows if _direction(row)]
            said = ", ".join(seen) or "nothing that this design can see"
            found.append(f"{arm} against {rows[0]['reference']}, {what}: {said}.")
    return found


def rivals(scores: pd.DataFrame, score: str = "dice") -> list[str]:
    """A sentence each on the arms of :data:`RIVALS` that are there, or else :data:`FEW_RIVALS`, against the atlas's."""
    arms = set(scores["arm"])
    drawn, known = ("r5+a200", RIVALS) if "r5+a200" in arms else ("r100+a1000", FEW_RIVALS)
    there = {arm: drawn for arm in known if {arm, drawn} <= arms}
    found = []
    for arm, rows in differences(scores, there, score).groupby("arm", sort=False):
        seen = [f"{row['tissue']} {stated(row)}" for _, row in rows.iterrows() if _direction(row)]
        said = ", ".join(seen) or "not told apart"
        found.append(f"{arm} against {drawn}, {known[str(arm)]}: {said}.")
    return found


def converged(curve: pd.DataFrame, steps: int) -> list[str]:
    """What more steps than `steps` would add to each arm, and to what one gains over another, in sentences.

    Of a table of ``Experiment.learning_curve``.
    """
    found, table = [], curve.pivot_table(index="steps", columns=["arm", "tissue"], values="dice", sort=False)
    for arm in curve["arm"].unique():
        more = table.loc[2 * steps, arm] - table.loc[steps, arm]
        found.append(f"{arm}: twice the {steps} steps would add {_each(more)} (one network).")
    for arm, reference in (pair for pair in (("r5+a200", "r5"),) if set(pair) <= set(curve["arm"])):
        gained = "; ".join(f"at {at} {_each(row)}" for at, row in (table[arm] - table[reference]).iterrows())
        found.append(f"{arm} against {reference}, by steps: {gained} (one network each).")
    return found


def _each(values: pd.Series) -> str:
    return ", ".join(f"{tissue} {_signed(value)}" for tissue, value in values.items())


def _direction(row: pd.Series) -> int:
    """1 for a gain that is told apart from none, -1 for such a loss, else 0."""
    if not row["p_holm"] < ALPHA:  # nor where there is no p
        return 0
    return int(row["ci_low"] > 0) - int(row["ci_high"] < 0)


def stated(row: pd.Series) -> str:
    """A difference with its interval, for people."""
    return f"{_signed(row['difference'])} ({_signed(row['ci_low'])} to {_signed(row['ci_high'])})"


def _p(value: float) -> str:
    if np.isnan(value):
        return "no p for a single seed"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")
