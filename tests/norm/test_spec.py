from __future__ import annotations

import pytest

from ipu_proxynorm.norm import NormSpec, parse_norm_spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("bn", NormSpec("bn")),
        ("in", NormSpec("in")),
        ("ln", NormSpec("ln")),
        ("gn4", NormSpec("gn", 4)),
        ("none", NormSpec("none")),
        ("ln+pn", NormSpec("ln", proxy=True)),
        ("gn32+pn", NormSpec("gn", 32, proxy=True)),
        ("ln+ws", NormSpec("ln", weight_standardization=True)),
        ("gn4+pn+ws", NormSpec("gn", 4, True, True)),
    ],
)
def test_reads_and_spells_back_every_kind(text: str, spec: NormSpec) -> None:
    assert parse_norm_spec(text) == spec
    assert str(spec) == text


def test_suffixes_may_come_in_any_order() -> None:
    assert str(parse_norm_spec("gn4+ws+pn")) == "gn4+pn+ws"


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("bnn", "bn"),
        ("gn4+np", "gn4+pn"),
        ("lnpn", "ln+pn"),
        ("LN+pn", "ln+pn"),
        ("gn4pn", "gn4+pn"),
    ],
)
def test_names_the_nearest_spec(text: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="unknown norm spec") as refused:
        parse_norm_spec(text)
    assert f"'{text}'" in str(refused.value)
    assert f"did you mean '{nearest}'?" in str(refused.value)


@pytest.mark.parametrize("text", ["", "gn", "gn0", "gn-4", "ln+pn+pn", "ln+", "4"])
def test_refuses_what_is_no_spec(text: str) -> None:
    with pytest.raises(ValueError, match="expected one of bn, in, ln, gn<groups>, none"):
        parse_norm_spec(text)


@pytest.mark.parametrize("kind", ["bn", "in", "none"])
def test_refuses_proxy_norm_where_it_makes_no_sense(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"'{kind}\+pn': .*; use '{kind}', or \+pn behind ln"):
        parse_norm_spec(f"{kind}+pn")


def test_groups_of_channels() -> None:
    assert parse_norm_spec("ln").groups_for(12) == 1
    assert parse_norm_spec("in").groups_for(12) == 12
    assert parse_norm_spec("gn4").groups_for(12) == 4
    with pytest.raises(ValueError, match=r"5 groups do not divide 12 channels; .* that does is 4"):
        parse_norm_spec("gn5").groups_for(12)
