"""Options of generate, grid and compare are the fields of the sampling parameters."""

from pathlib import Path

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from clipgraft.cli.app import app
from clipgraft.cli.generating import SAMPLING
from clipgraft.cli.options import PANELS
from clipgraft.sampling_params import InferenceConfig, SamplingParams
from clipgraft.scheduler_recipes import SCHEDULERS


@pytest.fixture(scope="module")
def commands():
    return typer.main.get_command(app).commands


def test_there_is_an_option_for_each_field():
    assert list(SAMPLING) == [*SamplingParams.model_fields]


@pytest.mark.parametrize("name", ["generate", "grid", "compare"])
def test_all_commands_have_the_same_sampling_options(commands, name):
    left_out = {"num_images_per_prompt"} if name == "grid" else set()
    found = {option.name: option for option in commands[name].params}
    assert SAMPLING.keys() - found.keys() == left_out
    assert all(found[field].default is None for field in SAMPLING.keys() - left_out)


def test_inference_options_have_the_defaults_of_their_fields(commands):
    found = {option.name: option.default for option in commands["generate"].params}
    assert {name: found[name] for name in InferenceConfig.model_fields} == InferenceConfig().model_dump()


def test_help_keeps_the_brackets_of_the_weighted_syntax(commands):
    helps = [option.help for command in commands.values() for option in command.params if option.help]
    shown = [Text.from_markup(text).plain for text in helps]
    assert shown == [text.replace("\\[", "[") for text in helps]
    assert "plain, or weighted: (word:1.3), [word], BREAK." in shown


def test_help_groups_all_options_of_generate(commands):
    found = {option.name: option.rich_help_panel for option in commands["generate"].params}
    assert {name for name, panel in found.items() if not panel} == {"out", "prompts"}
    assert {*found.values()} == {None, *PANELS}
    assert found.keys() >= {name for names in PANELS.values() for name in names}


def test_help_cuts_nothing_at_80_columns(commands, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    subcommands = {f"data {name}": command for name, command in commands["data"].commands.items()}
    runner = CliRunner()
    for name in [*commands, *subcommands]:
        shown = runner.invoke(app, [*name.split(), "--help"]).output
        assert "Usage" in shown
        assert "…" not in shown, name


def test_schedulers_of_the_table_are_in_the_documentation():
    documented = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    for name, recipe in SCHEDULERS.items():
        assert f"`{name}`" in documented
        assert recipe.sampler in documented
