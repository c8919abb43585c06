"""The settings that users see."""

import importlib
import math

import pytest

from uniforget import config
from uniforget.config import METHODS, Settings
from uniforget.errors import SettingError
from uniforget.learn import memory
from uniforget.learn.objectives import OBJECTIVES
from uniforget.model.sites import TARGETS
from uniforget.param import Param

ALL = [*config.LEARN.values(), *config.APPLY.values(), *config.WEBUI.values()]


@pytest.mark.parametrize("param", ALL, ids=lambda p: p.name)
def test_every_default_is_valid_and_every_setting_is_explained(param):
    assert param.check(param.default) == param.default
    assert type(param.check(param.default)) is type(param.default)
    assert len(param.tooltip) > 30
    assert param.tooltip.endswith(".")


@pytest.mark.parametrize("param", [p for p in ALL if p.kind in ("int", "float")], ids=lambda p: p.name)
def test_numbers_end_where_their_range_ends(param):
    assert param.check(param.minimum) == param.minimum
    assert param.check(param.maximum) == param.maximum
    for value in (param.minimum - 1, param.maximum + 1, math.nan, math.inf, "1", None, True):
        with pytest.raises(SettingError, match=f"Setting '{param.name}': expected a .*number from .*; found"):
            param.check(value)


def test_the_message_names_setting_range_and_value():
    with pytest.raises(SettingError) as caught:
        config.LEARN["width"].check(515)
    assert str(caught.value) == "Setting 'width': expected a whole number from 64 to 2048 in steps of 8; found 515."
    with pytest.raises(SettingError, match="expected one of 'stepwise', 'trajectory', 'scores', 'subspace'; found 'magic'"):
        config.LEARN["objective"].check("magic")


def test_a_whole_number_stays_exact_and_a_fraction_is_refused():
    assert config.LEARN["seed"].check(2**64 - 1) == 2**64 - 1
    assert config.LEARN["steps"].check(3.0) == 3
    with pytest.raises(SettingError, match="'steps'"):
        config.LEARN["steps"].check(3.5)


def test_other_kinds():
    flag = Param("flag", False, "", "bool")
    assert flag.check(True) is True
    with pytest.raises(SettingError, match="expected True or False; found 1"):
        flag.check(1)
    with pytest.raises(SettingError, match="expected text; found 1"):
        Param("words", "", "", "text").check(1)


def test_presets_set_beta_and_custom_leaves_it():
    asked = [Settings.checked({"preset": p, "beta": 77.0}).beta for p in ("weak", "medium", "strong", "custom")]
    assert asked == [*config.PRESETS.values(), 77.0]
    assert Settings.checked({}) == Settings()
    with pytest.raises(SettingError, match="'beta'"):
        Settings.checked({"preset": "custom", "beta": 101})
    with pytest.raises(SettingError, match="'preset'"):
        Settings.checked({"preset": "huge"})


def test_the_ranges_of_another_table_count():
    assert Settings.checked({"learning_rate": 0.00001, "rank": 3}, config.RECOVER).learning_rate == 0.00001
    with pytest.raises(SettingError, match="'learning_rate'"):
        Settings.checked({"learning_rate": 5.0}, config.RECOVER)


def test_the_choices_are_those_the_engine_knows():
    assert set(config.LEARN["targets"].choices) == set(TARGETS)
    assert config.LEARN["objective"].choices == tuple(METHODS) and OBJECTIVES.keys() == {
        n for n, m in METHODS.items() if m.trains
    }
    assert set(config.LEARN["memory"].choices) == set(memory.MODES)
    assert set(config.LEARN["preset"].choices) == {*config.PRESETS, "custom"}
    assert all(method.amounts.keys() == config.PRESETS.keys() for method in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_run(name):
    assert callable(importlib.import_module(f"uniforget.learn.{METHODS[name].module}").run)
