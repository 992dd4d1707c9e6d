"""Examples in docstrings run, and docstrings have one notation."""

import doctest
import importlib
import re

import pytest

from tests.test_imports import MODULES, PACKAGE

WITH_EXAMPLES = [name for name, path in MODULES.items() if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples(module, monkeypatch):
    """From the project's folder, as a reader would run them; none is left out."""
    monkeypatch.chdir(PACKAGE.parent)
    examples = doctest.DocTestFinder().find(importlib.import_module(f"phicalc.{module}"))
    runner = doctest.DocTestRunner()
    for example in examples:
        assert "+SKIP" not in example.docstring
        runner.run(example)
    assert runner.summarize() == (0, runner.tries) and runner.tries > 0


def test_the_calculator_and_prediction_show_how_they_are_used():
    assert {"engines.ase", "serving.prediction"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("module", MODULES)
def test_types_stand_in_the_signature(module):
    """Sections name parameters alone; shapes and units follow in the text."""
    text = MODULES[module].read_text("utf-8")
    repeated = re.findall(r"(?m)^ +\w+ : .*$", text)
    assert not repeated, f"expected a parameter's name alone on its line, got {repeated}"
