import pytest

from labkit.figures import architecture
from labkit.variants import VARIANTS, resolve


def test_the_table_has_the_papers_layers_and_counts():
    variant, scale = resolve("sigmarat2", "paper")
    table = architecture.networks_table(variant, scale)
    generator = table.loc["G, generator"]
    assert list(generator["output"][:-1]) == ["512 × 4 × 4 × 4", "256 × 8 × 8 × 8", "128 × 16 × 16 × 16",
                                              "64 × 32 × 32 × 32", "1 × 64 × 64 × 64"]  # fmt: skip
    sums = table.xs("in all", level="layer")["parameters"]
    assert sums.to_dict() == {
        "G, generator": 21_030_592,
        "D, discriminator": 11_047_873,
        "E, encoder": 27_399_604,
        "C, code discriminator": 18_837_505,
    }


@pytest.mark.parametrize(
    ("model", "present", "absent"),
    [
        ("adni", ["tag{2}", "10\\, \\lVert", "_{L1}"], ["_{MSE}", "_{GDL}"]),
        ("sigmarat1", ["tag{5}", "_{L1}", "_{MSE}"], ["_{GDL}"]),
        (
            "sigmarat2",
            ["tag{6}", "100\\, \\lVert", "0.01\\, \\lVert", "_{GDL}", "AdamW", "weight decay 0.01"],
            ["_{L1}"],
        ),
        ("sigmarat2_released", ["no gradient flows through", "steps 2 times"], []),
    ],
)
def test_equations_carry_the_variants_own_terms_and_weights(model, present, absent):
    text = architecture.equations(VARIANTS[model])
    assert all(part in text for part in present) and not any(part in text for part in absent)


def test_equations_follow_overrides():
    variant, _ = resolve("sigmarat2", "smoke", gdl_reduction="none", lambda2=7)
    text = architecture.equations(variant)
    assert "_{GDL}" not in text and "7\\, \\lVert" in text and "tag{6'}" in text
