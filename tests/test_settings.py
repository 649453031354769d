"""Settings changed by name, as the keyword arguments of the Python API are."""

from typing import Annotated

import pytest

from clipgraft.errors import UserError
from clipgraft.sampling_params import SamplingParams
from clipgraft.section import Like, Section
from clipgraft.settings import BridgeSettings, EvaluateSettings


def test_fields_are_changed_by_name():
    settings = BridgeSettings(num_epochs=2)
    changed = settings.updated({"hidden_size": 8})
    assert (changed.hidden_size, changed.num_epochs, settings.hidden_size) == (8, 2, 1024)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiden_size": 8}, "unknown setting 'hiden_size'; did you mean 'hidden_size'?"),
        ({"zzz": 8}, "unknown setting 'zzz'; known here: learning_rate"),
        ({"hidden_size": "8"}, "setting 'hidden_size': input should be a valid integer; got '8'"),
    ],
)
def test_a_wrong_field_or_value_is_named(values, message):
    with pytest.raises(UserError) as caught:
        BridgeSettings().updated(values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("kind", [SamplingParams, EvaluateSettings])
def test_a_prompt_has_no_more_images_than_a_list_holds(kind):
    kind.build({"num_images_per_prompt": 10_000})
    message = "'num_images_per_prompt': input should be less than or equal to 10000; got 100000000"
    with pytest.raises(UserError, match=message):
        kind.build({"num_images_per_prompt": 10**8})


class Named(Section):
    name: Annotated[str, Like("^[a-z]{3}$", "three letters from a to z")]


def test_a_text_unlike_its_pattern_is_refused_in_words():
    assert Named.build({"name": "dog"}).name == "dog"
    with pytest.raises(UserError, match=r"'name': expected three letters from a to z; got 'dogs'"):
        Named.build({"name": "dogs"})
    with pytest.raises(UserError, match=r"'name': input should be a valid string; got 7"):
        Named.build({"name": 7})
    assert Named.model_json_schema()["properties"]["name"]["pattern"] == "^[a-z]{3}$"
