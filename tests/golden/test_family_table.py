"""The page of families says what the code can do."""

from pathlib import Path

from research.huggingface.family_table import FAMILIES, family_table

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_page_of_families_is_what_the_code_makes():
    made = family_table()
    assert PAGE.read_text() == made, "run `make families`"
    for family in FAMILIES.values():
        assert f"`{family.model_type}`" in made


def test_the_page_tells_families_apart():
    sections = dict(part.split("\n", 1) for part in family_table().split("\n## ")[1:])
    gpt2, gemma2 = (
        next(text for title, text in sections.items() if f"`{name}`" in title)
        for name in ("gpt2", "gemma2")
    )
    assert "learned positions" in gpt2
    assert "Rope scalings" not in gpt2
    assert "`c_attn` holds query, key, value" in gpt2
    assert "capped scores" in gemma2
    assert "learned positions" not in gemma2
