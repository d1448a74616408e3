"""How the language that a client names is matched with those of the model."""

from __future__ import annotations

import pytest

from common.errors import ClientFault, ErrorCode
from common.languages import ENGLISH, UNKNOWN, Languages

MANY = Languages(("en-US", "en-GB", "de-DE", "pt-BR", "auto"), prompted=True)


@pytest.mark.parametrize(
    ("tag", "option"),
    [
        ("de-DE", "de-DE"),
        ("de", "de-DE"),
        ("DE_de", "de-DE"),
        ("de-AT", "de-DE"),
        ("en", "en-US"),
        ("en-gb", "en-GB"),
        ("pt-PT", "pt-BR"),
        ("auto", "auto"),
        ("multi", None),
        ("Multi", None),
        ("", None),
        (None, None),
    ],
)
def test_a_tag_is_the_option_of_a_prompted_model(tag: str | None, option: str | None) -> None:
    assert MANY.option_for(tag) == option


@pytest.mark.parametrize("tag", ["en", "en-US", "en-GB", "EN_us", "multi", "", None])
def test_a_model_without_prompts_gets_no_option(tag: str | None) -> None:
    assert ENGLISH.option_for(tag) is None


@pytest.mark.parametrize("tag", ["fr", "eng", "d", "-", "en us", "e" * 10_000, "\ud800"])
@pytest.mark.parametrize("languages", [ENGLISH, MANY])
def test_another_tag_is_refused(languages: Languages, tag: str) -> None:
    with pytest.raises(ClientFault) as error:
        languages.option_for(tag)
    assert error.value.code is ErrorCode.BAD_OPTION
    assert ", ".join(languages.names) in error.value.message
    assert len(error.value.message) < 300


@pytest.mark.parametrize("tag", ["fr", "en", "\ud800"])
def test_nothing_is_refused_where_the_languages_are_not_known(tag: str) -> None:
    assert UNKNOWN.option_for(tag) is None


def test_several_languages_are_an_option_where_they_are_one() -> None:
    assert MANY.option_for_any(["en", "en-US"]) == "en-US"
    assert MANY.option_for_any(["en", "de"]) is None
    assert MANY.option_for_any([]) is None
    with pytest.raises(ClientFault):
        MANY.option_for_any(["en", "fr"])
